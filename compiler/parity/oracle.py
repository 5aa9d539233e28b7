"""Describe what the model should give: ONNX Runtime on the original graph.

With its graph optimizations off, ONNX Runtime computes operator by operator what the file
says. Where it lacks an operator, the reference evaluator of the onnx package answers.
"""

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgec.compiler.errors import ModelFileError
from edgec.compiler.ir.signature import Tensors
from edgec.compiler.parity.state_rounding import state_rounding
from edgec.compiler.support.onnx_runtime import open_onnx_session, run_onnx_session


def run_original(model: Path | onnx.ModelProto, inputs: Tensors) -> dict[str, NDArray[Any]]:
    """Return outputs of an ONNX model by name.

    Args:
        model: file, or a model in memory.
        inputs: every input of the graph that has no initializer, by name.

    Raises:
        ModelFileError: neither runtime can run the model on these inputs.
    """
    try:
        # Inside: a model of more than 2 GiB does not serialize.
        exact = _without_rounding(model)
        folder = model.resolve().parent if isinstance(model, Path) else None
        if exact is not None:
            session = open_onnx_session(exact.SerializeToString(), weights=folder)
        elif isinstance(model, Path):
            session = open_onnx_session(str(model))
        else:
            session = open_onnx_session(model.SerializeToString())
        return run_onnx_session(session, inputs)
    except Exception as error:
        # ONNX Runtime's exceptions have no common base but this one.
        return _run_reference(model, inputs, str(error))


def run_rounded(model: Path | onnx.ModelProto, inputs: Tensors) -> dict[str, NDArray[Any]] | None:
    """Return the outputs with activations rounded where `accuracy_level` allows it.

    None if nothing allows it, or ONNX Runtime cannot run the model.
    """
    try:
        if _without_rounding(model) is None:
            return None
        copy = onnx.ModelProto()
        if isinstance(model, Path):
            copy = onnx.load(model, load_external_data=False)
        else:
            copy.CopyFrom(model)
        state_rounding(copy)
        folder = model.resolve().parent if isinstance(model, Path) else None
        session = open_onnx_session(copy.SerializeToString(), weights=folder)
        return run_onnx_session(session, inputs)
    except Exception:
        # ONNX Runtime's exceptions have no common base but this one.
        return None


def _without_rounding(model: Path | onnx.ModelProto) -> onnx.ModelProto | None:
    """Return the model with exact products of 4-bit weights; None if it has them.

    `accuracy_level` allows ONNX Runtime to round the activations of MatMulNBits to 8 bits. That is
    a permission, not a part of what the model computes: nobody is compared with it, but who takes
    it may be off as far as ONNX Runtime is, see `run_rounded`.
    """
    if isinstance(model, Path):
        with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data.find(b"accuracy_level") < 0:
                return None
        copy = onnx.load(model, load_external_data=False)
    elif _levels(model):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
    else:
        return None
    levels = _levels(copy)
    for attribute in levels:
        attribute.i = 1
    return copy if levels else None


def _levels(model: onnx.ModelProto) -> list[onnx.AttributeProto]:
    """Return attributes that allow activations to be rounded."""
    return [
        attribute
        for node in model.graph.node
        if node.op_type == "MatMulNBits"
        for attribute in node.attribute
        if attribute.name == "accuracy_level" and attribute.i > 1
    ]


def _run_reference(
    model: Path | onnx.ModelProto, inputs: Tensors, why: str
) -> dict[str, NDArray[Any]]:
    try:
        evaluator = onnx.reference.ReferenceEvaluator(
            str(model) if isinstance(model, Path) else model
        )
        with np.errstate(all="ignore"):
            results = evaluator.run(None, dict(inputs))
    except Exception as error:
        raise ModelFileError(
            "the original graph cannot be run on the test inputs: ONNX Runtime says "
            f"{_one_line(why)}; the reference evaluator says {_one_line(str(error))}"
        ) from error
    values = (np.asarray(value) for value in results)
    return dict(zip(evaluator.output_names, values, strict=True))


def _one_line(message: str) -> str:
    return " ".join(message.split())[:300]
