"""Describe the versions of a model that are searched: which recipes, in which strengths."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from edgec.compiler.compress.compression_recipe import load_compression
from edgec.compiler.compress.options import CompressOptions
from edgec.compiler.options import CompileOptions
from edgec.compiler.quantize.options import QuantizeOptions
from edgec.compiler.quantize.quantization_recipe import RECIPES

MIXED = "int8-mixed"
"""`int8` whose operators return to float until the drop holds (`--max-drop`)."""
NO_RECIPE = "none"

# Each is coarser than those of its set.
_FINER: Mapping[str, frozenset[str]] = {
    NO_RECIPE: frozenset(),
    "fp16": frozenset({NO_RECIPE}),
    "int8-weight-only": frozenset({NO_RECIPE, "fp16"}),
    "int8-dynamic": frozenset({NO_RECIPE, "fp16", "int8-weight-only"}),
    MIXED: frozenset({NO_RECIPE, "fp16", "int8-weight-only"}),
    "int8": frozenset({NO_RECIPE, "fp16", "int8-weight-only", MIXED}),
    "int4-weight-only": frozenset({NO_RECIPE, "fp16", "int8-weight-only"}),
}
QUANTIZATIONS: tuple[str, ...] = tuple(_FINER)
# In the order in which they are applied, with their strengths [%].
STEPS: Mapping[str, tuple[int, ...]] = {
    "layers": (0, 10, 20),
    "channels": (0, 10, 20, 30, 40, 50, 60, 70),
    "low-rank": (0, 25, 50),
    "block": (0, 50, 70),
}
DISTILL = "distill"
"""Training of what the steps leave: it takes long, and is done where it is asked for."""
INPUT_SIZE = "input-size"
"""Smaller images than those of the model, which it takes as well."""


@dataclass(frozen=True)
class Point:
    """A point describes one version of a model.

    Attributes:
        quantize: a recipe, `int8-mixed` or `none`.
        steps: strength in percent by name of each compression step that is used.
        program: the program whose shapes it has, for input sizes; empty if there is one.
        distill: whether what the steps leave learns from the original.
    """

    quantize: str = NO_RECIPE
    steps: tuple[tuple[str, int], ...] = ()
    program: str = ""
    distill: bool = False

    @property
    def compress(self) -> str:
        """Return the recipe of its steps, as `--compress` takes it."""
        names = [f"{name}-{percent}" for name, percent in self.steps]
        return ",".join([*names, DISTILL] if self.distill else names)

    @property
    def label(self) -> str:
        """Return it in one line.

        >>> Point("int8", (("channels", 30),)).label
        'int8 channels-30'
        """
        parts = [self.quantize if self.quantize != NO_RECIPE else "", self.compress, self.program]
        return " ".join(part for part in parts if part) or "as it is"

    def changed(self, base: CompileOptions, drop: float | None) -> CompileOptions:
        """Return the options of its compile.

        Args:
            base: those of the model as it is; of several programs it has the point's.
            drop: the limit that a mixed precision keeps.
        """
        quantize = compress = None
        if self.quantize != NO_RECIPE:
            name = "int8" if self.quantize == MIXED else self.quantize
            quantize = QuantizeOptions(
                recipe=RECIPES[name], max_drop=drop if self.quantize == MIXED else None
            )
        if self.steps:
            compress = CompressOptions(recipe=load_compression(self.compress))
        shapes = {**base.shapes, **base.programs.get(self.program, {})}
        return replace(base, shapes=shapes, programs={}, quantize=quantize, compress=compress)

    def arguments(self, drop: float | None) -> list[str]:
        """Return the options of `edgec compile` that make it of the model."""
        found = []
        if self.steps:
            found += ["--compress", self.compress]
        if self.quantize == MIXED:
            found += ["--quantize", "int8", "--max-drop", f"{drop:g}"]
        elif self.quantize != NO_RECIPE:
            found += ["--quantize", self.quantize]
        return found

    def is_at_least(self, other: "Point") -> bool:
        """Return whether it is the other one, or goes further in some respect and less far in none.

        Such a version is taken to be no more accurate.

        >>> Point("int8", (("channels", 30),)).is_at_least(Point("none", (("channels", 20),)))
        True
        """
        mine, theirs = dict(self.steps), dict(other.steps)
        return (
            self.program == other.program
            and self.distill <= other.distill
            and (self.quantize == other.quantize or other.quantize in _FINER[self.quantize])
            and all(mine.get(name, 0) >= percent for name, percent in theirs.items())
        )


@dataclass(frozen=True)
class Space:
    """A space describes what a search chooses among.

    Attributes:
        quantize: quantizations.
        steps: strengths by compression step, 0 for none.
        programs: programs whose shapes may be taken; of input sizes.
        distill: whether a version with steps may be trained.
    """

    quantize: Sequence[str] = QUANTIZATIONS
    steps: Mapping[str, Sequence[int]] = field(default_factory=lambda: dict(STEPS))
    programs: Sequence[str] = ("",)
    distill: bool = False

    @property
    def choices(self) -> dict[str, list[str | int]]:
        """Return what is chosen, by name."""
        found: dict[str, list[str | int]] = {"quantize": [*self.quantize]}
        found.update({name: [*strengths] for name, strengths in self.steps.items()})
        found[DISTILL] = [0, 1] if self.distill else [0]
        found["program"] = [*self.programs]
        return {name: values for name, values in found.items() if len(values) > 1}

    def point(self, chosen: Mapping[str, str | int]) -> Point:
        """Return the point of some choices; what there is no choice for has its only value."""
        values = {"quantize": self.quantize[0], "program": self.programs[0], **chosen}
        strengths = {name: int(values.get(name, self.steps[name][0])) for name in self.steps}
        steps = tuple((name, percent) for name, percent in strengths.items() if percent)
        # What is as it was has nothing to learn.
        distill = bool(values.get(DISTILL, 0)) and bool(steps)
        return Point(str(values["quantize"]), steps, str(values["program"]), distill)

    def chosen(self, point: Point) -> dict[str, str | int]:
        """Return the choices that lead to a point."""
        steps = dict(point.steps)
        values: dict[str, str | int] = {"quantize": point.quantize, "program": point.program}
        values.update({name: steps.get(name, 0) for name in self.steps})
        values[DISTILL] = int(point.distill)
        return {name: values[name] for name in self.choices}

    def points(self) -> list[Point]:
        """Return all points, the mildest first."""
        choices = self.choices
        points = (
            self.point(dict(zip(choices, values, strict=True)))
            for values in itertools.product(*choices.values())
        )
        return list(dict.fromkeys(points))

    def starts(self) -> list[Point]:
        """Return the points that a search looks at first: as it is, and each quantization alone."""
        mildest = self.points()[0]
        return [replace(mildest, quantize=name) for name in self.quantize]
