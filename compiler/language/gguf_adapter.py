"""Read a GGUF file that holds a LoRA adapter, as llama.cpp's `convert_lora_to_gguf.py` writes it.

Each matrix has two tensors, its name with `.lora_a` [rank, inputs] and `.lora_b` [outputs, rank];
`adapter.lora.alpha` by the rank scales their product.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.errors import ModelFileError, UnsupportedModelError
from edgec.compiler.language.adapter_factors import Factors
from edgec.compiler.language.gguf_file import GgufTensor, read_gguf
from edgec.compiler.language.settings import Settings

_DOWN, _UP = ".lora_a", ".lora_b"


def read_gguf_adapter(path: Path, architecture: str) -> list[Factors]:
    """Read the factors of an adapter, by the names of the model's tensors.

    Args:
        path: the file.
        architecture: of the model.

    Raises:
        ModelFileError: it is no adapter, is of another architecture, or contradicts itself.
        UnsupportedModelError: it does more than add products to matrices.
    """
    file = read_gguf(path)
    general = Settings(path, file.metadata, "general.")
    settings = Settings(path, file.metadata, "adapter.")
    if general.text("type", "model") != "adapter":
        raise ModelFileError(f"{path} is a {general.text('type', 'model')}, no adapter")
    if settings.text("type") != "lora":
        raise UnsupportedModelError(
            f"{path}: an adapter of type {settings.text('type')}; merged is lora"
        )
    if settings.get("alora.invocation_tokens") is not None:
        raise UnsupportedModelError(f"{path}: an adapter that begins at a token cannot be merged")
    if general.text("architecture") != architecture:
        raise ModelFileError(
            f"{path} is for {general.text('architecture')}; the model is {architecture}"
        )
    alpha = settings.number("lora.alpha")
    names: dict[str, None] = {}
    for name in file.tensors:
        stem = name.removesuffix(_DOWN).removesuffix(_UP)
        if stem == name:
            raise UnsupportedModelError(
                f"{path}: tensor {name} cannot be merged; known are those that end in {_DOWN} "
                f"and {_UP}"
            )
        names[stem] = None
    if not names:
        raise ModelFileError(f"{path} has no factors")
    found = []
    for name in names:
        for ending in (_DOWN, _UP):
            if name + ending not in file.tensors:
                raise ModelFileError(f"{path}: tensor {name}{ending} is missing")
        down, up = (_floats(file.tensors[name + ending]) for ending in (_DOWN, _UP))
        factors = Factors(name, down, up, alpha / len(down))
        factors.check(path)
        found.append(factors)
    return found


def _floats(tensor: GgufTensor) -> NDArray[np.float32]:
    matrix = tensor.matrix()
    return matrix if isinstance(matrix, np.ndarray) else matrix.dequantize()
