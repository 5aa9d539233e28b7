"""Provide decisions about a convolution by Winograd's algorithm, and what the model says of them.

`winograd.py` has the algorithm and the meaning of its parts.
"""

import math
from dataclasses import dataclass, field, replace

from edgec.compiler.kernels.conv.workload import ConvWorkload
from edgec.compiler.kernels.emit.epilogue import cost
from edgec.compiler.kernels.emit.machine_model import (
    FAR_BYTES_PER_CYCLE,
    FLOAT_BYTES,
    ISSUE_WIDTH,
    KIB,
    LOOP_STEP_INSTRUCTIONS,
    NEAR_BYTES_PER_CYCLE,
    PREFETCH_GAIN,
    TILE_START_CYCLES,
    half_l1,
    half_l2,
    imbalance_of,
    load_cycles,
    multiply_cycles,
    tile_room,
)
from edgec.targets.target import Target

# Rows and columns of output pixels in a tile.
TILE_SIZES = (2, 4)


@dataclass(frozen=True)
class WinogradDecision:
    """A winograd decision describes how the tiles of an image are computed.

    Attributes:
        register_tiles: tiles in a register tile.
        vectors: blocks of output channels in a register tile.
        repeats: register tiles in a task.
        out: rows and columns of output pixels in a tile, 2 or 4.
        splits: tasks that share the output channels of the same tiles; each makes its patches.
    """

    register_tiles: int
    vectors: int
    repeats: int
    out: int = 2
    splits: int = field(default=1, metadata={"omit_if_default": True})

    @property
    def patch(self) -> int:
        """Return rows and columns of input that a tile depends on."""
        return self.out + 2

    @property
    def positions(self) -> int:
        """Return values in a patch."""
        return self.patch**2


def suits_winograd(workload: ConvWorkload) -> bool:
    """Return whether a convolution is 3x3, of this kind, with weights known when compiling.

    Each of its outputs must see a part of the image: what sees padding alone is exactly 0, which
    differences of products are not.
    """
    sees_image = all(
        padding <= 2 and out - 1 - padding < extent
        for padding, out, extent in zip(
            workload.padding,
            (workload.out_h, workload.out_w),
            (workload.in_h, workload.in_w),
            strict=True,
        )
    )
    return (
        sees_image
        and workload.kernel == (3, 3)
        and workload.weight == "float32"
        and workload.stride == (1, 1)
        and workload.dilation == (1, 1)
        and workload.groups == 1
        and not workload.plain_input
        and workload.out_extent == (workload.out_h, workload.out_w)
        and min(workload.padding) >= 0
    )


def tiles_of(workload: ConvWorkload, out: int) -> tuple[int, int]:
    """Return rows and columns of tiles of `out` x `out` output pixels."""
    return math.ceil(workload.out_h / out), math.ceil(workload.out_w / out)


def winograd_space(workload: ConvWorkload, target: Target) -> list[WinogradDecision]:
    """Return decisions whose register tile fits the registers, its patches and products a stack."""
    if not suits_winograd(workload):
        return []
    blocks = math.ceil(workload.out_channels / target.float_lanes)
    channels = math.ceil(workload.in_channels / target.float_lanes) * target.float_lanes
    decisions = []
    for out in TILE_SIZES:
        count = math.prod(tiles_of(workload, out))
        for vectors in range(1, min(blocks, 4) + 1):
            room = tile_room(vectors, target)
            for tiles in range(1, min(count, room) + 1):
                for repeats in (1, 2, 3, 4, 6, 8):
                    decision = WinogradDecision(tiles, vectors, repeats, out)
                    values = channels + vectors * target.float_lanes
                    held = decision.positions * tiles * repeats * values * FLOAT_BYTES
                    if tiles * repeats <= count and held <= STACK_BYTES:
                        tasks = workload.batch * math.ceil(count / (tiles * repeats))
                        most = math.ceil(blocks / vectors) if tasks < FEW_TASKS else 1
                        splits = range(1, min(target.cores, most) + 1)
                        decisions += [replace(decision, splits=number) for number in splits]
    return decisions


# As many tasks keep up to four cores busy without sharing output channels.
FEW_TASKS = 12


# What patches and products may take of a thread's stack: threads have 8 MiB on Linux. More than the
# second-level cache pays where the weights are many: they are read once for each task.
STACK_BYTES = 2 * KIB * KIB


def estimate_winograd_cycles(
    workload: ConvWorkload, decision: WinogradDecision, target: Target
) -> float:
    """Return the cycles by `cost.estimate_cycles` for the products, and passes for the transforms.

    Fitted to 120 kernels of random decisions on a Zen 4, of which it is within a quarter, relative
    to each other; the one that it prefers takes at most an eighth longer than the best of them.
    """
    c = target.float_lanes
    tiles, vectors = decision.register_tiles, decision.vectors
    in_blocks = math.ceil(workload.in_channels / c)
    all_out_tiles = math.ceil(math.ceil(workload.out_channels / c) / vectors)
    out_tiles = math.ceil(all_out_tiles / decision.splits)
    block = tiles * decision.repeats
    blocks = workload.batch * math.ceil(math.prod(tiles_of(workload, decision.out)) / block)
    tasks = blocks * decision.splits
    fmas = tiles * vectors
    load, issue = (
        load_cycles(tiles, vectors, target),
        (fmas + tiles + vectors + LOOP_STEP_INSTRUCTIONS) / ISSUE_WIDTH,
    )
    step = max(multiply_cycles(fmas, target), load, issue)
    depth = workload.in_channels
    around = TILE_START_CYCLES + MOVE_CYCLES * fmas
    products = out_tiles * decision.positions * decision.repeats * (depth * step + around)
    transform = TRANSFORM_CYCLES_PER_VALUE[decision.out] * decision.positions
    gather = block * in_blocks * transform
    scatter = block * out_tiles * vectors * (transform + 2 * cost(workload.epilogue))
    panel_bytes = FLOAT_BYTES * depth * vectors * c
    weight_bytes = decision.positions * panel_bytes * all_out_tiles
    patch_bytes = FLOAT_BYTES * decision.positions * depth * block
    product_bytes = FLOAT_BYTES * decision.positions * block * vectors * c
    # Each repetition reads the weights of a position again, most of which it has asked for in time.
    near = weight_bytes / decision.splits / PREFETCH_GAIN
    if panel_bytes > half_l1(target):
        near *= decision.repeats
    if product_bytes > target.l1d_kib * KIB:
        near += out_tiles * 2 * product_bytes
    # Patches are fetched to be overwritten, and written back; products read them in order.
    far = 0.0
    if patch_bytes + product_bytes + panel_bytes > half_l2(target):
        far = (2 + out_tiles / IN_ORDER_GAIN) * patch_bytes
    else:
        near += 2 * patch_bytes
    task = products + gather + scatter + near / NEAR_BYTES_PER_CYCLE + far / FAR_BYTES_PER_CYCLE
    again = blocks if weight_bytes > half_l2(target) else 1
    # What no cache holds comes over a bus that all cores share, and two of them fill.
    held = weight_bytes <= max(target.l2_kib, target.l3_kib) * KIB
    sharing = 1.0 if held else max(1.0, target.cores / 2)
    fetch = sharing * weight_bytes / FAR_BYTES_PER_CYCLE
    # Weights come while a task computes; where it computes little, it waits for most of them.
    waits = again * max(fetch / PREFETCH_GAIN, fetch - task * tasks / again / 2)
    image_bytes = FLOAT_BYTES * workload.in_channels * workload.in_h * workload.in_w
    image = workload.batch * image_bytes / FAR_BYTES_PER_CYCLE
    return tasks * task * imbalance_of(tasks, target) + waits + image


# Loads, operations and stores of a value of a patch or tile, by rows of output pixels in a tile.
TRANSFORM_CYCLES_PER_VALUE = {2: 2.5, 4: 4.0}
# To move an accumulator between memory and a register.
MOVE_CYCLES = 2
# How much less a core waits for what it reads in order, several times.
IN_ORDER_GAIN = 8.0
