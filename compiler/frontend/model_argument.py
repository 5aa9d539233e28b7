"""Describe what callers give as a model: a file, or a model in memory."""

import re
from pathlib import Path

import onnx

from edgec.compiler.errors import ModelFileError, UsageError
from edgec.compiler.support.onnx_proto import save_proto

_NAME_CHARACTERS = 80


def as_path(
    model: object, caller: str, wanted: str = "the path of an ONNX file or an onnx.ModelProto"
) -> Path:
    """Return the path of a model's file.

    Args:
        model: what the caller was given.
        caller: the function.
        wanted: what it takes.

    Raises:
        UsageError: it is neither text nor a path.
    """
    if isinstance(model, str | Path):
        return Path(model)
    raise UsageError(f"{caller} takes {wanted}; {type(model).__name__} was given")


def write_model(model: onnx.ModelProto, folder: Path) -> Path:
    """Write a model to a file that is called as its graph is.

    Raises:
        ModelFileError: it cannot be serialized.
    """
    stem = re.sub(r"[^\w.-]+", "_", model.graph.name).strip("._")[:_NAME_CHARACTERS] or "model"
    path = folder / f"{stem}.onnx"
    try:
        save_proto(model, path)
    except ValueError as error:
        raise ModelFileError(f"the model cannot be serialized: {error}") from None
    return path
