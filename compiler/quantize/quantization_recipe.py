"""Provide recipes: what becomes an integer, and of which kind.

A recipe has a name or is a TOML file:

```toml
base = "int8"              # a named recipe to start from
activations = "static"     # static, dynamic, or float
weights = "int8"           # int8, int4, log2, codebook16, codebook256, fp16, bf16, or float
extent = "partial"         # full: the results are quantized as well

[[override]]
match = "conv0*"           # names of values of an operator, * and ? as in file names
keep = "float"

[[override]]
operator = "matmul"        # or its type
keep = "weight-only"       # float activations
```

A recipe says what is wanted; `resolve` says what that means on a target.
"""

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgec.compiler.errors import RecipeError, did_you_mean
from edgec.compiler.numerics.affine import QuantizedType
from edgec.compiler.numerics.pair_sums import INT8_LIMIT, UINT8_LIMIT, SumLimit
from edgec.compiler.support.toml_file import explain, read_toml
from edgec.targets.isa import SUMS
from edgec.targets.target import Target

OperatorKind = Literal[
    "activation",
    "add",
    "concat",
    "conv",
    "conv_transpose",
    "depthwise_conv",
    "embedding",
    "matmul",
    "move",
    "multiply",
    "pool",
]
"""Types of operators, as overrides name them; `move` changes no value (reshape, slice, pad),
`embedding` reads rows of a constant table."""

SaturationMode = Literal["weights", "activations", "none"]
"""How products are kept from saturating the target's int16 accumulators, see `saturation`."""

Activations = Literal["static", "dynamic", "float"]
Weights = Literal["int8", "int4", "log2", "codebook16", "codebook256", "fp16", "bf16", "float"]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Override(_Settings):
    """An override describes operators that are treated otherwise.

    Attributes:
        match: glob over the names of an operator's values.
        operator: its type.
        keep: `float`: untouched; `weight-only`: its activations stay float.
    """

    match: str | None = None
    operator: OperatorKind | None = None
    keep: Literal["float", "weight-only"]

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if self.match is None and self.operator is None:
            raise ValueError("an override needs match or operator")
        return self

    def applies(self, names: tuple[str, ...], kind: str) -> bool:
        """Return whether an operator is meant.

        >>> Override(match="conv*", keep="float").applies(("conv0", "relu0"), "conv")
        True
        """
        if self.operator is not None and self.operator != kind:
            return False
        pattern = self.match
        return pattern is None or any(fnmatch.fnmatchcase(name, pattern) for name in names)


class QuantizationRecipe(_Settings):
    """A quantization recipe describes what becomes an integer.

    Attributes:
        name: shown and written into the manifest.
        activations: `static`: ranges from calibration; `dynamic`: each run finds the range of
            each input of a convolution or matrix product; `float`: none.
        activation_bits: the activation bits of the 8 that hold a value; None: what the target needs
            to be exact.
        symmetric_activations: whether the zero point is the middle of the quantized values.
        weights: int8 with a scale for each output channel; 4-bit values with a scale for each
            group; `log2`: powers of two in 4 bits; codebooks: values of a table for the whole
            tensor, with a scale for each output channel; half floats.
        weight_bits: the weight bits of int8 weights; None: what the target needs to be exact.
        weight_group: weights that share a scale, in int4 and log2.
        symmetric_weights: int4 only; int8 weights always are.
        equalize: even out the ranges of channels between two convolutions first.
        smooth: move channels of activations that outweigh others into the weights of the matrix
            products that read them; static activations of networks with normalizations only.
        extent: `full`: what the network gives is rounded to qtype as well; `partial`: what only
            floats read stays float.
        override: exceptions; the first that applies counts.
    """

    name: str = "custom"
    activations: Activations = "static"
    activation_bits: Literal[7, 8] | None = None
    symmetric_activations: bool = False
    weights: Weights = "int8"
    weight_bits: Literal[7, 8] | None = None
    weight_group: Literal[32, 64, 128] = 32
    symmetric_weights: bool = True
    equalize: bool = False
    smooth: bool = True
    extent: Literal["full", "partial"] = "partial"
    override: tuple[Override, ...] = Field(default=())

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.activations != "float" and self.weights != "int8":
            raise ValueError(
                f"{self.activations} activations need int8 weights, not {self.weights}; "
                'set activations = "float"'
            )
        if self.activations == "float" and self.extent == "full":
            raise ValueError('extent = "full" needs activations = "static"')
        if self.activations == "dynamic" and self.extent == "full":
            raise ValueError('extent = "full" needs ranges: activations = "static"')
        return self

    @property
    def needs_samples(self) -> bool:
        """Return whether ranges come from calibration."""
        return self.activations == "static"

    @property
    def codebook(self) -> int:
        """Return entries of a codebook, 0 if weights are stored otherwise."""
        return {"codebook16": 16, "codebook256": 256}.get(self.weights, 0)

    def keep(self, names: tuple[str, ...], kind: str) -> str:
        """Return how an operator is treated: `integer`, `weight-only` or `float`."""
        for override in self.override:
            if override.applies(names, kind):
                return override.keep
        return "integer" if self.activations != "float" else "weight-only"


RECIPES: dict[str, QuantizationRecipe] = {
    recipe.name: recipe
    for recipe in (
        QuantizationRecipe(name="int8"),
        QuantizationRecipe(name="int8-dynamic", activations="dynamic"),
        QuantizationRecipe(name="int8-weight-only", activations="float", weight_bits=8),
        QuantizationRecipe(name="int4-weight-only", activations="float", weights="int4"),
        QuantizationRecipe(name="fp16", activations="float", weights="fp16"),
        QuantizationRecipe(name="bf16", activations="float", weights="bf16"),
        QuantizationRecipe(name="log2", activations="float", weights="log2"),
        QuantizationRecipe(name="codebook-16", activations="float", weights="codebook16"),
        QuantizationRecipe(name="codebook-256", activations="float", weights="codebook256"),
    )
}


# For language models, whose products have no other activations.
_SHORT_NAMES = {"int4": "int4-weight-only"}


def load_recipe(name: str | Path) -> QuantizationRecipe:
    """Return the recipe of this name, or of this file if the name ends in `.toml`.

    Raises:
        RecipeError: unknown name, unreadable file, unknown key or bad value.
    """
    if isinstance(name, str) and not name.endswith(".toml"):
        name = _SHORT_NAMES.get(name, name)
        if name not in RECIPES:
            raise RecipeError(
                f"unknown recipe {name!r}{did_you_mean(name, RECIPES)} Known recipes: "
                f"{', '.join(RECIPES)}; a recipe file is given by its path, *.toml"
            )
        return RECIPES[name]
    path = Path(name)
    fields = read_toml(path, "recipe file", RecipeError)
    base = fields.pop("base", None)
    if base is not None and base not in RECIPES:
        raise RecipeError(f"recipe file {path}: base = {base!r}; known: {', '.join(RECIPES)}")
    start = RECIPES[base].model_dump(exclude={"name"}) if base else {}
    try:
        return QuantizationRecipe.model_validate({"name": path.stem, **start, **fields})
    except ValidationError as error:
        what = explain(error, lambda at: Override if at else QuantizationRecipe)
        raise RecipeError(f"recipe file {path}: {what}") from None


def as_recipe(given: QuantizationRecipe | str | Path) -> QuantizationRecipe:
    """Return a recipe, given as it is or as of `load_recipe`."""
    return given if isinstance(given, QuantizationRecipe) else load_recipe(given)


@dataclass(frozen=True)
class ResolvedRecipe:
    """A resolved recipe describes a recipe on a target.

    Attributes:
        recipe: what was wanted.
        activations: quantized type of activations.
        largest_weight: quantized values of int8 weights are in [-largest, largest].
        limit: what weights keep to whose products meet in int16; None: they need not.
        why: the choice of quantized values, in one line; empty if activations stay float.
        chooses: whether a saturation mode is chosen for each operator.
        saturation_modes: what was chosen, by name of an operator; others keep to `limit`.
    """

    recipe: QuantizationRecipe
    activations: QuantizedType
    largest_weight: int
    limit: SumLimit | None
    why: str
    chooses: bool = False
    saturation_modes: Mapping[str, SaturationMode] = field(default_factory=dict)


def resolve(recipe: QuantizationRecipe, target: Target) -> ResolvedRecipe:
    """Choose quantized values that the target's instructions multiply exactly.

    Some instruction sets add products in int16 (`pairs_saturate`): of two weights, and of two
    such pairs where that is exact. So weights of one sign that meet there keep to a sum of
    128 (`LARGEST_SUM`), 255 * 128 = 32,640, by a larger scale of their channel. That costs
    less than a bit less for all weights would: in the convolutions of EfficientNet-Lite0, PP-OCR
    and YOLOv8n weights have 2.5 dB more than with 7 bits. Weights of 7 bits keep to it on every
    target, so that they are the same everywhere.

    Others add products in int16 only where that holds them (`pairs_fit`): of any two weights, and
    of four whose magnitudes sum up to 255 at most (`INT8_LIMIT`), which is faster.
    """
    saturating = target.integer_dot in target.instruction_set.pairs_saturate
    dtype = target.instruction_set.activation_dtype
    activation_bits, weight_bits = recipe.activation_bits or 8, recipe.weight_bits or 8
    narrow = recipe.symmetric_activations and dtype == "int8"
    qtype = QuantizedType.of(dtype, activation_bits, narrow=narrow)
    largest = 127 if weight_bits == 8 else 63
    integer = recipe.activations != "float"
    limit = None
    if integer and (saturating or weight_bits == 7):
        # Four magnitudes of 7 bits sum up to less than 255, too.
        limit = UINT8_LIMIT
    elif integer and target.integer_dot in target.instruction_set.pairs_fit:
        limit = INT8_LIMIT
    why = ""
    if integer:
        reason = SUMS.get(target.integer_dot, "sums are in int32")
        if target.why_in_floats:
            reason = f"products are in floats, as {target.why_in_floats},"
        why = (
            f"activations {qtype.dtype} in [{qtype.low}, {qtype.high}], weights in "
            f"[-{largest}, {largest}]: {reason} on {target.name}"
        )
    free = recipe.activation_bits is None and recipe.weight_bits is None
    chooses = saturating and free and recipe.activations == "static"
    return ResolvedRecipe(recipe, qtype, largest, limit, why, chooses)


KINDS: tuple[str, ...] = get_args(OperatorKind)
