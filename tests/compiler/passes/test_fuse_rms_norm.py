"""Normalization by the root mean square, however it is spelled."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.integer_graphs import open_module
from support.onnx_graphs import random
from tvm import IRModule, relax

from edgec.compiler.ir.relax_helpers import constant, op_name
from edgec.compiler.passes.fuse_rms_norm import FuseRmsNorm
from edgec.targets import load_target

op = relax.op
GAMMA = random(24, seed=3)


def scalar(value: float) -> Any:
    return constant(np.array(value, np.float32))


def module(spelling: str, axis: int = -1) -> IRModule:
    x = relax.Var("x", relax.TensorType([5, 24], "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            emit = builder.emit
            square = op.power(x, scalar(2)) if spelling == "power" else op.multiply(x, x)
            mean = emit(op.mean(emit(square), [axis], keepdims=True))
            added = emit(op.add(mean, scalar(1e-5)))
            if spelling == "reciprocal":
                root = emit(op.divide(scalar(1), emit(op.sqrt(added))))
                normal = emit(op.multiply(x, root))
            elif spelling == "rsqrt":
                normal = emit(op.multiply(emit(op.rsqrt(added)), x))
            else:
                normal = emit(op.divide(x, emit(op.sqrt(added))))
            result = builder.emit_output(op.multiply(constant(GAMMA), normal))
        builder.emit_func_output(result)
    return builder.get()


def operators(of: IRModule) -> list[str]:
    return [op_name(b.value) for b in of["main"].body.blocks[0].bindings if op_name(b.value)]


@pytest.mark.parametrize("spelling", ["divide", "power", "reciprocal", "rsqrt"])
def test_every_spelling_is_one_operator(spelling: str) -> None:
    assert operators(FuseRmsNorm()(module(spelling))) == ["relax.nn.rms_norm"]


def test_other_axes_stay() -> None:
    before = module("divide", axis=0)
    assert operators(FuseRmsNorm()(before)) == operators(before)


def test_equals_numpy(tmp_path: Path) -> None:
    built = open_module(module("divide"), load_target("native"), tmp_path)
    assert built.templates == ["rows"]
    x = random(5, 24)
    mean = np.square(x.astype(np.float64)).mean(axis=1, keepdims=True)
    expected = x / np.sqrt(mean + 1e-5) * GAMMA
    found = built.run({"x": x})["y"]
    np.testing.assert_allclose(found, expected, rtol=2e-6)
    assert np.abs(found - x / np.sqrt(mean + 1e-2) * GAMMA).max() > 1e-4
