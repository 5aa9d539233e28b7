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


class OriginalModel:
    """An original model is opened when it is first run, and then stays open: a stream is many runs.

    Args:
        model: file, or a model in memory.
    """

    def __init__(self, model: Path | onnx.ModelProto) -> None:
        self._model = model
        self._session: Any = None

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """Return outputs by name; see `run_original`."""
        try:
            if self._session is None:
                self._session = self._opened()
            return run_onnx_session(self._session, inputs)
        except Exception as error:
            # ONNX Runtime's exceptions have no common base but this one.
            return _run_reference(self._model, inputs, str(error))

    def close(self) -> None:
        """Give the memory of weights back; another run opens it again."""
        self._session = None

    def _opened(self) -> Any:
        model = self._model
        # Only here: a model of more than 2 GiB does not serialize.
        exact = _without_rounding(model)
        if exact is not None:
            return open_onnx_session(exact.SerializeToString(), weights=_folder(model))
        if isinstance(model, Path):
            return open_onnx_session(str(model))
        return open_onnx_session(model.SerializeToString())


class RoundedModel:
    """A rounded model rounds activations where `accuracy_level` allows it; see `OriginalModel`."""

    def __init__(self, model: Path | onnx.ModelProto) -> None:
        self._model = model
        self._session: Any = None

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]] | None:
        """Return outputs by name.

        None if nothing allows it, or ONNX Runtime cannot run the model.
        """
        try:
            if self._session is None:
                self._session = self._opened()
            return None if self._session is None else run_onnx_session(self._session, inputs)
        except Exception:
            # ONNX Runtime's exceptions have no common base but this one.
            return None

    def _opened(self) -> Any:
        model = self._model
        if _without_rounding(model) is None:
            return None
        copy = onnx.ModelProto()
        if isinstance(model, Path):
            copy = onnx.load(model, load_external_data=False)
        else:
            copy.CopyFrom(model)
        state_rounding(copy)
        return open_onnx_session(copy.SerializeToString(), weights=_folder(model))


def run_original(model: Path | onnx.ModelProto, inputs: Tensors) -> dict[str, NDArray[Any]]:
    """Return outputs of an ONNX model by name.

    Args:
        model: file, or a model in memory.
        inputs: every input of the graph that has no initializer, by name.

    Raises:
        ModelFileError: neither runtime can run the model on these inputs.
    """
    return OriginalModel(model).run(inputs)


def _folder(model: Path | onnx.ModelProto) -> Path | None:
    return model.resolve().parent if isinstance(model, Path) else None


def _without_rounding(model: Path | onnx.ModelProto) -> onnx.ModelProto | None:
    """Return the model with exact products of 4-bit weights; None if it has them.

    `accuracy_level` allows ONNX Runtime to round the activations of MatMulNBits to 8 bits. That is
    a permission, not a part of what the model computes: nobody is compared with it, but who takes
    it may be off as far as ONNX Runtime is, see `RoundedModel`.
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
