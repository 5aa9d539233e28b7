"""Loop nests that become vectors compute what vectors lack element by element."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto
from support.kernel_runs import compile_graph
from support.onnx_graphs import make_model, node, save

from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.parity.oracle import run_original

DTYPES = {
    TensorProto.FLOAT: np.float32,
    TensorProto.DOUBLE: np.float64,
    TensorProto.FLOAT16: np.float16,
    TensorProto.BFLOAT16: ml_dtypes.bfloat16,
}
# In the units of the last place of each dtype.
TOLERANCES = {np.float32: 1e-5, np.float64: 1e-5, np.float16: 2e-3, ml_dtypes.bfloat16: 1e-2}
FUNCTIONS = {
    "Sinh": np.sinh,
    "Cosh": np.cosh,
    "Asin": np.arcsin,
    "Acos": np.arccos,
    "Atan": np.arctan,
    "Asinh": np.arcsinh,
    "Acosh": np.arccosh,
    "Atanh": np.arctanh,
}


@pytest.mark.parametrize("dtype", DTYPES, ids=TensorProto.DataType.Name)
def test_functions_of_the_c_library(dtype: int, tmp_path: Path) -> None:
    """Extents that fill vectors: other extents are computed one by one."""
    kind = DTYPES[dtype]
    x = np.linspace(-0.95, 0.95, 64).reshape(2, 32).astype(kind)
    above = (x + 2).astype(kind)
    nodes = [node(name, ["above" if name == "Acosh" else "x"], [name]) for name in FUNCTIONS]
    model = make_model(
        nodes,
        {"x": [2, 32], "above": [2, 32]},
        list(FUNCTIONS),
        opset=22,
        dtypes=dict.fromkeys(["x", "above", *FUNCTIONS], dtype),
    )
    inputs = {"x": x, "above": above}
    options = CompileOptions(inputs=inputs)
    bundle = compile_model(save(model, tmp_path), options=options, output=tmp_path / "x.edgec")
    outputs = bundle.run(inputs)
    for name, function in FUNCTIONS.items():
        assert outputs[name].dtype == kind
        given = inputs["above" if name == "Acosh" else "x"].astype(np.float64)
        found, bound = outputs[name].astype(np.float64), TOLERANCES[kind]
        np.testing.assert_allclose(found, function(given), rtol=bound, atol=bound, err_msg=name)


def test_maxima_of_bfloat16_pass_nan(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((4, 32)).astype(ml_dtypes.bfloat16)
    z = x[::-1].copy()
    x[1, 3] = z[2, 5] = np.nan
    specs = {"Max": ["x", "z"], "Min": ["x", "z"], "ReduceMax": ["x"], "ReduceMin": ["z"]}
    nodes = [node(name, inputs, [name]) for name, inputs in specs.items()]
    dtypes = dict.fromkeys(["x", "z", *specs], TensorProto.BFLOAT16)
    shapes = {"x": [4, 32], "z": [4, 32]}
    model = make_model(nodes, shapes, list(specs), opset=18, dtypes=dtypes)
    bundle = compile_model(save(model, tmp_path), output=tmp_path / "x.edgec")
    outputs = bundle.run({"x": x, "z": z})
    wide, other = x.astype(np.float32), z.astype(np.float32)
    np.testing.assert_array_equal(outputs["Max"].astype(np.float32), np.maximum(wide, other))
    np.testing.assert_array_equal(outputs["Min"].astype(np.float32), np.minimum(wide, other))
    assert np.isnan(outputs["ReduceMax"].astype(np.float32)).all()
    assert np.isnan(outputs["ReduceMin"].astype(np.float32)).all()


def test_sums_are_tiles_of_vectors(tmp_path: Path) -> None:
    """Doubles, integers, weights that only a run knows; extents that fill tiles and do not."""
    generator = np.random.default_rng(0)
    doubles = {"a": generator.standard_normal((6, 5)), "b": generator.standard_normal((5, 32))}
    whole = {"c": generator.integers(-99, 99, (3, 7), "int32")}
    whole["d"] = generator.integers(-99, 99, (7, 24), "int32")
    images = {
        "x": generator.standard_normal((1, 3, 6, 16)).astype(np.float32),
        "w": generator.standard_normal((4, 3, 3, 3)).astype(np.float32),
    }
    inputs = {**doubles, **whole, **images}
    nodes = [
        node("MatMul", ["a", "b"], ["double"]),
        node("MatMul", ["c", "d"], ["whole"]),
        node("Conv", ["x", "w"], ["image"], pads=[1] * 4),
    ]
    dtypes = dict.fromkeys(["a", "b", "double"], TensorProto.DOUBLE)
    dtypes.update(dict.fromkeys(["c", "d", "whole"], TensorProto.INT32))
    shapes = {name: array.shape for name, array in inputs.items()}
    model = make_model(nodes, shapes, ["double", "whole", "image"], dtypes=dtypes)
    built = compile_graph(model, "native", tmp_path)
    session = built.open(threads=1)
    found = session.run(inputs)
    np.testing.assert_allclose(found["double"], inputs["a"] @ inputs["b"], rtol=1e-12)
    np.testing.assert_array_equal(found["whole"], inputs["c"] @ inputs["d"])
    expected = run_original(model, inputs)["image"]
    np.testing.assert_allclose(found["image"], expected, 1e-4, 1e-5)
    assert not np.allclose(found["image"], run_original(model, inputs)["image"] + 0.001, 1e-4, 1e-5)
    # Sums of a tile are variables of its own, not values of the result in memory.
    steps = [step for step in built.program.steps if "matmul" in step.label]
    functions = [str(built.program.functions[step.kernel]) for step in steps]
    assert functions
    assert all('scope="local"' in text for text in functions)


def test_a_chain_does_not_grow_with_the_power_of_its_length(tmp_path: Path) -> None:
    """Each step reads what the step before it computes three times."""
    steps, x = 8, np.arange(-16, 16).reshape(4, 8)
    weights = {"three": np.array(3), "two": np.array(2), "one": np.array(1)}
    nodes, value, expected = [], "x", x
    for step in range(steps):
        less, double, next_one = f"less {step}", f"double {step}", f"next {step}"
        nodes += [
            node("Less", [value, "three"], [less]),
            node("Mul", [value, "two"], [double]),
            node("Add", [value, "one"], [next_one]),
            node("Where", [less, double, next_one], [f"x{step}"]),
        ]
        value, expected = f"x{step}", np.where(expected < 3, expected * 2, expected + 1)
    dtypes = {"x": TensorProto.INT64, value: TensorProto.INT64}
    model = make_model(nodes, {"x": x.shape}, [value], weights, dtypes=dtypes)
    built = compile_graph(model, "native", tmp_path)
    np.testing.assert_array_equal(built.open(threads=1).run({"x": x})[value], expected)
    assert sum(len(str(function)) for function in built.program.functions.values()) < 100_000
