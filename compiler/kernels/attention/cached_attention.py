"""Causal attention over a cache: softmax(scale Q K^T) V, as long as the cache is at run time.

Query heads that share a key head are rows of one product, with all queries of a sequence. A task
has some rows of one key head. It goes through the keys block by block and keeps for each row the
largest logit so far, the sum of the powers and the sum of the weighted values (online softmax:
Milakov and Gimelshein 2018; Dao et al. 2022); no more than a block of logits is ever there.

Logits of a block are computed in one of two forms:

    dots         each key is read along its features; the sums over the lanes of several vectors
                 are made at once. For few rows: a step of decoding reads keys once and does little.
    transposed   keys of the block are transposed once, then rows by vectors of keys is a
                 product in register tiles. For many rows, where vectors are long.

Where there are few heads of keys, several tasks share the keys of one: each has a span of them and
writes what it kept, which `join_spans.py` brings together.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tvm import tirx

from edgec.compiler.kernels.attention.append_rows import whole_offset
from edgec.compiler.kernels.attention.rotation import (
    RowMover,
    declare_tables,
    fitting_lanes,
)
from edgec.compiler.kernels.attention.workload import (
    LOWEST,
    STORED,
    CachedAttentionWorkload,
    one_over,
    place_of,
    query_of,
)
from edgec.compiler.kernels.emit.emitter import Emitter, wide
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.emit.quantized_values import weight_to_float
from edgec.compiler.kernels.emit.vector_math import exp2_below_zero, tanh
from edgec.compiler.kernels.layout import transpose_square
from edgec.compiler.kernels.template import undecided
from edgec.compiler.kernels.vectors import (
    broadcast,
    constant,
    fold_lanes,
    select,
    shuffle,
    sums_of_lanes,
    vector_dtype,
)
from edgec.targets.target import Target

LOG2_E = math.log2(math.e)
# Values of a row up to which blocks are large: what a task keeps must stay in its cache.
SHORT_ROW = 128
# Rows from which transposing the keys costs less than summing lanes, by lanes of a vector, also
# where keys come from main memory: measured on an x86 server.
TRANSPOSED_ROWS = {16: 12, 8: 20}
# Rows up to which blocks of keys are larger, and all logits are compared with what a row sees.
FEW_ROWS = 8
# Rows of a task, at most; half of it if they are long.
MOST_ROWS = 32
# Steps of an inner loop that are written out.
MOST_STEPS = 8


def emit_cached_attention(workload: CachedAttentionWorkload, target: Target, name: str) -> Kernel:
    """Write the kernel.

    Its buffers are queries, keys [B, M, T, D], values [B, M, T, E], the offsets int64 [B], cosines
    and sines where queries are turned, and the result.
    """
    return _Writer(workload, target, name).kernel()


class _Writer:
    """Writes one attention.

    Attributes:
        blocks: tasks of a key head.
        rows: rows of a task.
        keys: keys of a block.
        key_lanes: lanes of vectors along the features of keys and queries.
        value_lanes: likewise of values.
        lanes: lanes of vectors along keys.
    """

    def __init__(self, workload: CachedAttentionWorkload, target: Target, name: str) -> None:
        self.work = w = workload
        self.target, self.name = target, name
        self.share = w.heads // w.groups
        short = max(w.size, w.width) <= SHORT_ROW
        most = MOST_ROWS if short else MOST_ROWS // 2
        self.blocks = math.ceil(w.rows / most)
        self.rows = math.ceil(w.rows / self.blocks)
        like = math.ceil(w.like_rows / math.ceil(w.like_rows / most))
        full = target.float_lanes
        self.key_lanes, self.value_lanes = fitting_lanes(full, w.size), fitting_lanes(full, w.width)
        self.transposed = like >= TRANSPOSED_ROWS.get(full, math.inf) and self.key_lanes == full
        self.lanes = full if self.transposed else self.key_lanes
        # Whether a lane of a vector multiplies one; and vectors that an instruction loads.
        self.by_lane = target.multiplies_by_lane and full == 4
        self.neighbours = 2 if self.by_lane else 1
        most = 64 if like > FEW_ROWS else 128
        self.keys = max(self.lanes, most if short else most // 2)
        self.emit = e = Emitter(target)
        self.query = e.buffer("query", w.batch * w.heads * w.count * w.size, "float32")
        kind = STORED[w.cache]
        self.cached_keys = e.buffer("keys", w.batch * w.groups * w.total * w.size, kind)
        self.values = e.buffer("values", w.batch * w.groups * w.total * w.width, kind)
        self.offsets = e.buffer("offsets", w.batch, "int64")
        self.tables = declare_tables(e, w.rotation)
        self.output = e.buffer("output", w.result_size, "float32")

    def kernel(self) -> Kernel:
        """Return the finished kernel."""
        w, e = self.work, self.emit
        each = self.blocks * w.spans
        with e.tasks() as task:
            # Neighbouring tasks share keys.
            part, plane = e.let("part", tirx.floormod(task, each)), tirx.floordiv(task, each)
            block = e.let("block", tirx.floormod(part, self.blocks))
            self.span = tirx.floordiv(part, self.blocks)
            self.plane = plane = e.let("plane", plane)
            self.sequence = e.let("sequence", tirx.floordiv(plane, w.groups))
            self.group = e.let("group", tirx.floormod(plane, w.groups))
            # The last task may compute rows of the one before again.
            last = tirx.IntImm("int32", w.rows - self.rows)
            self.first = e.let("first", tirx.min(block * self.rows, last))
            self.key_plane = wide(e.let("key_plane", plane * (w.total * w.size)))
            self.value_plane = wide(e.let("value_plane", plane * (w.total * w.width)))
            self.offset = whole_offset(e, self.offsets, self.sequence)
            self._declare()
            self._start()
            with self._key_blocks() as (begin, count):
                self._logits(begin, count)
                self._powers(begin, count)
                self._weigh(begin, count)
            if w.spans == 1:
                self._finish()
            else:
                self._keep()
        return Kernel(e.function(self.name), w.batch * w.groups * each)

    def _declare(self) -> None:
        w, e = self.work, self.emit
        self.turned = e.local("turned", self.rows * w.size, "float32")
        self.logits = e.local("logits", self.rows * self.keys, "float32")
        self.sums = e.local("sums", self.rows * w.width, "float32")
        self.largest, self.total, self.factor = (
            e.local(name, self.rows, "float32") for name in ("largest", "total", "factor")
        )
        if self.transposed:
            self.columns = e.local("columns", w.size * self.keys, "float32")

    def _start(self) -> None:
        """Bring the queries of the task together, and begin with nothing."""
        w, e = self.work, self.emit
        factor = w.scale / w.softcap if w.softcap else w.scale * LOG2_E
        mover = RowMover(
            e, w.size, self.target.float_lanes, self.query, self.turned, self.tables, factor
        )
        with e.loop("row", self.rows) as row:
            step, head = self._query(row)
            place = place_of(w, self.sequence, step, head, w.token_major_query)
            source = e.let("source", place * w.size)
            mover.move(source, e.let("to", row * w.size), e.let("position", self.offset + step))
            e.store(self.largest, row, tirx.const(LOWEST, "float32"))
            e.store(self.total, row, tirx.const(0, "float32"))
            with e.loop("vector", w.width // self.value_lanes) as vector:
                zero = constant(0, "float32", self.value_lanes)
                e.store(self.sums, row * w.width + vector * self.value_lanes, zero)

    def _query(self, row: Any) -> tuple[Any, Any]:
        """Return which query of the sequence a row of the task is, and of which head."""
        number = self.emit.let("number", self.first + row)
        return query_of(self.emit, number, self.share, self.group)

    def _seen(self, step: Any) -> tuple[Any, Any]:
        """Return the keys that a query sees: from, and to before."""
        w = self.work
        none, most = tirx.IntImm("int32", 0), tirx.IntImm("int32", w.total)
        end = tirx.max(tirx.min(self.offset + step + 1, most), none)
        if not w.window:
            return none, end
        return tirx.max(self.offset + step + 1 - w.window, none), end

    @contextmanager
    def _key_blocks(self) -> Iterator[tuple[Any, Any]]:
        """Provide the loop over blocks of keys: where one begins and how many keys it has."""
        e, k = self.emit, self.keys
        first = tirx.floordiv(self.first, self.share)
        last = tirx.floordiv(self.first + (self.rows - 1), self.share)
        low, end = self._seen(first)[0], e.let("end", self._seen(last)[1])
        before = e.let("before", tirx.floordiv(low, k))
        blocks = tirx.floordiv(end + (k - 1), tirx.IntImm("int32", k)) - before
        blocks = e.let("blocks", tirx.max(blocks, tirx.IntImm("int32", 0)))
        spans = self.work.spans
        if spans > 1:
            # A block is of the same span whatever other rows of the task see.
            skipped = tirx.floormod(self.span - before, tirx.IntImm("int32", spans))
            skipped = e.let("skipped", skipped)
            blocks = e.let("blocks", tirx.floordiv(blocks - skipped + (spans - 1), spans))
            before = e.let("before", before + skipped)
        with e.loop("key_block", blocks) as block:
            begin = e.let("begin_key", (block * spans + before) * k)
            count = e.let("count", tirx.min(end - begin, tirx.IntImm("int32", k)))
            yield begin, count

    def _vectors(self, count: Any, vectors: int = 1) -> Any:
        """Return how many times so many vectors hold a number of keys."""
        each = vectors * self.lanes
        return self.emit.let("vectors", tirx.floordiv(count + (each - 1), each))

    def _logits(self, begin: Any, count: Any) -> None:
        if self.transposed:
            self._transpose(begin, count)
            self._products(count)
        else:
            self._dots(begin, count)

    def _load(self, cache: Any, at: Any, lanes: int) -> Any:
        """Return values of keys or values as float32."""
        stored = self.emit.load(cache, at, lanes)
        return weight_to_float(stored, self.work.cache, self.emit.isa.converts_float16)

    def _key(self, key: Any) -> Any:
        """Return where a key begins; of those beyond the cache, where its last one does."""
        w = self.work
        if w.total % self.lanes:
            key = tirx.min(key, tirx.IntImm("int32", w.total - 1))
        return self.emit.let("key_place", self.key_plane + wide(key) * w.size)

    def _dots(self, begin: Any, count: Any) -> None:
        """Write the logits of a block, from keys as they lie."""
        e, c = self.emit, self.lanes
        quad = min(4, c)
        held = self.neighbours * quad + 2
        room = max(1, (self.target.vector_registers - held) // quad)
        with e.loop("vector", self._vectors(count)) as vector:
            at = e.let("at", vector * c)
            places = [self._key(begin + at + lane) for lane in range(c)]
            for start, extent, tile in tiles(self.rows, room):
                with e.loop("tile", extent) as number:
                    row = e.let("row", number * tile + start)
                    self._dot_tile(row, tile, places, at, quad)

    def _dot_tile(self, row: Any, tile: int, places: Sequence[Any], at: Any, quad: int) -> None:
        w, e, c = self.work, self.emit, self.lanes
        steps = w.size // c
        parts: list[list[Any]] = [[] for _ in range(tile)]
        base = wide(e.let("turned_row", row * w.size))
        for first in range(0, c, quad):
            acc = e.local("acc", tile * quad, vector_dtype("float32", c))
            for place in range(tile * quad):
                e.store(acc, place, constant(0, "float32", c))

            def step(at: Any, first: int = first, acc: Any = acc) -> None:
                keys = [
                    e.let("k", self._load(self.cached_keys, places[first + j] + at, c))
                    for j in range(quad)
                ]
                for i in range(tile):
                    q = e.let("q", e.load(self.turned, base + i * w.size + at, c))
                    for j, key in enumerate(keys):
                        place = i * quad + j
                        e.store(acc, place, e.load(acc, place) + q * key)

            if steps <= MOST_STEPS:
                for number in range(steps):
                    step(number * c)
            else:
                # Neighbouring vectors are loaded by one instruction where there is one.
                together = self.neighbours if steps % self.neighbours == 0 else 1
                with e.loop("steps", steps // together, wide=True) as number:
                    for part in range(together):
                        step((number * together + part) * c)
            for i in range(tile):
                parts[i] += [e.let("dot", e.load(acc, i * quad + j)) for j in range(quad)]
        for i in range(tile):
            logits = e.let("logit", sums_of_lanes(e.let, parts[i]))
            e.store(self.logits, (row + i) * self.keys + at, logits)

    def _transpose(self, begin: Any, count: Any) -> None:
        """Bring keys of a block into columns: [D, keys]."""
        w, e, c = self.work, self.emit, self.lanes
        with e.loop("vector", self._vectors(count)) as vector:
            at = e.let("at", vector * c)
            places = [self._key(begin + at + lane) for lane in range(c)]
            with e.loop("square", w.size // c, wide=True) as square:
                rows = [
                    e.let("k", self._load(self.cached_keys, place + square * c, c))
                    for place in places
                ]
                for number, column in enumerate(transpose_square(e, rows)):
                    to = (square * c + number) * self.keys + wide(at)
                    e.store(self.columns, to, column)

    def _products(self, count: Any) -> None:
        """Write the logits of a block, from transposed keys."""
        w, e, c = self.work, self.emit, self.lanes
        vectors = min(2, self.keys // c)
        room = max(1, (self.target.vector_registers - vectors - 1) // vectors)
        room = min(room, 8)
        with e.loop("part", self._vectors(count, vectors)) as part:
            at = wide(e.let("at", part * (vectors * c)))
            for start, extent, tile in tiles(self.rows, room):
                with e.loop("tile", extent) as number:
                    row = wide(e.let("row", number * tile + start))
                    acc = e.local("acc", tile * vectors, vector_dtype("float32", c))
                    for place in range(tile * vectors):
                        e.store(acc, place, constant(0, "float32", c))
                    with e.loop("feature", w.size, wide=True) as feature:
                        columns = [
                            e.let("k", e.load(self.columns, feature * self.keys + at + v * c, c))
                            for v in range(vectors)
                        ]
                        for i in range(tile):
                            q = e.load(self.turned, (row + i) * w.size + feature)
                            q = e.let("q", broadcast(q, c))
                            for v, column in enumerate(columns):
                                place = i * vectors + v
                                e.store(acc, place, e.load(acc, place) + q * column)
                    for i in range(tile):
                        for v in range(vectors):
                            to = (row + i) * self.keys + at + v * c
                            e.store(self.logits, to, e.load(acc, i * vectors + v))

    def _powers(self, begin: Any, count: Any) -> None:
        """Replace the logits of a block by their powers, and bring sums to the same scale."""
        e, c = self.emit, self.lanes
        vectors = self._vectors(count)
        kept = e.local("kept", 1, vector_dtype("float32", c))
        with e.loop("row", self.rows) as row:
            low, high = self._seen(self._query(row)[0])
            low, high = e.let("low", low - begin), e.let("high", high - begin)
            start = e.let("start", row * self.keys)
            e.store(kept, 0, constant(LOWEST, "float32", c))
            if self.rows <= FEW_ROWS:
                self._largest(kept, start, vectors, (low, high))
            else:
                whole = e.let("whole", tirx.all(low <= 0, high >= vectors * c))
                with e.branch(whole):
                    self._largest(kept, start, vectors)
                with e.branch(tirx.Not(whole)):
                    self._largest(kept, start, vectors, (low, high))
            before = e.let("before", e.load(self.largest, row))
            found = fold_lanes(e.let, e.load(kept, 0), tirx.max)
            largest = e.let("largest", tirx.max(before, found))
            e.store(kept, 0, constant(0, "float32", c))
            with e.loop("vector", vectors) as vector:
                at = e.let("at", start + vector * c)
                shifted = e.let("shifted", e.load(self.logits, at, c) - broadcast(largest, c))
                power = e.let("power", exp2_below_zero(shifted))
                e.store(self.logits, at, power)
                e.store(kept, 0, e.load(kept, 0) + power)
            factor = e.let("factor", exp2_below_zero(e.let("change", before - largest)))
            more = fold_lanes(e.let, e.load(kept, 0), lambda one, other: one + other)
            e.store(self.largest, row, largest)
            e.store(self.factor, row, factor)
            e.store(self.total, row, e.load(self.total, row) * factor + more)

    def _largest(
        self, kept: Any, start: Any, vectors: Any, seen: tuple[Any, Any] | None = None
    ) -> None:
        """Finish the logits of a row and keep the largest; `seen` limits the keys, if not all."""
        w, e, c = self.work, self.emit, self.lanes
        with e.loop("vector", vectors) as vector:
            at = e.let("at", start + vector * c)
            value = e.let("value", e.load(self.logits, at, c))
            if w.softcap:
                capped = tanh(value) * constant(w.softcap * LOG2_E, "float32", c)
                value = e.let("capped", capped)
            if seen is not None:
                key = broadcast(vector * c, c)
                if c > 1:
                    key = key + tirx.Ramp(tirx.IntImm("int32", 0), tirx.IntImm("int32", 1), c)
                low, high = (broadcast(end, c) for end in seen)
                inside = tirx.bitwise_and(key >= low, key < high)
                value = e.let("masked", select(inside, value, constant(-math.inf, "float32", c)))
            if w.softcap or seen is not None:
                e.store(self.logits, at, value)
            e.store(kept, 0, tirx.max(e.load(kept, 0), value))

    def _weigh(self, begin: Any, count: Any) -> None:
        """Add the values of a block, weighted by the powers."""
        w, e, c = self.work, self.emit, self.value_lanes
        registers = self.target.vector_registers
        most = min(w.width // c, 4)
        # Where lanes are multiplied with, a vector of powers of each row.
        each = most + self.by_lane
        room = min(8, max(1, (registers - most - 1) // each))
        place = e.let("values_place", self.value_plane + wide(begin) * w.width)
        for start, extent, tile in tiles(self.rows, room):
            with e.loop("tile", extent) as number:
                row = wide(e.let("row", number * tile + start))
                for first, parts, vectors in tiles(w.width // c, most):
                    with e.loop("columns", parts) as part:
                        column = wide(e.let("column", (part * vectors + first) * c))
                        self._weigh_tile(row, tile, column, vectors, place, count)

    def _weigh_tile(
        self, row: Any, tile: int, column: Any, vectors: int, place: Any, count: Any
    ) -> None:
        w, e, c = self.work, self.emit, self.value_lanes
        acc = e.local("acc", tile * vectors, vector_dtype("float32", c))
        for i in range(tile):
            factor = e.let("factor", broadcast(e.load(self.factor, row + i), c))
            for v in range(vectors):
                kept = e.load(self.sums, (row + i) * w.width + column + v * c, c)
                e.store(acc, i * vectors + v, kept * factor)

        def weigh(key: Any, powers: Sequence[Any]) -> None:
            values = [
                e.let("v", self._load(self.values, place + key * w.width + column + v * c, c))
                for v in range(vectors)
            ]
            for i, power in enumerate(powers):
                for v, value in enumerate(values):
                    at = i * vectors + v
                    e.store(acc, at, e.load(acc, at) + power * value)

        rows = [(row + i) * self.keys for i in range(tile)]
        done: Any = 0
        if self.by_lane and c == self.lanes:
            fours = e.let("fours", tirx.floordiv(count, tirx.IntImm("int32", c)))
            with e.loop("four", fours, wide=True) as four:
                held = [e.let("powers", e.load(self.logits, at + four * c, c)) for at in rows]
                for lane in range(c):
                    weigh(four * c + lane, [shuffle([each], [lane] * c) for each in held])
            done = e.let("done", fours * c)
        with e.loop("key", count - done, wide=True) as offset:
            key = offset + wide(done)
            single = [e.load(self.logits, at + key) for at in rows]
            weigh(key, [e.let("p", broadcast(power, c)) for power in single])
        for i in range(tile):
            for v in range(vectors):
                to = (row + i) * w.width + column + v * c
                e.store(self.sums, to, e.load(acc, i * vectors + v))

    def _finish(self) -> None:
        """Divide by the sums of powers; a row that saw nothing is zero."""
        w, e, c = self.work, self.emit, self.value_lanes
        with e.loop("row", self.rows) as row:
            step, head = self._query(row)
            factor = e.let("part", one_over(e.let("sum", e.load(self.total, row))))
            place = place_of(w, self.sequence, step, head, w.token_major_output)
            to = e.let("to", place * w.width)
            with e.loop("vector", w.width // c) as vector:
                at = e.let("at", vector * c)
                value = e.load(self.sums, row * w.width + at, c) * broadcast(factor, c)
                e.store(self.output, to + at, value)

    def _keep(self) -> None:
        """Write what is known of the rows after one span."""
        w, e, c = self.work, self.emit, self.value_lanes
        with e.loop("row", self.rows) as row:
            place = (self.plane * w.spans + self.span) * w.rows + self.first + row
            to = e.let("to", place * (w.width + 2))
            with e.loop("vector", w.width // c) as vector:
                at = e.let("at", vector * c)
                e.store(self.output, to + at, e.load(self.sums, row * w.width + at, c))
            e.store(self.output, to + w.width, e.load(self.total, row))
            e.store(self.output, to + (w.width + 1), e.load(self.largest, row))


def tiles(extent: int, most: int) -> list[tuple[int, int, int]]:
    """Return how to part an extent: where each kind of tile begins, how many there are, how long.

    >>> tiles(32, 6), tiles(8, 6), tiles(4, 6)
    ([(0, 5, 6), (30, 1, 2)], [(0, 2, 4)], [(0, 1, 4)])
    """
    count = math.ceil(extent / most)
    if extent % count == 0:
        return [(0, count, extent // count)]
    whole, rest = divmod(extent, most)
    return [(0, whole, most), (whole * most, 1, rest)]


TEMPLATE = undecided(CachedAttentionWorkload, emit_cached_attention)
