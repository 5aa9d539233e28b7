"""Read an ONNX file and make sure that it is one.

Everything that can be wrong with the file is found here, before any compiling, and said in
one line. What comes out has passed the ONNX checker and holds all its weights.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import load_external_data_for_model, uses_external_data

from edgec.compiler.errors import ModelFileError, UnsupportedModelError
from edgec.compiler.frontend.convert_opset import CONVERTED_OPSET, convert_opset

NEWEST_OPSET = int(onnx.defs.onnx_opset_version())


@dataclass(frozen=True)
class SourceModel:
    """An ONNX model as it was found.

    Attributes:
        path: the file.
        sha256: digest of the file, and of its external data behind it, in hexadecimal.
        proto: the model with external data loaded, of `CONVERTED_OPSET` if it was older; not to
            be changed.
        opset: version of the default operator set in the file.
    """

    path: Path
    sha256: str
    proto: onnx.ModelProto
    opset: int

    @property
    def name(self) -> str:
        """File name without its ending."""
        return self.path.stem

    @property
    def original(self) -> Path | onnx.ModelProto:
        """What says how the model computes: the file, unless it is too old to be run."""
        return self.path if self.opset >= CONVERTED_OPSET else self.proto


def read_model(path: Path) -> SourceModel:
    """Read and check one ONNX file.

    Raises:
        ModelFileError: missing, unreadable, not ONNX, cut short, external data missing, or
            refused by the ONNX checker.
        UnsupportedModelError: an operator set newer than edgec reads, or one so old that it must
            be converted and cannot.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ModelFileError(f"model file {path} does not exist") from None
    except OSError as error:
        raise ModelFileError(f"model file {path} cannot be read: {error.strerror}") from None
    model = _parse(path, data)
    digest = hashlib.sha256(data)
    for file in _external_files(path, model):
        digest.update(file.read_bytes())
    try:
        load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelFileError(f"{path}: external data cannot be read: {_line(error)}") from None
    opset = _default_opset(path, model)
    try:
        # The path form of the checker has no 2 GiB limit.
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise ModelFileError(f"{path}: the ONNX checker refuses it: {_line(error)}") from None
    if opset < CONVERTED_OPSET:
        try:
            model = convert_opset(model)
        except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
            raise UnsupportedModelError(
                f"{path} uses operator set {opset}, which must be converted to {CONVERTED_OPSET} "
                f"and cannot: {_line(error)}"
            ) from None
    return SourceModel(path, digest.hexdigest(), model, opset)


def _parse(path: Path, data: bytes) -> onnx.ModelProto:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise ModelFileError(
            f"{path} is no ONNX model, or is cut short: its {len(data)} bytes do not parse as one"
        ) from None
    if not model.ir_version or not model.opset_import or not model.graph.output:
        raise ModelFileError(
            f"{path} is no ONNX model: its {len(data)} bytes hold no graph with outputs"
        )
    return model


def _external_files(path: Path, model: onnx.ModelProto) -> list[Path]:
    """Files beside the model that hold its weights, sorted; all exist."""
    locations = {
        entry.value
        for tensor in model.graph.initializer
        if uses_external_data(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    files = [path.parent / location for location in sorted(locations)]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise ModelFileError(
            f"{path} keeps weights in {', '.join(missing)}, which does not exist; "
            "put the file beside the model"
        )
    return files


def _default_opset(path: Path, model: onnx.ModelProto) -> int:
    versions = [item.version for item in model.opset_import if item.domain in ("", "ai.onnx")]
    # A model of nothing but other domains states no default version.
    opset = int(versions[0] if versions else NEWEST_OPSET)
    if opset > NEWEST_OPSET:
        raise UnsupportedModelError(
            f"{path} uses operator set {opset}; edgec reads up to {NEWEST_OPSET} "
            "(onnx.version_converter can convert a model)"
        )
    return opset


def _line(error: Exception) -> str:
    """First lines of an error of the onnx package, joined into one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:400]
