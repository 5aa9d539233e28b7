"""A library of a coarsely quantized graph is judged by the graph's own distance from the floats.

The network mixes rows and columns through ten layers, each of which makes a change larger: one
rounding more or less becomes as large as the quantization noise, as in a deep transformer.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.onnx_graphs import make_model, node, save
from tvm import IRModule, relax

import edgec.compiler.program_compiler as program_compiler
from edgec.compiler import Bundle, CompileOptions, compile_model
from edgec.compiler.calibration.samples import SampleOptions
from edgec.compiler.errors import ParityError
from edgec.compiler.ir.relax_helpers import constant, op_name, value_of
from edgec.compiler.parity.compare import QUANTIZED_SQNR_DB
from edgec.compiler.passes.base import CallRewriter, Pass
from edgec.compiler.quantize.options import QuantizeOptions
from edgec.compiler.quantize.quantization_recipe import load_recipe

SIZE, LAYERS, GAIN = 96, 10, 1.5


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The model and its samples."""
    folder = tmp_path_factory.mktemp("source")
    random = np.random.default_rng(0)
    weights = {
        f"w{i}": (random.standard_normal((SIZE, SIZE)) * GAIN / SIZE**0.5).astype(np.float32)
        for i in range(LAYERS)
    }
    weights["gain"] = np.full(SIZE, GAIN, np.float32)
    nodes, last = [], "x"
    for i in range(LAYERS):
        nodes += [
            node("MatMul", [last, f"w{i}"], [f"m{i}"]),
            node("LayerNormalization", [f"m{i}", "gain"], [f"n{i}"]),
            node("Tanh", [f"n{i}"], [f"t{i}"]),
            node("Transpose", [f"t{i}"], [f"p{i}"], perm=[1, 0]),
        ]
        last = f"p{i}"
    model = save(make_model(nodes, {"x": [SIZE, SIZE]}, [last], weights), folder)
    np.save(folder / "x.npy", random.standard_normal((8 * SIZE, SIZE)).astype(np.float32))
    return model, folder / "x.npy"


def _compile(source: tuple[Path, Path], output: Path) -> Bundle:
    options = CompileOptions(
        quantize=QuantizeOptions(recipe=load_recipe("int8")),
        samples=SampleOptions(source=str(source[1])),
    )
    return compile_model(source[0], options=options, output=output)


def test_the_bar_follows_the_graph(source: tuple[Path, Path], tmp_path: Path) -> None:
    manifest = _compile(source, tmp_path / "good.edgec").manifest
    assert manifest.quantization is not None
    (own,) = manifest.quantization.sqnr_db.values()
    # The network is as coarse as this test is about.
    assert 10 < own < QUANTIZED_SQNR_DB
    assert manifest.tolerance.sqnr_db == pytest.approx(own - 3, abs=0.1)


@relax.expr_functor.mutator
class _Forget(CallRewriter):
    done = False

    def rewrite(self, call: relax.Call) -> relax.Expr | None:
        weight = value_of(call.args[0]) if op_name(call) == "relax.dequantize" else None
        if self.done or weight is None or weight.ndim != 2:
            return None
        self.done = True
        weight = weight.copy()
        weight[:, : SIZE // 16] = 0
        return relax.Call(call.op, [constant(weight), *call.args[1:]], call.attrs)


@dataclass(frozen=True)
class ForgetColumns(Pass):
    """The negative control: the first product computes zeros in a sixteenth of its columns."""

    def apply(self, module: IRModule) -> IRModule:
        return _Forget(module).run()


def test_a_damaged_kernel_still_fails(
    source: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_dense = program_compiler.pack_dense

    def damaged(module: IRModule, *arguments: Any) -> IRModule:
        return pack_dense(ForgetColumns()(module), *arguments)

    monkeypatch.setattr(program_compiler, "pack_dense", damaged)
    with pytest.raises(ParityError, match=r"changed graph.* itself is 1\d\.\d dB from the"):
        _compile(source, tmp_path / "bad.edgec")
