"""Describe attention over a cache, and where its rows are: what its kernels have in common."""

from dataclasses import dataclass, field
from typing import Any, Literal

from tvm import tirx

from edgec.compiler.kernels.attention.rotation import Rotation
from edgec.compiler.kernels.emit.emitter import Emitter
from edgec.compiler.kernels.vectors import select

Cache = Literal["float32", "float16"]
"""Dtype of the rows of a cache."""
# How kernels read them.
STORED = {"float32": "float32", "float16": "uint16"}

# Queries of a sequence up to which rows are computed as those of one alone are.
FEW_QUERIES = 8

# The least that a largest logit can be: finite, so that differences are numbers.
LOWEST = -3.0e38


@dataclass(frozen=True)
class CachedAttentionWorkload:
    """A workload of attention over a cache; what is computed is float32.

    Attributes:
        batch: sequences, B.
        heads: heads of the queries, N.
        groups: heads of the keys, M.
        count: queries of a sequence, S.
        total: rows of the cache, T.
        size: values of a key, D.
        width: values of a value, E.
        scale: factor of the logits.
        window: keys that a query sees at most, its own among them; 0 for all.
        softcap: logits become softcap * tanh(logits / softcap), unless 0.
        token_major_query: whether queries are [B, S, N, D], not [B, N, S, D].
        token_major_output: whether the result is [B, S, N, E], not [B, N, S, E].
        rotation: how queries are turned, by their place in the cache.
        spans: parts of the keys that have tasks of their own. If there are several, the result is
            [B, M, spans, rows, E + 2]: of each row the sum of weighted values, the sum of powers of
            2, and the largest exponent; rows are ordered by query, then by head.
        cache: dtype of keys and values.
    """

    batch: int
    heads: int
    groups: int
    count: int
    total: int
    size: int
    width: int
    scale: float
    window: int = 0
    softcap: float = 0.0
    token_major_query: bool = False
    token_major_output: bool = False
    rotation: Rotation | None = None
    spans: int = 1
    cache: Cache = field(default="float32", metadata={"omit_if_default": True})

    @property
    def rows(self) -> int:
        """Return the rows that share a key head: queries of all its heads."""
        return self.heads // self.groups * self.count

    @property
    def like_rows(self) -> int:
        """Return the rows by which the way to compute is chosen.

        Of a few queries those of one: a row has the same bits whatever is computed beside it, so
        that guesses of a text can be checked together.
        """
        return self.heads // self.groups if self.count <= FEW_QUERIES else self.rows

    @property
    def result_size(self) -> int:
        """Return values of the result."""
        if self.spans == 1:
            return self.batch * self.heads * self.count * self.width
        return self.batch * self.groups * self.spans * self.rows * (self.width + 2)

    @property
    def macs(self) -> int:
        """Return multiply-accumulates when the cache is full."""
        seen = min(self.window or self.total, self.total)
        return self.batch * self.heads * self.count * seen * (self.size + self.width)


def query_of(e: Emitter, number: Any, share: int, group: Any) -> tuple[Any, Any]:
    """Return which query of its sequence a row of a key head is, and of which head.

    Args:
        e: collects statements.
        number: the row.
        share: heads of queries that share a key head.
        group: the key head.
    """
    step = e.let("query_step", tirx.floordiv(number, share))
    return step, e.let("head", tirx.floormod(number, share) + group * share)


def place_of(
    workload: CachedAttentionWorkload, sequence: Any, step: Any, head: Any, token_major: bool
) -> Any:
    """Return the place of a row among all of queries or results."""
    if token_major:
        return (sequence * workload.count + step) * workload.heads + head
    return (sequence * workload.heads + head) * workload.count + step


def one_over(total: Any) -> Any:
    """Return the factor that makes sums of weighted values an average; 0 where nothing was seen."""
    zero, one = tirx.const(0, "float32"), tirx.const(1, "float32")
    none = total.equal(zero)
    return select(none, zero, one / select(none, one, total))
