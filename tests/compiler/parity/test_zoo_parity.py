"""Every model recipe compiles for this machine and agrees with ONNX Runtime.

`python tests/compiler/parity/test_zoo_parity.py` prints the table of errors that the README shows.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgec.compiler import Bundle, CompileOptions, compile_model
from edgec.compiler.parity.verify_bundle import verify_bundle
from edgec.models import ModelRecipe, load_model_recipe, recipes


def compile_recipe(recipe: ModelRecipe, folder: Path, target: str = "native") -> Bundle:
    model = recipe.write(folder / recipe.file_name)
    options = CompileOptions(
        shapes=dict(recipe.shapes),
        context=recipe.context or None,
        freeze={name: np.array(value) for name, value in recipe.freeze.items()},
    )
    return compile_model(model, target, options, output=folder / f"{recipe.name}.edgec")


def randomize_weights(path: Path, seed: int = 0) -> None:
    """Give a light model, whose weights are all alike, weights that mean something.

    Constant weights hide most mistakes: any permutation of equal numbers is right. He et al.
    2015 initialization keeps activations in range through the depth.
    """
    model = onnx.load(path)
    random = np.random.default_rng(seed)
    makers = {
        node.output[0]: node for node in model.graph.node if node.op_type == "ConstantOfShape"
    }
    shapes = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            maker = makers.pop(name, None)
            if maker is None:
                continue
            shape = tuple(int(extent) for extent in shapes[maker.input[0]])
            fan_in = max(1, int(np.prod(shape[1:])))
            scale = (2 / fan_in) ** 0.5 if position == 1 and len(shape) > 1 else 0.1
            values = random.standard_normal(shape, np.float32) * np.float32(scale)
            if node.op_type == "BatchNormalization" and position in (1, 4):
                values = np.abs(values) + 1
            model.graph.initializer.append(numpy_helper.from_array(values, name))
            model.graph.node.remove(maker)
    # Version 3 would want every weight among the inputs.
    model.ir_version = 8
    onnx.save(model, path)


# These are compiled with weights that mean something.
RANDOM = ("light_squeezenet", "light_shufflenet", "light_inception_v2", "light_resnet50")


@pytest.mark.slow
@pytest.mark.parametrize("name", [r.name for r in recipes() if r.name not in RANDOM])
def test_recipe(name: str, tmp_path: Path) -> None:
    bundle = compile_recipe(load_model_recipe(name), tmp_path)
    assert bundle.manifest.parity.checked_on == "target"
    assert verify_bundle(bundle).passed


@pytest.mark.slow
@pytest.mark.parametrize("name", RANDOM)
def test_light_models_with_random_weights(name: str, tmp_path: Path) -> None:
    recipe = load_model_recipe(name)
    path = recipe.write(tmp_path / "model.onnx")
    randomize_weights(path)
    bundle = compile_model(path, output=tmp_path / "model.edgec")
    ((_, outputs),) = bundle.vectors()
    (expected,) = outputs.values()
    # The check means something only if the outputs differ among themselves.
    assert expected.std() > 1e-5
    assert verify_bundle(bundle, model=path, seeds=(1, 2)).passed


def main() -> None:
    print(f"{'model':22}{'output':32}{'largest error':>14}{'of allowed':>12}{'SQNR':>10}")
    for recipe in recipes():
        if sys.argv[1:] and recipe.name not in sys.argv[1:]:
            continue
        with tempfile.TemporaryDirectory() as folder:
            bundle = compile_recipe(recipe, Path(folder))
            for output in verify_bundle(bundle).outputs:
                print(
                    f"{recipe.name:22}{output.name:32}{output.max_error:14.2g}"
                    f"{output.allowed_share:12.1%}{output.sqnr_db:7.1f} dB",
                    flush=True,
                )


if __name__ == "__main__":
    main()
