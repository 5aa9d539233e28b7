"""Describe the decoders that are known: what all have in common, and where each differs.

Llama: Touvron et al., 2023, arXiv:2302.13971. Mistral (windows): Jiang et al., 2023,
arXiv:2310.06825. Qwen 2: Yang et al., 2024, arXiv:2407.10671. Qwen 3 (norms of queries and keys):
Yang et al., 2025, arXiv:2505.09388. Gemma 2 (soft caps, norms behind blocks, windows in every
other layer): Gemma Team, 2024, arXiv:2408.00118. Gemma 3: Gemma Team, 2025, arXiv:2503.19786.
Phi 3: Abdin et al., 2024, arXiv:2404.14219. All normalize by the root mean square, rotate queries
and keys, share keys and values between heads, and gate their feed-forward layers.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.errors import UnsupportedModelError
from edgec.compiler.language.grouped_weight import Matrix
from edgec.compiler.language.rotary import Rotary

Activation = Literal["silu", "gelu_tanh"]
Rows = slice | NDArray[np.int64]
"""Some of the rows of a tensor, in order."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family describes what is the same for all models of an architecture.

    Attributes:
        name: by which files call it, in GGUF.
        title: by which people call it.
        activation: of the gate.
        query_norm: queries and keys are normalized, head by head.
        post_norms: what attention and feed-forward layers give is normalized, too.
        scaled_embeddings: embeddings are multiplied by the root of their width.
        tied: the embeddings are the output's weights unless the model says otherwise.
        rotates_pairs: GGUF files turn neighbours (0, 1), not halves (0, n / 2).
        fused: queries, keys and values are one matrix, gate and up another.
        head_size: where the model does not say; 0 is width by heads.
    """

    name: str
    title: str
    activation: Activation = "silu"
    query_norm: bool = False
    post_norms: bool = False
    scaled_embeddings: bool = False
    tied: bool = False
    rotates_pairs: bool = False
    fused: bool = False
    head_size: int = 0


FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family(name="llama", title="Llama", rotates_pairs=True),
        Family(name="mistral", title="Mistral", rotates_pairs=True),
        Family(name="qwen2", title="Qwen 2 and 2.5"),
        Family(name="qwen3", title="Qwen 3", query_norm=True, head_size=128),
        Family(
            name="gemma2",
            title="Gemma 2",
            activation="gelu_tanh",
            post_norms=True,
            scaled_embeddings=True,
            tied=True,
            head_size=256,
        ),
        Family(
            name="gemma3",
            title="Gemma 3",
            activation="gelu_tanh",
            query_norm=True,
            post_norms=True,
            scaled_embeddings=True,
            tied=True,
            head_size=256,
        ),
        Family(name="phi3", title="Phi 3", fused=True),
    )
}


def family(name: str, where: object) -> Family:
    """Return the family of a name.

    Raises:
        UnsupportedModelError: there is none.
    """
    if name not in FAMILIES:
        known = ", ".join(f"{item.name} ({item.title})" for item in FAMILIES.values())
        raise UnsupportedModelError(f"{where} has the architecture {name!r}; known are {known}")
    return FAMILIES[name]


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """A decoder describes one model's arithmetic and extents.

    Attributes:
        family: what it shares with others of its architecture.
        layers: blocks of attention and feed-forward.
        width: of the hidden state.
        hidden: of the feed-forward layers.
        heads: of queries.
        key_heads: of keys and values.
        head_size: of each.
        vocabulary: rows of the embeddings, and logits.
        trained_context: tokens that it was made for.
        norm_epsilon: of all norms.
        attention_scale: of products of queries and keys.
        attention_cap: scores become `cap * tanh(score / cap)`; 0 leaves them.
        output_cap: likewise logits.
        windows: keys that a query sees in each layer, its own among them; 0 is all before it.
        rotaries: of each layer; layers that rotate alike share one.
    """

    family: Family
    layers: int
    width: int
    hidden: int
    heads: int
    key_heads: int
    head_size: int
    vocabulary: int
    trained_context: int
    norm_epsilon: float
    attention_scale: float
    attention_cap: float = 0.0
    output_cap: float = 0.0
    windows: tuple[int, ...]
    rotaries: tuple[Rotary, ...]


class WeightSource(Protocol):
    """Gives a decoder's tensors by the names that GGUF files call them by.

    Queries and keys rotate halves; fused matrices are split; norms multiply by their weights as
    they are. A matrix is made when it is asked for and kept by no one.
    """

    @property
    def names(self) -> frozenset[str]:
        """Return the tensors that there are."""
        ...

    def origin(self, name: str) -> tuple[str, Rows]:
        """Return the tensor of the file that a tensor is made of, and which of its rows."""
        ...

    def vector(self, name: str) -> NDArray[np.float32]:
        """Return a tensor of one dimension."""
        ...

    def matrix(self, name: str) -> Matrix:
        """Return a tensor of two dimensions, [outputs, inputs]."""
        ...


def expected_tensors(decoder: Decoder) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor that a decoder needs."""
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (decoder.vocabulary, decoder.width),
        "output_norm.weight": (decoder.width,),
    }
    for layer in range(decoder.layers):
        shapes.update((f"blk.{layer}.{name}", shape) for name, shape in _layer_tensors(decoder))
    return shapes


def optional_tensors(decoder: Decoder) -> dict[str, tuple[int, ...]]:
    """Return the shape of tensors that a decoder may have: its own output, and biases."""
    needed = expected_tensors(decoder)
    biases = {
        f"{name.removesuffix('.weight')}.bias": shape[:1]
        for name, shape in needed.items()
        if len(shape) == 2 and name.startswith("blk.")
    }
    output = {"output.weight": (decoder.vocabulary, decoder.width)}
    return {**output, "output.bias": (decoder.vocabulary,), **biases}


def _layer_tensors(decoder: Decoder) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, hidden = decoder.width, decoder.hidden
    queries, keys = (heads * decoder.head_size for heads in (decoder.heads, decoder.key_heads))
    yield "attn_norm.weight", (width,)
    yield "attn_q.weight", (queries, width)
    yield "attn_k.weight", (keys, width)
    yield "attn_v.weight", (keys, width)
    yield "attn_output.weight", (width, queries)
    yield "ffn_norm.weight", (width,)
    yield "ffn_gate.weight", (hidden, width)
    yield "ffn_up.weight", (hidden, width)
    yield "ffn_down.weight", (width, hidden)
    if decoder.family.query_norm:
        yield "attn_q_norm.weight", (decoder.head_size,)
        yield "attn_k_norm.weight", (decoder.head_size,)
    if decoder.family.post_norms:
        yield "post_attention_norm.weight", (width,)
        yield "post_ffw_norm.weight", (width,)
