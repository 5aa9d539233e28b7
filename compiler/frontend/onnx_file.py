"""Read an ONNX file and make sure that it is one.

Everything that can be wrong with the file is found here, before any compiling, and said in
one line. What comes out has passed the ONNX checker and holds all its weights.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import load_external_data_for_model, uses_external_data

from edgec.compiler.errors import LimitError, ModelFileError, UnsupportedModelError
from edgec.compiler.frontend.check_file import all_tensors, check_file, regular_file_size
from edgec.compiler.frontend.convert_opset import CONVERTED_OPSET, convert_opset
from edgec.compiler.frontend.limits import DEFAULT_LIMITS, Limits, in_mb
from edgec.compiler.language.language_model import LanguageModel
from edgec.compiler.support.onnx_proto import point_to_files
from edgec.compiler.support.rehearsal import rehearse

# Converting copies the model a few times.
CONVERSION_SECONDS = 8
CONVERSION_MEGABYTES = 4096

NEWEST_OPSET = int(onnx.defs.onnx_opset_version())


@dataclass(frozen=True)
class SourceModel:
    """A source model describes a model as it was found.

    Attributes:
        path: the file, or the folder of a language model.
        sha256: digest of the file, and of its external data behind it, in hexadecimal.
        proto: the model, of `CONVERTED_OPSET` if it was older; not to be changed. External data is
            loaded, unless it was to stay where it is.
        opset: version of the default operator set in the file.
        language: what is known of a language model beside its graph; None for other models.
        tokenizer: the content of its `tokenizer.json`.
        decoder: its graph as a file, with weights beside it, if that was kept.
    """

    path: Path
    sha256: str
    proto: onnx.ModelProto
    opset: int
    language: LanguageModel | None = None
    tokenizer: str = ""
    decoder: Path | None = None

    @property
    def name(self) -> str:
        """Return file name without its ending."""
        return self.path.stem

    @property
    def original(self) -> Path | onnx.ModelProto:
        """Return what says how the model computes: the file, if ONNX Runtime runs it as it is.

        Of a file, weights are mapped.
        """
        if self.decoder is not None:
            return self.decoder
        is_file = self.language is None and self.opset >= CONVERTED_OPSET
        return self.path if is_file else self.proto


def read_onnx(
    path: Path, limits: Limits = DEFAULT_LIMITS, *, leave_weights: bool = False
) -> SourceModel:
    """Read and check one ONNX file.

    Args:
        path: the path of the file.
        limits: the limits of what it may ask for.
        leave_weights: whether weights in other files stay there, which then do not change; see
            `point_to_files`.

    Raises:
        ModelFileError: missing, unreadable, not ONNX, cut short, contradicting itself, external
            data missing, or refused by the ONNX checker.
        LimitError: larger than allowed.
        UnsupportedModelError: complex numbers, an operator set newer than edgec reads, or one so
            old that it must be converted and cannot.
    """
    data = _read(path, limits)
    model = _parse(path, data)
    check_file(path, model, limits)
    digest = hashlib.sha256(data)
    try:
        for file in external_files(path, model):
            _add_file(digest, file)
        if leave_weights:
            point_to_files(model, path.parent)
        else:
            load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelFileError(f"{path}: external data cannot be read: {_line(error)}") from None
    opset = _default_opset(path, model)
    _know_simplified_layer_normalization()
    try:
        # The path form of the checker has no 2 GiB limit.
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        raise ModelFileError(f"{path}: the ONNX checker refuses it: {_line(error)}") from None
    if opset < CONVERTED_OPSET:
        try:
            problem = rehearse(
                lambda: convert_opset(model), CONVERSION_SECONDS, CONVERSION_MEGABYTES
            )
            if problem:
                raise RuntimeError(f"ONNX's converter fails, {problem}")
            model = convert_opset(model)
        except Exception as error:
            # It trusts that attributes and operands are there, and fails in many ways.
            raise UnsupportedModelError(
                f"{path} uses operator set {opset}, which must be converted to {CONVERTED_OPSET} "
                f"and cannot: {_line(error)}"
            ) from None
    return SourceModel(path, digest.hexdigest(), model, opset)


@cache
def _know_simplified_layer_normalization() -> None:
    """Tell the ONNX checker of the one operator that ONNX Runtime adds to ONNX's own domain.

    Every decoder for ONNX Runtime GenAI has it.
    """
    parameter, schema = onnx.defs.OpSchema.FormalParameter, onnx.defs.OpSchema
    kinds = [f"tensor({name})" for name in ("float16", "bfloat16", "float", "double")]
    optional = parameter("inv_std_var", "U", param_option=schema.FormalParameterOption.Optional)
    attributes = {
        "axis": onnx.helper.make_attribute("axis", -1),
        "epsilon": onnx.helper.make_attribute("epsilon", 1e-5),
        "stash_type": onnx.helper.make_attribute("stash_type", 1),
    }
    onnx.defs.register_schema(
        schema(
            "SimplifiedLayerNormalization",
            "",
            1,
            inputs=[parameter("X", "T"), parameter("scale", "V")],
            outputs=[parameter("Y", "V"), optional],
            type_constraints=[(letter, kinds, "") for letter in "TUV"],
            attributes=[schema.Attribute(name, value, "") for name, value in attributes.items()],
        )
    )


def _read(path: Path, limits: Limits) -> bytes:
    size = regular_file_size(path)
    if size is None and path.exists():
        what = "a folder" if path.is_dir() else "no regular file"
        raise ModelFileError(f"model file {path} is {what}")
    if size is not None and size > limits.file_bytes:
        raise LimitError(
            f"model file {path} has {in_mb(size)}; at most {in_mb(limits.file_bytes)} are allowed "
            "(--limit file=SIZE)"
        )
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ModelFileError(f"model file {path} does not exist") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelFileError(f"model file {path} cannot be read: {reason}") from None


def _add_file(digest: "hashlib._Hash", file: Path) -> None:
    with file.open("rb") as stream:
        while chunk := stream.read(2**20):
            digest.update(chunk)


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


def external_files(path: Path, model: onnx.ModelProto | None = None) -> list[Path]:
    """Return files beside a model that hold its weights, sorted; None reads the model's file."""
    model = onnx.load(path, load_external_data=False) if model is None else model
    locations = {
        entry.value
        for tensor in all_tensors(model)
        if uses_external_data(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return [path.parent / location for location in sorted(locations)]


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
    """Return first lines of an error of the onnx package, joined into one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:400]
