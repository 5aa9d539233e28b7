"""Provide recipes of compression: steps in order.

On the command line, names with a number, joined by commas: `low-rank-50,distill`. As a TOML file:

```toml
[[step]]
kind = "sparse"
ratio = 0.8
skip = ["classifier*"]

[[step]]
kind = "distill"
epochs = 20
labels = "labels.npy"
```

`sparse-N` makes N percent of the weights zero, `low-rank-N` removes N percent of them, `distill`
trains what the steps before it left.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgec.compiler.compress.step import CompressionStep
from edgec.compiler.compress.steps.channels import Channels
from edgec.compiler.compress.steps.distill import Distill
from edgec.compiler.compress.steps.drop_layers import Layers
from edgec.compiler.compress.steps.filter_size import FilterSize
from edgec.compiler.compress.steps.low_rank import LowRank
from edgec.compiler.compress.steps.sparse import Sparse
from edgec.compiler.errors import RecipeError, did_you_mean
from edgec.compiler.support.toml_file import Place, explain, read_toml

AnyStep = Annotated[
    Channels | Distill | FilterSize | Layers | LowRank | Sparse, Field(discriminator="kind")
]
_STEPS = {s.model_fields["kind"].default: s for s in get_args(get_args(AnyStep)[0])}

# What a name with a number means; the number is a percentage.
_NAMED: dict[str, Callable[[float], CompressionStep]] = {
    "block-N": lambda share: Sparse(ratio=share, pattern="block"),
    "channels-N": lambda share: Channels(ratio=share),
    "distill": lambda _: Distill(),
    "kernels-N": lambda share: FilterSize(energy=share),
    "layers-N": lambda share: Layers(ratio=share),
    "low-rank-N": lambda share: LowRank(ratio=share),
    "sparse-N": lambda share: Sparse(ratio=share),
}


class CompressionRecipe(BaseModel):
    """A compression recipe describes steps, in order.

    Attributes:
        name: shown and written into the manifest.
        step: the steps.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    step: tuple[AnyStep, ...] = Field(min_length=1)


def load_compression(text: str) -> CompressionRecipe:
    """Return the recipe of this file if the text ends in `.toml`, else of these names.

    Raises:
        RecipeError: unknown name, unreadable file, unknown key or bad value.

    >>> load_compression("sparse-80").step[0].ratio
    0.8
    """
    if text.endswith(".toml"):
        return _read(Path(text))
    try:
        steps = tuple(_named(part.strip()) for part in text.split(","))
        return CompressionRecipe.model_validate({"name": text, "step": steps})
    except ValidationError as error:
        raise RecipeError(f"--compress {text}: {explain(error, _table_at)}") from None


def as_compression(given: CompressionRecipe | str | Path) -> CompressionRecipe:
    """Return a recipe, given as it is or as of `load_compression`."""
    return given if isinstance(given, CompressionRecipe) else load_compression(str(given))


def _named(name: str) -> CompressionStep:
    groups = re.fullmatch(r"sparse-(\d+:\d+)", name)
    if groups:
        return Sparse(pattern=groups[1])
    number = re.search(r"\d+$", name)
    key = name[: number.start()] + "N" if number else name
    if key not in _NAMED:
        raise RecipeError(
            f"unknown compression {name!r}{did_you_mean(key, _NAMED)} Known: "
            f"{', '.join(_NAMED)} (N in percent), sparse-N:M, joined by commas; a recipe file is "
            "given by its path, *.toml"
        )
    return _NAMED[key](int(number.group()) / 100 if number else 0.0)


def _read(path: Path) -> CompressionRecipe:
    fields = read_toml(path, "recipe file", RecipeError)
    try:
        return CompressionRecipe.model_validate({"name": path.stem, **fields})
    except ValidationError as error:
        raise RecipeError(f"recipe file {path}: {explain(error, _table_at)}") from None


def _table_at(place: Place) -> type[BaseModel]:
    # A step is at ("step", index, kind).
    return _STEPS[place[-1]] if place else CompressionRecipe
