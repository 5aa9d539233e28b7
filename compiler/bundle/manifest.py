"""Provide the manifest: what a bundle says of itself, without what reads or writes it.

Needs no TVM.

It holds nothing that differs from run to run, so the same input gives the same bytes.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgec.compiler.calibration.ranges_file import ClientsRecord
from edgec.compiler.errors import BundleError, IntegrityError, UsageError
from edgec.compiler.exits.exits_record import ExitsRecord
from edgec.compiler.frontend.preprocessing import EmbeddedPreprocessing, Preprocess
from edgec.compiler.ir.signature import Signature, State, TensorSpec
from edgec.compiler.language.adapter_factors import AdapterRecord
from edgec.compiler.runtime.executor import Executor
from edgec.targets.target import Target

FORMAT: Literal[2] = 2

MANIFEST = "manifest.json"
LIBRARY = "model.so"
# In place of it in a bundle that is for some recipients only; see `edgec.compiler.trust.age`.
ENCRYPTED = "model.so.age"
RUNNER = "run"


class _Record(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_by_name=True, serialize_by_alias=True
    )


class FileRecord(_Record):
    """A file record describes size and digest of one file of the bundle."""

    size_bytes: int
    sha256: str


class TensorRecord(_Record):
    """A tensor record describes one input or output; `shape` has null where only a run can tell."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str

    def spec(self) -> TensorSpec:
        """Return the same without pydantic."""
        return TensorSpec(self.name, self.shape, self.dtype)


class ModelRecord(_Record):
    """A model record describes the ONNX file that the bundle was compiled from."""

    name: str
    sha256: str
    opset: int


class FrozenRecord(_Record):
    """A frozen record describes the value of an input that became a constant."""

    dtype: str
    values: Any


class PreprocessRecord(_Record):
    """A preprocess record describes what the model does with its images.

    See `EmbeddedPreprocessing`.
    """

    name: str
    preprocess: Preprocess
    shape: tuple[int, ...]
    dtype: str
    size: tuple[int, int]

    @property
    def embedded(self) -> EmbeddedPreprocessing:
        """Return the same, as the compiler has it."""
        return EmbeddedPreprocessing(
            **{name: getattr(self, name) for name in type(self).model_fields}
        )


class SettingsRecord(_Record):
    """A settings record describes every setting that shaped the result.

    Attributes:
        shapes: given shape by input name.
        frozen: value by name of each input that became a constant.
        seed: the seed of the generated test inputs.
        index_bounds: upper bound by name, for integer inputs that index tables, and for pixels.
        preprocess: what the model does with its images, if that was made a part of it.
        context: tokens that the cache of a language model holds; None for other models.
        weights: what its weights became when they were read; empty if they are the file's.
        cache: dtype that the cache is kept in.
        lora: adapters that were merged into its weights.
    """

    shapes: dict[str, tuple[int, ...]]
    frozen: dict[str, FrozenRecord]
    seed: int
    index_bounds: dict[str, int]
    preprocess: PreprocessRecord | None = None
    context: int | None = None
    weights: str = ""
    cache: Literal["float32", "float16"] = "float32"
    lora: tuple[AdapterRecord, ...] = ()

    @property
    def frozen_values(self) -> dict[str, NDArray[Any]]:
        """Return the value by name of each input that became a constant."""
        return {name: np.asarray(v.values, v.dtype) for name, v in self.frozen.items()}

    @property
    def embedded(self) -> EmbeddedPreprocessing | None:
        """Return what the model does with its images; None if nothing was made a part of it."""
        return None if self.preprocess is None else self.preprocess.embedded


class ToleranceRecord(_Record):
    """See `edgec.compiler.parity.compare.Tolerance`."""

    relative: float
    absolute: float
    sqnr_db: float | None = None


class ParityRecord(_Record):
    """A parity record describes errors reached at compile time.

    Attributes:
        checked_on: `target` if this very library ran; `host` if it cannot run here and the same
            pipeline compiled for the compiling machine ran; `nothing` if the check was off.
        max_error: largest absolute error by output.
        allowed_share: largest error by output as a share of the tolerance.
    """

    checked_on: Literal["target", "host", "nothing"]
    max_error: dict[str, float] = {}
    allowed_share: dict[str, float] = {}


class CompressionStepRecord(_Record):
    """A compression step record describes the model after one step.

    Attributes:
        kind: the kind of the step.
        macs: multiplications of one inference.
        weights: the weights of convolutions and matrix products.
        nonzeros: those of them that are not zero.
        score: mean of the metric against the original model; None without samples.
        samples_sqnr_db: by float output, against the original model [dB].
    """

    kind: str
    macs: int
    weights: int
    nonzeros: int
    score: float | None
    samples_sqnr_db: dict[str, float]


class CompressionRecord(_Record):
    """A compression record describes how the model was compressed.

    And what is left of the original.

    Attributes:
        recipe: every field of it.
        calibration: what the samples were called; empty without samples.
        macs_before: multiplications of one inference of the original.
        weights_before: its weights.
        sqnr_db: by float output, of the test vector against the original graph [dB].
        samples: batches that the steps were measured on.
        steps: in order.
        metric: the metric of the steps' scores, `module:function`; empty: the share of positions
            whose largest class agrees.
        positions: the positions that were compared by their largest class; 0 without classes.
    """

    recipe: dict[str, Any]
    calibration: str
    macs_before: int
    weights_before: int
    sqnr_db: dict[str, float]
    samples: int
    steps: tuple[CompressionStepRecord, ...]
    metric: str = ""
    positions: int = 0


class QuantizationRecord(_Record):
    """A quantization record describes how the model was quantized.

    And what is left of the float model.

    Attributes:
        recipe: every field of it.
        quantized_types: what activations and weights are on this target, in words; empty if nothing
            is quantized.
        calibration: what the samples were called; empty without samples.
        observer: the observer that found the ranges; empty where none were needed.
        repaired: whether rounding and biases were adapted.
        rounding: the rounding of the weights; `nearest` without repair.
        quantized: number of operators that compute on quantized values or packed weights.
        kept_float: names of operators that returned to float to reach a bar.
        float_fallbacks: why, by name of an operator that computes on floats.
        sqnr_db: by float output, of the test vector against the original graph [dB].
        samples: batches that the next two were measured on.
        samples_sqnr_db: by float output, against the model before quantization [dB].
        score: mean of the metric; None without samples.
        metric: `module:function`; empty: the share of positions whose largest class agrees.
        positions: the positions that were compared by their largest class; 0 without classes.
        clients: whose data ranges of private calibration are of, and ε; None otherwise.
    """

    recipe: dict[str, Any]
    quantized_types: str = Field(alias="codes")
    calibration: str
    observer: str
    repaired: bool
    rounding: str
    quantized: int
    kept_float: tuple[str, ...]
    float_fallbacks: dict[str, str] = Field(alias="islands")
    sqnr_db: dict[str, float]
    samples: int
    samples_sqnr_db: dict[str, float]
    score: float | None
    metric: str = ""
    positions: int = 0
    clients: ClientsRecord | None = None


class PredictionRecord(_Record):
    """A prediction record describes what the first program was predicted to cost, on one thread.

    Attributes:
        latency_ms: time of one inference.
        low_ms: lower end of its error bar.
        high_ms: upper end.
        energy_mj: energy of one inference, by a stated model.
        instructions: executed by one inference; 0: not known for this kind of processor.
    """

    latency_ms: float
    low_ms: float
    high_ms: float
    energy_mj: float
    instructions: float = 0.0


class ExecutionRecord(_Record):
    """An execution record describes how the model runs.

    Attributes:
        executor: `static`: the library needs nothing but the C library; `machine`: it needs
            TVM's runtime.
        arena_bytes: memory of a run beside weights, inputs and outputs; 0 for the virtual machine.
        c_name: the c name of the model in C: `edgec_model_NAME` is the library's function; empty
            for the machine.
        tuned_share: part of the estimated time in kernels whose decisions were tuned.
        predicted: what it was predicted to cost; None for the virtual machine.
    """

    executor: Executor
    arena_bytes: int
    c_name: str = ""
    tuned_share: float = 0.0
    predicted: PredictionRecord | None = None


class ProgramRecord(_Record):
    """A program record describes the model for one set of shapes.

    Attributes:
        name: what tells it from others; empty if it is the only one and has no name.
        shapes: given shape by input name, beyond those of the settings.
        inputs: what callers pass.
        outputs: what they get.
        state_parts: into how many parts the first dimension of all states is cut: the program runs
            on one of them, of which a caller says which.
    """

    name: str
    shapes: dict[str, tuple[int, ...]]
    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]
    state_parts: int = 1

    @property
    def signature(self) -> Signature:
        """Return inputs and outputs."""
        return Signature(
            tuple(record.spec() for record in self.inputs),
            tuple(record.spec() for record in self.outputs),
        )


class VariantRecord(_Record):
    """A variant record describes one of the models that a governor chooses among.

    Attributes:
        program: the name of its program.
        accuracy: 0 to 1.
        accuracy_of: `calibration`: agreement with the original model, or the metric, on the
            samples; `unchanged`: it computes what the original does; `given`: the user measured it.
        estimated_ms: latency on one core by the cost model, to compare variants by; what this
            machine needs is measured where it runs.
        tolerance: of its test vectors.
        compression: what was done and what it cost.
        quantization: likewise.
    """

    program: str
    accuracy: float
    accuracy_of: Literal["calibration", "unchanged", "given"]
    estimated_ms: float
    tolerance: ToleranceRecord
    compression: CompressionRecord | None = None
    quantization: QuantizationRecord | None = None

    @property
    def reached_db(self) -> dict[str, float]:
        """Return the signal-to-noise ratio by output against the original; empty if unchanged."""
        changed = self.quantization or self.compression
        return {} if changed is None else changed.sqnr_db


class StateRecord(_Record):
    """A state record describes what a session keeps from run to run.

    Attributes:
        input: the name of the input that it was in the ONNX file, and is called by.
        output: the name of the output that its next value was.
        shape: extents.
        dtype: as for inputs.
        size_bytes: the size of its values.
    """

    input: str
    output: str
    shape: tuple[int, ...]
    dtype: str
    size_bytes: int

    @property
    def state(self) -> State:
        """Return the same without what is known of its tensor."""
        return State(self.input, self.output)

    @property
    def spec(self) -> TensorSpec:
        """Return the input that it was of the program that keeps the most."""
        return TensorSpec(self.input, self.shape, self.dtype)

    def spec_of(self, program: ProgramRecord) -> TensorSpec:
        """Return the input that it was of a program."""
        if program.state_parts == 1:
            return self.spec
        first, *rest = self.shape
        return TensorSpec(self.input, (first // program.state_parts, *rest), self.dtype)


class VectorRecord(_Record):
    """A vector record describes files of one test vector, in the order of inputs and outputs.

    Attributes:
        program: whose.
        goes_on: whether its state is what the vector before left; else it is zeros.
        inputs: files.
        outputs: files.
    """

    program: str = ""
    goes_on: bool = False
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Manifest(_Record):
    """A manifest describes what a bundle says of itself; `manifest.json`."""

    format: Literal[2] = FORMAT
    model: ModelRecord
    target: Target
    programs: tuple[ProgramRecord, ...]
    variants: tuple[VariantRecord, ...] = ()
    states: tuple[StateRecord, ...] = ()
    settings: SettingsRecord
    execution: ExecutionRecord
    tolerance: ToleranceRecord
    parity: ParityRecord
    compression: CompressionRecord | None = None
    quantization: QuantizationRecord | None = None
    exits: ExitsRecord | None = None
    vectors: tuple[VectorRecord, ...]
    tools: dict[str, str]
    files: dict[str, FileRecord]

    @property
    def digest(self) -> str:
        """Return the digest that the file ends with: what tells this bundle from others."""
        return hashlib.sha256(_canonical(self.model_dump(mode="json"))).hexdigest()

    def variant(self, program: str) -> VariantRecord | None:
        """Return what is said of a program alone; None if the bundle has no variants."""
        return next((v for v in self.variants if v.program == program), None)

    @property
    def inputs(self) -> tuple[TensorRecord, ...]:
        """Return the inputs of the first program."""
        return self.programs[0].inputs

    @property
    def outputs(self) -> tuple[TensorRecord, ...]:
        """Return the outputs of the first program."""
        return self.programs[0].outputs

    @property
    def signature(self) -> Signature:
        """Return inputs and outputs of the first program."""
        return self.programs[0].signature

    @property
    def signatures(self) -> dict[str, Signature]:
        """Return inputs and outputs of each program by its name."""
        return {program.name: program.signature for program in self.programs}

    def signature_of(self, program: str | None) -> Signature:
        """Return inputs and outputs of the program of this name; None is the first.

        Raises:
            UsageError: there is none.
        """
        if program is None:
            return self.signature
        if program not in self.signatures:
            names = ", ".join(self.signatures) if len(self.programs) > 1 else "one, without a name"
            raise UsageError(f"no program is named {program!r}; the bundle's are: {names}")
        return self.signatures[program]

    def to_bytes(self) -> bytes:
        """Return the file's bytes; its last key is the digest of everything else."""
        return _canonical({**self.model_dump(mode="json"), "digest": self.digest})

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read a manifest and check its digest.

        Raises:
            IntegrityError: a byte was changed.
            BundleError: a format that this edgec does not know.
        """
        damaged = IntegrityError(f"{MANIFEST} is damaged; compile the bundle again")
        try:
            fields = json.loads(data)
            digest = fields.pop("digest")
        except (ValueError, KeyError, AttributeError, TypeError):
            raise damaged from None
        found = fields.get("format")
        if found != FORMAT:
            newer = isinstance(found, int) and found > FORMAT
            advice = "read it with a newer edgec" if newer else "compile the model again"
            raise BundleError(
                f"bundle format {found!r}; this edgec reads format {FORMAT}: {advice}"
            )
        body = _canonical(fields)
        if digest != hashlib.sha256(body).hexdigest():
            raise damaged
        if data != _canonical({**fields, "digest": digest}):
            raise damaged
        try:
            return cls.model_validate(fields)
        except ValidationError:
            raise damaged from None


def _canonical(fields: Mapping[str, Any]) -> bytes:
    return (json.dumps(fields, indent=1, ensure_ascii=True) + "\n").encode()
