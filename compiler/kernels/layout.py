"""Provide kernels that move values and compute nothing: between layouts, and along channels."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx

from edgec.compiler.kernels.emit.emitter import Emitter, wide
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.emit.quantized_values import load_as_float
from edgec.compiler.kernels.template import undecided
from edgec.compiler.kernels.vectors import constant, shuffle, vector_dtype
from edgec.targets.target import Target


@dataclass(frozen=True)
class PackWorkload:
    """A pack workload describes the layout change of [N, C, plane] to [N, B, plane, c], or back.

    Attributes:
        batch: N.
        channels: C.
        plane: values of one channel of one image, H * W.
        unpack: from blocked to plain.
        dtype: the dtype of the values.
        depth: images of a volume: the plain side is [N / depth, C, depth, plane].
    """

    batch: int
    channels: int
    plane: int
    unpack: bool = False
    dtype: str = "float32"
    depth: int = 1

    @property
    def macs(self) -> int:
        """Return values moved."""
        return self.batch * self.channels * self.plane


def emit_pack(workload: PackWorkload, target: Target, name: str) -> Kernel:
    """Write the kernel; its buffers are data and output. Padding channels become zero.

    One task is one block of channels. A square of c channels and c positions is read by rows
    into vectors and transposed in registers; what is left over goes value by value.
    """
    w, c = workload, target.float_lanes
    blocks, apart = math.ceil(w.channels / c), w.depth * w.plane
    e = Emitter(target)
    plain, blocked = w.batch * w.channels * w.plane, w.batch * blocks * w.plane * c
    data = e.buffer("data", blocked if w.unpack else plain, w.dtype)
    output = e.buffer("output", plain if w.unpack else blocked, w.dtype)
    with e.tasks() as task:
        block = e.let("block", tirx.floormod(task, blocks))
        image = e.let("image", tirx.floordiv(task, blocks))
        volume, number = tirx.floordiv(image, w.depth), tirx.floormod(image, w.depth)
        channel = volume * w.channels + block * c
        first = e.let("first", (channel * w.depth + number) * w.plane)
        packed = e.let("packed", task * (w.plane * c))
        past = tirx.IntImm("int32", w.channels) - block * c
        count = e.let("count", tirx.min(tirx.IntImm("int32", c), past))
        squares = w.plane // c if c > 1 else 0
        # Channels of a few alone are rows of zeros. LLVM itself interleaves four.
        few = blocks == 1 and c > 4 and not w.unpack
        if squares:
            with ExitStack() as stack:
                if not few:
                    stack.enter_context(e.branch(count == c))
                square = stack.enter_context(e.loop("square", squares, wide=True))
                rows = [
                    e.let("row", _row(e, data, first, packed, square, lane, w, c))
                    if not few or lane < w.channels
                    else constant(0, w.dtype, c)
                    for lane in range(c)
                ]
                for lane, vector in enumerate(transpose_square(e, rows)):
                    if w.unpack:
                        place = wide(first + lane * apart) + square * c
                    else:
                        place = wide(packed) + (square * c + lane) * c
                    e.store(output, place, vector)
        whole = squares * c
        skip = whole
        if whole and not few:
            skip = e.let("skip", tirx.Select(count == c, whole, 0))
        with e.loop("position", w.plane - skip, skip) as position:
            with e.loop("lane", count) as lane:
                there, here = first + lane * apart + position, packed + position * c + lane
                source, to = (here, there) if w.unpack else (there, here)
                e.store(output, to, e.load(data, source))
            if not w.unpack:
                with e.loop("padding", tirx.IntImm("int32", c) - count) as padding:
                    zero = tirx.const(0, w.dtype)
                    e.store(output, packed + position * c + count + padding, zero)
    return Kernel(e.function(name), w.batch * blocks)


def _row(
    e: Emitter, data: Any, first: Any, packed: Any, square: Any, lane: int, w: PackWorkload, c: int
) -> Any:
    if w.unpack:
        return e.load(data, wide(packed) + (square * c + lane) * c, c)
    return e.load(data, wide(first + lane * w.depth * w.plane) + square * c, c)


def transpose_square(e: Emitter, rows: list[Any]) -> list[Any]:
    """Transpose a square of vectors by log2(c) rounds of interleaving."""
    c = len(rows)
    # After each round vector i interleaves vectors i and i + c / 2 of the round before.
    vectors = rows
    for _ in range(int(math.log2(c))):
        half = c // 2
        low = [lane for pair in range(half) for lane in (pair, c + pair)]
        high = [lane for pair in range(half, c) for lane in (pair, c + pair)]
        following = []
        for index in range(half):
            pair = [vectors[index], vectors[index + half]]
            following += [e.let("t", shuffle(pair, low)), e.let("t", shuffle(pair, high))]
        vectors = following
    return vectors


@dataclass(frozen=True)
class ChannelMapWorkload:
    """This workload picks the channels of a blocked tensor from those of others.

    Concat, split, shuffle.

    Attributes:
        batch: N.
        plane: H * W.
        inputs: channels of each input.
        picks: for each output channel the input and its channel there.
        dtype: the dtype of the values.
    """

    batch: int
    plane: int
    inputs: tuple[int, ...]
    picks: tuple[tuple[int, int], ...]
    dtype: str = "float32"

    @property
    def macs(self) -> int:
        """Return values moved."""
        return self.batch * self.plane * len(self.picks)


def emit_channel_map(workload: ChannelMapWorkload, target: Target, name: str) -> Kernel:
    """Write the kernel; its buffers are the inputs and output.

    Each output vector is put together from the few input vectors that hold its channels. One
    task is one image line of positions for all blocks.
    """
    w, c = workload, target.float_lanes
    blocks = math.ceil(len(w.picks) / c)
    e = Emitter(target)
    in_blocks = [math.ceil(channels / c) for channels in w.inputs]
    inputs = [
        e.buffer(f"data{number}", w.batch * count * w.plane * c, w.dtype)
        for number, count in enumerate(in_blocks)
    ]
    output = e.buffer("output", w.batch * blocks * w.plane * c, w.dtype)
    with e.tasks() as task:
        block = e.let("block", tirx.floormod(task, blocks))
        image = e.let("image", tirx.floordiv(task, blocks))
        to = e.let("to", task * (w.plane * c))
        for run in _runs(w.picks, c):
            inside = tirx.all(block >= run.first, block < run.first + run.count)
            with e.branch(inside), e.loop("position", w.plane) as position:
                vectors = []
                for source, from_block in run.sources:
                    read = image * in_blocks[source] + from_block + (block - run.first)
                    base = read * w.plane + position
                    vectors.append(e.let("v", e.load(inputs[source], base * c, c)))
                value = vectors[0]
                if len(vectors) > 1 or list(run.lanes) != list(range(c)):
                    value = shuffle(vectors, run.lanes)
                e.store(output, to + position * c, value)
    return Kernel(e.function(name), w.batch * blocks)


@dataclass(frozen=True)
class _Run:
    """A run describes consecutive output blocks that are put together alike.

    Each from the next input blocks.

    Attributes:
        first: its first output block.
        count: how many.
        sources: input and block that each vector of the first output block is read from.
        lanes: the lanes of these vectors, one after the other.
    """

    first: int
    count: int
    sources: tuple[tuple[int, int], ...]
    lanes: tuple[int, ...]


def _runs(picks: Sequence[tuple[int, int]], c: int) -> list[_Run]:
    """Return output blocks of a channel map, those put together alike as one.

    >>> [run.count for run in _runs([(0, i) for i in range(7)] + [(1, 0)], 2)]
    [3, 1]
    """
    runs: list[_Run] = []
    for number in range(math.ceil(len(picks) / c)):
        chosen = picks[number * c : number * c + c]
        sources = tuple(sorted({(source, channel // c) for source, channel in chosen}))
        lanes = [sources.index((source, at // c)) * c + at % c for source, at in chosen]
        # Past the last channel anything goes: more of the same, so that it joins the others.
        lanes += range(len(lanes), c) if lanes == list(range(len(lanes))) else []
        lanes += [lanes[0]] * (c - len(lanes))
        if runs:
            last = runs[-1]
            expected = tuple((source, block + last.count) for source, block in last.sources)
            if (sources, tuple(lanes)) == (expected, last.lanes):
                runs[-1] = replace(last, count=last.count + 1)
                continue
        runs.append(_Run(number, 1, sources, tuple(lanes)))
    return runs


@dataclass(frozen=True)
class GlobalPoolWorkload:
    """This workload takes the mean, sum or largest value of each channel's plane, blocked.

    Attributes:
        mode: what is computed.
        batch: N.
        channels: C.
        plane: H * W.
        data: dtype of the input; quantized values are read without their scale.
        zero_point: the zero point of its quantized values.
    """

    mode: str
    batch: int
    channels: int
    plane: int
    data: str = "float32"
    zero_point: int = 0

    @property
    def macs(self) -> int:
        """Return values read."""
        return self.batch * self.channels * self.plane

    def accumulates_quantized(self, lanes: int) -> bool:
        """Return whether it accumulates quantized values exactly, of at least four pixels."""
        exact = self.plane * 255 < 2**24
        summed = self.data != "float32" and self.mode != "max"
        return summed and exact and lanes > 1 and self.plane >= 4


# Vectors of four pixels whose quantized values an int16 can accumulate.
_VECTORS_PER_INT16 = 64


def _accumulate_quantized(e: Emitter, data: Any, start: Any, plane: int, c: int) -> Any:
    """Accumulate the quantized values of a plane of blocks of c channels in int32."""
    width, words, sums = 4 * c, f"int16x{2 * c}", f"int32x{c}"
    vectors = plane // 4
    total = e.local("total", 1, sums)
    e.store(total, 0, constant(0, "int32", c))
    part = e.local("part", 1, words)
    chunks = math.ceil(vectors / _VECTORS_PER_INT16)
    with e.loop("chunk", chunks) as chunk:
        e.store(part, 0, constant(0, "int16", 2 * c))
        first = e.let("first", chunk * _VECTORS_PER_INT16)
        count = tirx.min(tirx.IntImm("int32", _VECTORS_PER_INT16), vectors - first)
        with e.loop("vector", vectors if chunks == 1 else e.let("count", count)) as vector:
            quantized = e.let("codes", e.load(data, start + (first + vector) * width, width))
            for half in range(2):
                picked = shuffle([quantized], range(half * 2 * c, (half + 1) * 2 * c))
                e.store(part, 0, e.load(part, 0) + tirx.Cast(words, picked))
        found = e.let("part", e.load(part, 0))
        for half in range(2):
            picked = shuffle([found], range(half * c, (half + 1) * c))
            e.store(total, 0, e.load(total, 0) + tirx.Cast(sums, picked))
    for pixel in range(4 * vectors, plane):
        quantized = tirx.Cast(sums, e.load(data, start + pixel * c, c))
        e.store(total, 0, e.load(total, 0) + quantized)
    return e.load(total, 0)


def _combined(e: Emitter, w: GlobalPoolWorkload, data: Any, start: Any, c: int) -> Any:
    """Return the sum or largest value of a plane, as floats."""
    chains = max(1, min(8, w.plane))
    combine = tirx.max if w.mode == "max" else lambda x, y: x + y

    def read(at: Any) -> Any:
        return load_as_float(e, data, at, c, w.zero_point)

    acc = e.local("acc", chains, vector_dtype("float32", c))
    for chain in range(chains):
        e.store(acc, chain, read(start + chain * c))
    rounds = w.plane // chains
    with e.loop("round", rounds - 1, 1) as number:
        base = e.let("base", start + number * (chains * c))
        for chain in range(chains):
            value = read(base + chain * c)
            e.store(acc, chain, combine(e.load(acc, chain), value))
    for index in range(rounds * chains, w.plane):
        value = read(start + index * c)
        e.store(acc, 0, combine(e.load(acc, 0), value))
    total = e.load(acc, 0)
    for chain in range(1, chains):
        total = combine(total, e.load(acc, chain))
    return total


def emit_global_pool(workload: GlobalPoolWorkload, target: Target, name: str) -> Kernel:
    """Write the kernel; its buffers are data [N, B, plane, c] and output [N, B, c]."""
    w, c = workload, target.float_lanes
    blocks = math.ceil(w.channels / c)
    e = Emitter(target)
    data = e.buffer("data", w.batch * blocks * w.plane * c, w.data)
    output = e.buffer("output", w.batch * blocks * c, "float32")
    with e.tasks() as task:
        start = e.let("start", task * (w.plane * c))
        if w.accumulates_quantized(c):
            whole = _accumulate_quantized(e, data, start, w.plane, c)
            zeros = constant(w.plane * w.zero_point, "int32", c)
            total = tirx.Cast(vector_dtype("float32", c), whole - zeros)
        else:
            total = _combined(e, w, data, start, c)
        if w.mode == "mean":
            total = total * constant(1 / w.plane, "float32", c)
        e.store(output, task * c, total)
    return Kernel(e.function(name), w.batch * blocks)


PACK_TEMPLATE = undecided(PackWorkload, emit_pack)
CHANNEL_MAP_TEMPLATE = undecided(ChannelMapWorkload, emit_channel_map)
GLOBAL_POOL_TEMPLATE = undecided(GlobalPoolWorkload, emit_global_pool)
