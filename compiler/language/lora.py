"""Merge LoRA adapters into the weights of a language model as they are read."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.errors import ModelFileError, UnsupportedModelError, UsageError
from edgec.compiler.language.adapter_factors import AdapterRecord, Factors
from edgec.compiler.language.architectures import (
    Rows,
    WeightSource,
    expected_tensors,
    optional_tensors,
)
from edgec.compiler.language.gguf_adapter import read_gguf_adapter
from edgec.compiler.language.gguf_file import is_gguf
from edgec.compiler.language.grouped_weight import GroupedWeight, Matrix
from edgec.compiler.language.language_model import ModelSource
from edgec.compiler.language.peft_adapter import CONFIG, peft_files, read_peft

# Weights of so many bits are not rounded a second time.
_FEW_BITS = 4


@dataclass(frozen=True)
class Adapter:
    """An adapter describes what is merged, and how much of it.

    Attributes:
        path: a folder of PEFT's, or a GGUF file.
        scale: what its change is multiplied by, beside its own scale.
    """

    path: Path
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a scale that cannot be.

        Raises:
            UsageError: it is zero or no number.
        """
        if not math.isfinite(self.scale) or not self.scale:
            raise UsageError(f"--lora {self.path}:{self.scale}: a scale is a number that is not 0")

    def digest(self) -> str:
        """Return the SHA-256 of its file, or of those of its files.

        Raises:
            ModelFileError: one cannot be read.
        """
        digests = []
        for file in peft_files(self.path) if self.path.is_dir() else [self.path]:
            try:
                with file.open("rb") as stream:
                    digests.append(hashlib.file_digest(stream, "sha256"))
            except OSError as error:
                raise ModelFileError(f"{file} cannot be read: {error.strerror}") from None
        if len(digests) == 1:
            return digests[0].hexdigest()
        return hashlib.sha256(b"".join(part.digest() for part in digests)).hexdigest()

    def record(self) -> AdapterRecord:
        """Return what a manifest says of it."""
        name = self.path.resolve().name
        return AdapterRecord(name=name, sha256=self.digest(), scale=self.scale)

    def factors(self, model: Path, architecture: str) -> list[Factors]:
        """Read its factors, by the names of the tensors of a model.

        Raises:
            UsageError: it is of another form than the model.
            ModelFileError: it is missing, damaged, or for another model.
            UnsupportedModelError: it cannot be merged.
        """
        if self.path.is_dir():
            if model.is_file():
                raise UsageError(
                    f"--lora {self.path} is a folder, and {model} a GGUF file, whose tensors have "
                    "other names; convert the adapter to GGUF, or compile the model's folder"
                )
            return read_peft(self.path)
        if not self.path.exists():
            raise ModelFileError(f"adapter {self.path} does not exist")
        if not is_gguf(self.path):
            raise ModelFileError(
                f"{self.path} is no adapter: a folder with {CONFIG}, or a GGUF file, is expected"
            )
        if model.is_dir():
            raise UsageError(
                f"--lora {self.path} is a GGUF file, and {model} a folder, whose tensors have "
                "other names; give the adapter's folder, or compile the model as GGUF"
            )
        return read_gguf_adapter(self.path, architecture)


def parse_adapter(given: "Adapter | str | Path") -> Adapter:
    """Read `ADAPTER` or `ADAPTER:SCALE`.

    Raises:
        UsageError: the scale is zero or infinite.

    >>> parse_adapter("tales:0.5").scale
    0.5
    """
    if isinstance(given, Adapter):
        return given
    path, colon, scale = str(given).rpartition(":")
    if not path or not colon or Path(given).exists():
        return Adapter(Path(given))
    try:
        return Adapter(Path(path), float(scale))
    except ValueError:
        return Adapter(Path(given))


def merge_adapters(
    path: Path, model: ModelSource, adapters: Sequence[Adapter], *, rounded: bool
) -> ModelSource:
    """Return a model to whose matrices the adapters' products are added when they are asked for.

    Args:
        path: of the model.
        model: what was read from it.
        adapters: added up.
        rounded: whether the weights are quantized afterwards.

    Raises:
        UsageError: an adapter is of another form than the model.
        ModelFileError: one is missing, damaged, or for another model.
        UnsupportedModelError: one cannot be merged.
    """
    weights: WeightSource = model.weights
    digest = hashlib.sha256(model.language.digest.encode())
    for adapter in adapters:
        factors = adapter.factors(path, model.decoder.family.name)
        digest.update(f" {adapter.digest()} {adapter.scale!r}".encode())
        shapes = expected_tensors(model.decoder) | optional_tensors(model.decoder)
        weights = MergedWeights(weights, shapes, adapter, factors, rounded)
    # Another model than that of the file: caches of prompts are bound to the digest.
    language = model.language.model_copy(update={"digest": digest.hexdigest()})
    return replace(model, weights=weights, language=language)


class MergedWeights:
    """Merged weights are a decoder's with those of an adapter added.

    Args:
        weights: the decoder's.
        shapes: extents of tensors by name.
        adapter: named in errors, with its scale.
        factors: what it adds, by tensors of the model's file.
        rounded: whether what is made of quantized weights is quantized again.

    Raises:
        UnsupportedModelError: it changes what the model does not have, or the table of tokens.
        ModelFileError: extents do not fit.
    """

    def __init__(
        self,
        weights: WeightSource,
        shapes: dict[str, tuple[int, ...]],
        adapter: Adapter,
        factors: Sequence[Factors],
        rounded: bool,
    ) -> None:
        self.weights, self.adapter, self.rounded = weights, adapter, rounded
        self.names = weights.names
        pieces: dict[str, list[tuple[str, Rows]]] = {}
        for name in sorted(weights.names):
            source, rows = weights.origin(name)
            pieces.setdefault(source, []).append((name, rows))
        self._added: dict[str, tuple[Factors, Rows]] = {}
        for item in factors:
            found = pieces.get(item.name, [])
            if not found or len(shapes[found[0][0]]) != 2:
                raise UnsupportedModelError(
                    f"{adapter.path} changes {item.name}, and the model has no matrix of this name"
                )
            if found[0][0] == "token_embd.weight":
                raise UnsupportedModelError(
                    f"{adapter.path} changes {item.name}, the table of tokens, which is not merged"
                )
            self._check_shapes(item, found, shapes)
            self._added |= {name: (item, rows) for name, rows in found}

    def _check_shapes(
        self,
        item: Factors,
        pieces: Sequence[tuple[str, Rows]],
        shapes: dict[str, tuple[int, ...]],
    ) -> None:
        outputs = sum(shapes[name][0] for name, _ in pieces)
        wanted = (outputs, shapes[pieces[0][0]][1])
        given = (len(item.up), item.down.shape[1])
        if given != wanted:
            raise ModelFileError(
                f"{self.adapter.path}: {item.name} is changed by {list(given)}; {list(wanted)} is "
                "what the model has"
            )

    def origin(self, name: str) -> tuple[str, Rows]:
        """Return the tensor of the file that a tensor is made of, and which of its rows."""
        return self.weights.origin(name)

    def vector(self, name: str) -> NDArray[np.float32]:
        """Return a tensor of one dimension."""
        return self.weights.vector(name)

    def matrix(self, name: str) -> Matrix:
        """Return a tensor of two dimensions, [outputs, inputs].

        Raises:
            UsageError: it is quantized, and is not to be quantized again.
        """
        matrix = self.weights.matrix(name)
        if name not in self._added:
            return matrix
        if isinstance(matrix, GroupedWeight):
            matrix = self._floats(name, matrix)
        factors, rows = self._added[name]
        merged: NDArray[np.float32] = factors.up[rows] @ factors.down
        merged *= np.float32(factors.scale * self.adapter.scale)
        merged += matrix
        return merged

    def _floats(self, name: str, matrix: GroupedWeight) -> NDArray[np.float32]:
        if matrix.bits <= _FEW_BITS:
            raise UsageError(
                f"--lora {self.adapter.path}: {name} has {matrix.bits} bits in the file, too few "
                "to be rounded again; merge into the float model, and compile that with "
                "--quantize int4"
            )
        if not self.rounded:
            raise UsageError(
                f"--lora {self.adapter.path}: {name} is quantized in the file; take the float "
                "model, or --quantize int4, which rounds the merged weights"
            )
        return matrix.dequantize()
