"""Describe what callers give as a model: a file, or a model in memory."""

import re
from pathlib import Path

import onnx

from edgec.compiler.errors import ModelFileError, UsageError

# Protobuf serializes no more; weights of larger models go beside the file.
_LARGEST_PROTO = (1 << 31) - 1
_NAME_CHARACTERS = 80


def as_path(model: object, caller: str) -> Path:
    """Return the path of a model's file.

    Raises:
        UsageError: it is neither text nor a path.
    """
    if isinstance(model, str | Path):
        return Path(model)
    raise UsageError(
        f"{caller} takes the path of an ONNX file or an onnx.ModelProto; "
        f"{type(model).__name__} was given"
    )


def write_model(model: onnx.ModelProto, folder: Path) -> Path:
    """Write a model to a file that is called as its graph is.

    Raises:
        ModelFileError: it cannot be serialized.
    """
    stem = re.sub(r"[^\w.-]+", "_", model.graph.name).strip("._")[:_NAME_CHARACTERS] or "model"
    path = folder / f"{stem}.onnx"
    try:
        if model.ByteSize() > _LARGEST_PROTO:
            copy = onnx.ModelProto()
            copy.CopyFrom(model)
            onnx.save(copy, path, save_as_external_data=True, location=f"{stem}.weights")
        else:
            path.write_bytes(model.SerializeToString(deterministic=True))
    except ValueError as error:
        raise ModelFileError(f"the model cannot be serialized: {error}") from None
    return path
