"""Provide the settings of a compile, checked before anything runs."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.calibration.samples import SampleOptions
from edgec.compiler.errors import TensorInputError, UsageError
from edgec.compiler.exits.options import ExitOptions
from edgec.compiler.frontend.limits import DEFAULT_LIMITS, Limits
from edgec.compiler.frontend.preprocessing import ImageInput
from edgec.compiler.governor.variants import Variant
from edgec.compiler.ir.signature import State
from edgec.compiler.language.language_model import DEFAULT_VERIFIED, MOST_VERIFIED, CacheDtype
from edgec.compiler.language.lora import Adapter, parse_adapter
from edgec.compiler.quantize.options import QuantizeOptions
from edgec.compiler.quantize.quantization_recipe import RECIPES, QuantizationRecipe, load_recipe
from edgec.compiler.support.limits import MAX_THREADS, check_count, check_seed
from edgec.compiler.support.npy_files import NpyError, read_arrays
from edgec.compiler.trust.age import MAX_RECIPIENTS

# What tells extents of several programs, and how a program may be called.
_BRACES = re.compile(r"\{([^{}]*)\}")
_PROGRAM_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")

if TYPE_CHECKING:
    # Its steps load TVM.
    from edgec.compiler.compress.compression_recipe import CompressionRecipe
    from edgec.compiler.compress.options import CompressOptions

_MAX_CONTEXT = 2**31 - 1
_MOST_STREAMS = 64


@dataclass(frozen=True, kw_only=True)
class CompileOptions:
    """Compile options describe what shapes the result of a compile.

    And what is checked and shown on the way.

    Where the meaning is clear, plainer values are taken and converted: the name or the file of a
    recipe for `quantize` and `compress`, lists for shapes, numbers for frozen values, text for
    paths.

    Attributes:
        shapes: full shape by input name, for inputs that the model leaves open.
        programs: shapes by the name of a program, each taken with those of `shapes`: the bundle
            holds the model for each of them, the weights once. None makes one program.
        variants: models of the bundle that a governor chooses among, by name: each compiled with
            its own quantization and compression, equal constants kept once. Takes the place of
            `quantize`, `compress` and `programs`; samples measure the accuracy of each.
        states: inputs whose next values are outputs, as `State` or as text "INPUT=OUTPUT": a
            session keeps them, and callers neither pass nor get them. None takes those of names
            that exporters give them, see `frontend/states.py`; an empty tuple takes none.
        limits: the limits of what the model file may ask for.
        freeze: value by input name; the input becomes a constant and leaves the interface.
        context: tokens that the cache of a language model holds; None takes those that it was made
            for, at most 4,096.
        cache: dtype that a language model's cache is kept in.
        lora: adapters merged into a language model, "ADAPTER" or "ADAPTER:SCALE": PEFT's folders
            for a Hugging Face folder, GGUF files for a GGUF file.
        prefill_chunk: tokens that a language model's program `prefill` takes at once; its other
            program, `decode`, takes one.
        verify_chunk: tokens of a language model's program that checks guesses of what follows, and
            gives logits of each; 0 makes none.
        streams: texts that a language model goes on with at once, at most; each has a cache.
        inputs: test inputs by name, instead of generated ones.
        seed: the seed of the generated test inputs.
        images: makes the preparation of images a part of the model; None leaves it outside.
        samples: what compression and quantization look at.
        compress: what is pruned or factorized; None compiles all weights.
        quantize: what becomes an integer; None compiles the floats as they are.
        exits: where a classifier may end early; None computes all of it for every input.
        parity: compare with the original graph; switching it off marks the bundle.
        runner: put a program that runs the model without Python into the bundle.
        sign: the keys that sign the bundle, by name or file.
        encrypt_for: the recipients who can run it, by text, name or file; nobody else then.
        name: the name of the model in C programs, by default that of its file; programs that link
            several bundles tell them apart by it.
        records: database of tuning records whose decisions are used.
        ready_records: use the records that come with edgec where the database has none.
        records_threads: only those tuned for so many threads; by default for the most there are.
        check_stages: compare after every stage that gives a model, not only at the end.
        dump: folder for the IR after each phase, ONNX files and text; written even if a later phase
            fails.
        dump_weights: with the values of weights.
    """

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    programs: Mapping[str, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)
    variants: Mapping[str, Variant] = field(default_factory=dict)
    states: Sequence[State | str] | None = None
    freeze: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    limits: Limits = DEFAULT_LIMITS
    context: int | None = None
    cache: CacheDtype = "float32"
    lora: Sequence[Adapter | str | Path] = ()
    prefill_chunk: int | None = None
    verify_chunk: int = DEFAULT_VERIFIED
    streams: int = 1
    inputs: Mapping[str, NDArray[Any]] | None = None
    seed: int = 0
    images: ImageInput | None = None
    samples: SampleOptions = field(default_factory=SampleOptions)
    compress: "CompressOptions | CompressionRecipe | str | Path | None" = None
    quantize: QuantizeOptions | QuantizationRecipe | str | Path | None = None
    exits: ExitOptions | None = None
    parity: bool = True
    runner: bool = False
    sign: Sequence[str | Path] = ()
    encrypt_for: Sequence[str] = ()
    name: str = ""
    records: Path | None = None
    ready_records: bool = True
    records_threads: int | None = None
    check_stages: bool = False
    dump: Path | None = None
    dump_weights: bool = False

    def __post_init__(self) -> None:
        """Take what is meant where it is clear: names of recipes, plain values, names of files.

        Raises:
            UsageError: a setting cannot be.
            RecipeError: an unknown recipe.
        """
        check_seed(self.seed)
        check_count("--context", self.context, 2, _MAX_CONTEXT)
        check_count("--prefill-chunk", self.prefill_chunk, 2, _MAX_CONTEXT)
        check_count("--verify-chunk", self.verify_chunk or None, 2, MOST_VERIFIED)
        check_count("--streams", self.streams, 1, _MOST_STREAMS)
        if self.streams & (self.streams - 1):
            raise UsageError(f"--streams {self.streams}: a power of two is expected, as 2 or 4")
        check_count("--records-threads", self.records_threads, 1, MAX_THREADS)
        if self.cache not in get_args(CacheDtype):
            raise UsageError(
                f"--cache {self.cache}: {' or '.join(get_args(CacheDtype))} is expected"
            )
        if self.check_stages and not self.parity:
            raise UsageError("--check-stages and --no-parity contradict each other")
        if len(self.encrypt_for) > MAX_RECIPIENTS:
            raise UsageError(f"--encrypt-for takes {MAX_RECIPIENTS} recipients at most")
        if self.dump_weights and self.dump is None:
            raise UsageError("--dump-weights needs --dump DIR")
        for name in ("records", "dump"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else Path(value))
        shapes = {name: _extents(name, shape) for name, shape in self.shapes.items()}
        freeze = {name: np.asarray(value) for name, value in self.freeze.items()}
        object.__setattr__(self, "shapes", shapes)
        object.__setattr__(self, "programs", _programs(self.programs))
        if self.states is not None:
            object.__setattr__(self, "states", _states(self.states))
        object.__setattr__(self, "freeze", freeze)
        lora = [self.lora] if isinstance(self.lora, Adapter | str | Path) else self.lora
        object.__setattr__(self, "lora", tuple(parse_adapter(given) for given in lora))
        for name, array in freeze.items():
            if array.dtype.kind not in "biufcV":
                raise UsageError(f"--freeze {name}: numbers are expected, {array.dtype} was given")
        object.__setattr__(self, "quantize", _quantize_options(self.quantize))
        object.__setattr__(self, "compress", _compress_options(self.compress))
        self._check_variants()

    @property
    def compression(self) -> "CompressOptions | None":
        """Return what `compress` means, whatever form it was given in."""
        return cast("CompressOptions | None", self.compress)

    @property
    def quantization(self) -> QuantizeOptions | None:
        """Return what `quantize` means, whatever form it was given in."""
        return cast("QuantizeOptions | None", self.quantize)

    @property
    def kept_states(self) -> tuple[State, ...] | None:
        """Return `states`, whatever form they were given in."""
        return cast("tuple[State, ...] | None", self.states)

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """Return `lora`, whatever form it was given in."""
        return cast("tuple[Adapter, ...]", self.lora)

    def _check_variants(self) -> None:
        if not self.variants:
            return
        if self.programs or self.changes_numbers:
            raise UsageError(
                "--variant takes the place of --quantize, --compress and several --shape, and has "
                "no --exits: say recipes for each variant, as --variant fast=int8,channels-50"
            )
        if len(self.variants) < 2:
            raise UsageError("--variant is given once; a choice needs two")
        _check_names(self.variants)
        seen: dict[str, str] = {}
        for name, variant in self.variants.items():
            other = seen.setdefault(repr(replace(variant, accuracy=None)), name)
            if other != name:
                raise UsageError(f"variants {other} and {name} are the same")
            # Refuses what is no recipe.
            self.of_variant(name)
        unmeasured = [
            name
            for name, variant in self.variants.items()
            if variant.accuracy is None
            and (variant.shapes or (variant.changes_numbers and self.samples.source is None))
        ]
        if unmeasured:
            raise UsageError(
                f"nothing measures the accuracy of variant {unmeasured[0]}: give --calibration "
                "DATA (for variants of the same shapes), or the accuracy that you measured, as "
                f"--variant {unmeasured[0]}=…,accuracy=0.71"
            )

    def of_variant(self, name: str) -> "CompileOptions":
        """Return the settings of the compile that makes one variant, but for its shapes."""
        if name not in self.variants:
            return self
        variant = self.variants[name]
        return replace(
            self,
            variants={},
            quantize=variant.quantize or None,
            compress=variant.compress or None,
        )

    @property
    def program_shapes(self) -> tuple["ProgramShapes", ...]:
        """Return the name and all given shapes of each program."""
        shapes = {name: v.shapes for name, v in self.variants.items()} or self.programs
        if not shapes:
            return (ProgramShapes("", self.shapes),)
        return tuple(
            ProgramShapes(name, {**self.shapes, **given}) for name, given in shapes.items()
        )

    def one_program(self, verb: str) -> "ProgramShapes":
        """Return the only program, for a verb that looks at one.

        Raises:
            UsageError: there are several.
        """
        programs = self.program_shapes
        if len(programs) > 1:
            raise UsageError(
                f"{verb} takes one set of shapes at a time, {len(programs)} were given: "
                f"{', '.join(p.name for p in programs)}"
            )
        return programs[0]

    @property
    def changes_numbers(self) -> bool:
        """Return whether the library computes other numbers than the original model."""
        return any(o is not None for o in (self.compression, self.quantization, self.exits))


@dataclass(frozen=True)
class ProgramShapes:
    """Program shapes make the model to one of the programs of a bundle.

    Attributes:
        name: the program; empty if it is the only one and has no name.
        shapes: full shape by input name.
    """

    name: str
    shapes: Mapping[str, tuple[int, ...]]


def _programs(
    programs: Mapping[str, Mapping[str, object]],
) -> dict[str, dict[str, tuple[int, ...]]]:
    _check_names(programs)
    made = {
        name: {key: _extents(key, shape) for key, shape in shapes.items()}
        for name, shapes in programs.items()
    }
    for name, shapes in made.items():
        same = [other for other in made if made[other] == shapes and other != name]
        if same:
            raise UsageError(f"programs {name} and {same[0]} have the same shapes")
    return made


def _check_names(names: Iterable[object]) -> None:
    for name in names:
        if not _PROGRAM_NAME.fullmatch(str(name)):
            raise UsageError(
                f"a program is named {name!r}; letters, digits, '.', '_' and '-' are expected"
            )


def _states(states: object) -> tuple[State, ...]:
    if isinstance(states, str) or not isinstance(states, Iterable):
        raise UsageError(f"states are a list of INPUT=OUTPUT; {states!r} was given")
    made = tuple(s if isinstance(s, State) else parse_state(s) for s in states)
    for names in ([s.input for s in made], [s.output for s in made]):
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise UsageError(f"--state names {twice[0]} twice")
    return made


def _extents(name: str, shape: object) -> tuple[int, ...]:
    """Return a shape, of a list as well; every extent fits the 64 bits of ONNX."""
    try:
        extents = tuple(int(extent) for extent in shape)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        extents = None
    if extents is None or isinstance(shape, str):
        raise UsageError(f"--shape {name}: whole numbers are expected, {shape!r} was given")
    if any(abs(extent) >= 1 << 63 for extent in extents):
        raise UsageError(f"--shape {name}: {max(extents, key=abs)} is no extent of a tensor")
    return extents


def _quantize_options(value: object) -> QuantizeOptions | None:
    if value is None or isinstance(value, QuantizeOptions):
        return value
    if isinstance(value, QuantizationRecipe):
        return QuantizeOptions(recipe=value)
    if isinstance(value, str | Path):
        return QuantizeOptions(recipe=load_recipe(value))
    raise UsageError(
        "quantize is QuantizeOptions(recipe=load_recipe(…)), or the name of a recipe: "
        f"{', '.join(RECIPES)}; {type(value).__name__} was given"
    )


def _compress_options(value: object) -> "CompressOptions | None":
    if value is None:
        return None
    # Imported here: the steps load TVM.
    from edgec.compiler.compress.compression_recipe import CompressionRecipe, load_compression
    from edgec.compiler.compress.options import CompressOptions

    if isinstance(value, CompressOptions):
        return value
    if isinstance(value, CompressionRecipe):
        return CompressOptions(recipe=value)
    if isinstance(value, str | Path):
        return CompressOptions(recipe=load_compression(str(value)))
    raise UsageError(
        "compress is CompressOptions(recipe=load_compression(…)), or the name of a recipe, as "
        f"'channels-50'; {type(value).__name__} was given"
    )


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Read `name=1,3,224,224`; `name=` is a scalar.

    Raises:
        UsageError: it is not of that form.

    >>> parse_shape("x=1,3,48,192")
    ('x', (1, 3, 48, 192))
    """
    name, equals, extents = text.rpartition("=")
    try:
        shape = tuple(int(part) for part in extents.split(",")) if extents else ()
    except ValueError:
        shape, equals = (), ""
    if not name or not equals:
        raise UsageError(f"{text!r} is no shape; write NAME=1,3,224,224")
    return name, shape


def parse_shapes(
    texts: Sequence[str],
) -> tuple[dict[str, tuple[int, ...]], dict[str, dict[str, tuple[int, ...]]]]:
    """Read the shapes of one program, or those of several from `name=1,3,48,{160,320}`.

    What stands in braces is one extent for each program; braces of several extents or inputs go
    together. A program is named by its extents, or by what stands before them.

    Returns:
        Shapes that all programs have, and by program those that differ.

    Raises:
        UsageError: a text is not of that form, names an input twice, or braces of different
            lengths are to go together.

    >>> parse_shapes(["x=1,3,48,{160,320}", "y=1,8"])
    ({'y': (1, 8)}, {'160': {'x': (1, 3, 48, 160)}, '320': {'x': (1, 3, 48, 320)}})
    >>> parse_shapes(["ids=1,{prefill:64,decode:1}"])[1]
    {'prefill': {'ids': (1, 64)}, 'decode': {'ids': (1, 1)}}
    """
    inputs = [text.rpartition("=")[0] for text in texts]
    if len(set(inputs)) < len(inputs):
        raise UsageError("--shape is given twice for the same input")
    choices = {
        (text, place): match.group(1).split(",")
        for text in texts
        for place, match in enumerate(_BRACES.finditer(text))
    }
    common = dict(parse_shape(text) for text in texts if "{" not in text)
    counts = {len(options) for options in choices.values()}
    if not choices:
        return dict(map(parse_shape, texts)), {}
    if len(counts) > 1:
        raise UsageError(
            f"braces of --shape go together, so all have the same number of extents: {counts} "
            "were given"
        )
    programs: dict[str, dict[str, tuple[int, ...]]] = {}
    for number in range(counts.pop()):
        labels: list[str] = []
        shapes = {}
        for text in texts:
            if "{" in text:
                picks = iter(options[number] for (of, _), options in choices.items() if of == text)
                parts = [pick.rpartition(":") for pick in picks]
                labels += [label or extent for label, _, extent in parts]
                for _, _, extent in parts:
                    text = _BRACES.sub(extent, text, count=1)
                name, shape = parse_shape(text)
                shapes[name] = shape
        label = "x".join(dict.fromkeys(labels))
        if label in programs:
            raise UsageError(f"two programs of --shape are named {label}")
        programs[label] = shapes
    return common, programs


def parse_state(text: object) -> State:
    """Read `input=output`.

    Raises:
        UsageError: it is not of that form.

    >>> parse_state("h=hn")
    State(input='h', output='hn')
    """
    name, equals, output = text.partition("=") if isinstance(text, str) else ("", "", "")
    if not name or not equals or not output:
        raise UsageError(f"{text!r} is no state; write INPUT=OUTPUT")
    return State(name, output)


def parse_value(text: str) -> tuple[str, NDArray[Any]]:
    """Read `name=16000`, `name=1,2,3`, `name=[[1,2],[3,4]]` or `name=FILE.npy`.

    The words true and false are booleans.

    Raises:
        UsageError: it is not of that form.

    >>> parse_value("sr=16000")
    ('sr', array(16000))
    >>> parse_value("table=[[1,2],[3,4]]")[1].shape
    (2, 2)
    """
    name, equals, values = text.rpartition("=")
    if name and values.endswith(".npy"):
        return name, _read_value(text, Path(values))
    if name and values.startswith("["):
        try:
            array = np.array(json.loads(values))
        except (ValueError, RecursionError):
            array = np.array(None)
        if array.dtype.kind not in "biuf":
            raise UsageError(
                f"{text!r} is no value; write NAME=[[1,2],[3,4]], rows of equal length"
            )
        return name, array
    words = {"true": True, "false": False}
    try:
        numbers = [
            words[part] if part in words else float(part) if _is_fraction(part) else int(part)
            for part in values.lower().split(",")
        ]
    except ValueError:
        numbers, equals = [], ""
    if not name or not equals:
        raise UsageError(f"{text!r} is no value; write NAME=16000, NAME=1,2,3 or NAME=FILE.npy")
    array = np.array(numbers[0] if len(numbers) == 1 else numbers)
    if array.dtype.kind == "O":
        raise UsageError(f"{text!r}: no tensor holds a number of that size")
    return name, array


def _read_value(text: str, path: Path) -> NDArray[Any]:
    try:
        array = read_arrays(path)
    except NpyError as error:
        raise TensorInputError(f"--freeze {text}: {path} {error}") from None
    if isinstance(array, dict):
        raise TensorInputError(f"--freeze {text}: {path} is an archive; one array is expected")
    return array


def _is_fraction(text: str) -> bool:
    return any(mark in text for mark in (".", "e", "inf", "nan"))
