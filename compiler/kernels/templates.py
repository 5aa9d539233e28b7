"""All templates behind one interface, by the name of the Relax operator that each implements."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from edgec.compiler.kernels.conv.cost import default_decision, estimate_cycles
from edgec.compiler.kernels.conv.decision import ConvDecision, conv_space, flattened
from edgec.compiler.kernels.conv.direct import emit_conv
from edgec.compiler.kernels.conv.integer import (
    IntegerConvWorkload,
    default_integer_decision,
    emit_integer_conv,
    estimate_integer_cycles,
    integer_space,
    integer_weight_size,
    pack_integer_weight,
)
from edgec.compiler.kernels.conv.integer_depthwise import (
    DepthwiseDecision,
    IntegerDepthwiseWorkload,
    default_depthwise_decision,
    depthwise_space,
    emit_integer_depthwise,
    estimate_depthwise_cycles,
    pack_integer_depthwise,
)
from edgec.compiler.kernels.conv.integer_transpose import (
    IntegerConvTransposeWorkload,
    default_integer_conv_transpose_decision,
    emit_integer_conv_transpose,
    estimate_integer_conv_transpose_cycles,
    integer_conv_transpose_space,
    integer_conv_transpose_weight_size,
    pack_integer_transposed_weight,
)
from edgec.compiler.kernels.conv.sparse import (
    SparseConvWorkload,
    default_sparse_conv_decision,
    emit_sparse_conv,
    estimate_sparse_conv_cycles,
    sparse_conv_space,
)
from edgec.compiler.kernels.conv.transpose import (
    ConvTransposeWorkload,
    conv_transpose_space,
    conv_transpose_weight_size,
    default_conv_transpose_decision,
    emit_conv_transpose,
    estimate_conv_transpose_cycles,
    pack_transposed_weight,
)
from edgec.compiler.kernels.conv.weights import (
    block_size,
    pack_groups,
    pack_scales,
    pack_weight,
    packed_size,
)
from edgec.compiler.kernels.conv.winograd import (
    WinogradDecision,
    estimate_winograd_cycles,
    pack_winograd,
    winograd_size,
)
from edgec.compiler.kernels.conv.workload import ConvWorkload
from edgec.compiler.kernels.elementwise import ElementwiseWorkload, emit_elementwise
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.integer_elementwise import (
    IntegerElementwiseWorkload,
    emit_integer_elementwise,
)
from edgec.compiler.kernels.layout import (
    ChannelMapWorkload,
    GlobalPoolWorkload,
    PackWorkload,
    emit_channel_map,
    emit_global_pool,
    emit_pack,
)
from edgec.compiler.kernels.matmul.dense import (
    MatmulDecision,
    MatmulWorkload,
    default_matmul_decision,
    emit_matmul,
    estimate_matmul_cycles,
    matmul_space,
    pack_matrix,
    packed_matrix_size,
)
from edgec.compiler.kernels.matmul.integer import (
    IntegerMatmulWorkload,
    default_integer_matmul_decision,
    emit_integer_matmul,
    estimate_integer_matmul_cycles,
    integer_matmul_space,
    integer_matrix_size,
    pack_integer_matrix,
)
from edgec.compiler.kernels.matmul.sparse import (
    SparseMatmulWorkload,
    default_sparse_matmul_decision,
    emit_sparse_matmul,
    estimate_sparse_matmul_cycles,
    sparse_matmul_space,
)
from edgec.compiler.kernels.matmul.weight_only import (
    StoredMatmulWorkload,
    default_stored_matmul_decision,
    emit_stored_matmul,
    estimate_stored_matmul_cycles,
    pack_stored_matrix,
    stored_matmul_space,
    stored_matrix_size,
)
from edgec.compiler.kernels.pool import (
    PoolDecision,
    PoolWorkload,
    default_pool_decision,
    emit_pool,
    estimate_pool_cycles,
    pack_depthwise,
    pool_space,
)
from edgec.compiler.kernels.reduce_minmax import ExtremeWorkload, emit_extreme
from edgec.compiler.kernels.resize import ResizeWorkload, emit_resize
from edgec.compiler.kernels.softmax_norm import RowWorkload, emit_rows
from edgec.compiler.kernels.table_lookup import LookupWorkload, emit_lookup, pack_table
from edgec.targets.target import Target

Array = NDArray[Any]


@dataclass(frozen=True)
class OnlyDecision:
    """The decision of a template that leaves nothing to decide."""


@dataclass(frozen=True)
class Template:
    """One kind of kernel.

    Attributes:
        workload: its class.
        decision: its class, or a union of classes.
        space: decisions that make sense for a workload on a target.
        default: the one that the analytic model prefers.
        emit: writes the code.
        pack: brings a constant operand, by its position, into the order that the code reads.
        estimate: cycles by the analytic model, 0 where there is none.
        weight_size: values of a packed operand 1, where decisions differ in it.
    """

    workload: type[Any]
    decision: Any
    space: Callable[[Any, Target], Sequence[Any]]
    default: Callable[[Any, Target], Any]
    emit: Callable[[Any, Any, Target, str], Kernel]
    pack: Callable[[Any, Any, Target, int, Array], Array]
    estimate: Callable[[Any, Any, Target], float] = lambda _w, _d, _t: 0.0
    weight_size: Callable[[Any, Any, Target], int] | None = None


def _as_is(_workload: Any, _decision: Any, _target: Target, _position: int, array: Array) -> Array:
    return array


def _fixed(workload: type[Any], emit: Callable[[Any, Target, str], Kernel]) -> Template:
    only = OnlyDecision()
    return Template(
        workload=workload,
        decision=OnlyDecision,
        space=lambda _w, _t: [only],
        default=lambda _w, _t: only,
        emit=lambda w, _d, t, name: emit(w, t, name),
        pack=_as_is,
    )


def _pack_conv(
    workload: ConvWorkload,
    decision: ConvDecision | WinogradDecision,
    target: Target,
    position: int,
    array: Array,
) -> Array:
    c = target.float_lanes
    if isinstance(decision, WinogradDecision):
        return pack_winograd(workload, decision, array, c) if position == 1 else array
    if workload.scale_groups and position in (2, 3):
        scales = position == 2
        return pack_scales(decision, array, c) if scales else pack_groups(workload, array, c)
    if position != 1:
        return array
    return pack_weight(flattened(workload), decision, array, c, block_size(workload, c))


def _estimate_conv(
    workload: ConvWorkload, decision: ConvDecision | WinogradDecision, target: Target
) -> float:
    if isinstance(decision, WinogradDecision):
        return estimate_winograd_cycles(workload, decision, target)
    return estimate_cycles(workload, decision, target)


def _conv_weight_size(
    workload: ConvWorkload, decision: ConvDecision | WinogradDecision, target: Target
) -> int:
    if isinstance(decision, WinogradDecision):
        return winograd_size(workload, decision, target.float_lanes)
    return packed_size(flattened(workload), decision, target)


def _pack_integer_conv(
    workload: IntegerConvWorkload,
    decision: ConvDecision,
    target: Target,
    position: int,
    array: Array,
) -> Array:
    return pack_integer_weight(workload, decision, target, array) if position == 1 else array


def _pack_integer_conv_transpose(
    workload: IntegerConvTransposeWorkload,
    decision: ConvDecision,
    target: Target,
    position: int,
    array: Array,
) -> Array:
    if position != 1:
        return array
    return pack_integer_transposed_weight(workload, decision, target, array)


def _pack_integer_depthwise(
    workload: IntegerDepthwiseWorkload,
    _decision: DepthwiseDecision,
    target: Target,
    position: int,
    array: Array,
) -> Array:
    return pack_integer_depthwise(workload, target, array) if position == 1 else array


def _pack_conv_transpose(
    workload: ConvTransposeWorkload,
    decision: ConvDecision,
    target: Target,
    position: int,
    array: Array,
) -> Array:
    if position != 1:
        return array
    return pack_transposed_weight(workload, decision, array, target.float_lanes)


def _pack_pool(
    workload: PoolWorkload, _decision: PoolDecision, target: Target, position: int, array: Array
) -> Array:
    if position != 1 or workload.mode != "depthwise":
        return array
    return pack_depthwise(array, target.float_lanes)


def _pack_matmul(
    workload: MatmulWorkload, decision: MatmulDecision, _target: Target, position: int, array: Array
) -> Array:
    if not workload.packed or position == 0:
        return array
    if position == 1:
        return pack_matrix(array, decision)
    return _pad_channels(workload, decision, array)


def _pad_channels(workload: MatmulWorkload, decision: MatmulDecision, array: Array) -> Array:
    """An operand of a value for each column, padded to whole vectors."""
    if array.size != workload.n:
        return array
    return np.pad(array.reshape(-1), (0, -workload.n % decision.lanes))


def _pack_sparse_matmul(
    workload: SparseMatmulWorkload,
    decision: MatmulDecision,
    _target: Target,
    position: int,
    array: Array,
) -> Array:
    # A, and the lists, are as the kernel reads them.
    return array if position < 4 else _pad_channels(workload.matmul, decision, array)


def _pack_integer_matmul(
    workload: IntegerMatmulWorkload,
    decision: MatmulDecision,
    target: Target,
    position: int,
    array: Array,
) -> Array:
    if position == 1:
        return pack_integer_matrix(workload, decision, target, array)
    return _pack_matmul(workload.matmul, decision, target, position, array)


def _pack_stored_matmul(
    workload: StoredMatmulWorkload,
    decision: MatmulDecision,
    target: Target,
    position: int,
    array: Array,
) -> Array:
    if position == 1:
        return pack_stored_matrix(workload, decision, array)
    if 1 < position <= 1 + workload.parameters:
        return pack_matrix(array, decision)
    return _pack_matmul(workload.matmul, decision, target, position, array)


TEMPLATES: dict[str, Template] = {
    "edgec.channel_map": _fixed(ChannelMapWorkload, emit_channel_map),
    "edgec.conv": Template(
        ConvWorkload,
        ConvDecision | WinogradDecision,
        conv_space,
        default_decision,
        emit_conv,
        _pack_conv,
        _estimate_conv,
        _conv_weight_size,
    ),
    "edgec.conv_transpose": Template(
        ConvTransposeWorkload,
        ConvDecision,
        conv_transpose_space,
        default_conv_transpose_decision,
        emit_conv_transpose,
        _pack_conv_transpose,
        estimate_conv_transpose_cycles,
        conv_transpose_weight_size,
    ),
    "edgec.elementwise": _fixed(ElementwiseWorkload, emit_elementwise),
    "edgec.extreme": _fixed(ExtremeWorkload, emit_extreme),
    "edgec.global_pool": _fixed(GlobalPoolWorkload, emit_global_pool),
    "edgec.integer_conv": Template(
        IntegerConvWorkload,
        ConvDecision,
        integer_space,
        default_integer_decision,
        emit_integer_conv,
        _pack_integer_conv,
        estimate_integer_cycles,
        integer_weight_size,
    ),
    "edgec.integer_conv_transpose": Template(
        IntegerConvTransposeWorkload,
        ConvDecision,
        integer_conv_transpose_space,
        default_integer_conv_transpose_decision,
        emit_integer_conv_transpose,
        _pack_integer_conv_transpose,
        estimate_integer_conv_transpose_cycles,
        integer_conv_transpose_weight_size,
    ),
    "edgec.integer_depthwise": Template(
        IntegerDepthwiseWorkload,
        DepthwiseDecision,
        depthwise_space,
        default_depthwise_decision,
        emit_integer_depthwise,
        _pack_integer_depthwise,
        estimate_depthwise_cycles,
    ),
    "edgec.integer_elementwise": _fixed(IntegerElementwiseWorkload, emit_integer_elementwise),
    "edgec.integer_matmul": Template(
        IntegerMatmulWorkload,
        MatmulDecision,
        integer_matmul_space,
        default_integer_matmul_decision,
        emit_integer_matmul,
        _pack_integer_matmul,
        estimate_integer_matmul_cycles,
        integer_matrix_size,
    ),
    "edgec.lookup": replace(
        _fixed(LookupWorkload, emit_lookup),
        pack=lambda w, _d, t, position, array: pack_table(w, t, array) if position == 1 else array,
    ),
    "edgec.matmul": Template(
        MatmulWorkload,
        MatmulDecision,
        matmul_space,
        default_matmul_decision,
        emit_matmul,
        _pack_matmul,
        estimate_matmul_cycles,
        packed_matrix_size,
    ),
    "edgec.pack": _fixed(PackWorkload, emit_pack),
    "edgec.pool": Template(
        PoolWorkload,
        PoolDecision,
        pool_space,
        default_pool_decision,
        emit_pool,
        _pack_pool,
        estimate_pool_cycles,
    ),
    "edgec.resize": _fixed(ResizeWorkload, emit_resize),
    "edgec.rows": _fixed(RowWorkload, emit_rows),
    "edgec.sparse_conv": Template(
        SparseConvWorkload,
        ConvDecision,
        sparse_conv_space,
        default_sparse_conv_decision,
        emit_sparse_conv,
        _as_is,
        estimate_sparse_conv_cycles,
    ),
    "edgec.sparse_matmul": Template(
        SparseMatmulWorkload,
        MatmulDecision,
        sparse_matmul_space,
        default_sparse_matmul_decision,
        emit_sparse_matmul,
        _pack_sparse_matmul,
        estimate_sparse_matmul_cycles,
    ),
    "edgec.stored_matmul": Template(
        StoredMatmulWorkload,
        MatmulDecision,
        stored_matmul_space,
        default_stored_matmul_decision,
        emit_stored_matmul,
        _pack_stored_matmul,
        estimate_stored_matmul_cycles,
        stored_matrix_size,
    ),
}


def to_text(record: Any) -> str:
    """A workload or decision as one line of JSON, the same for equal ones.

    Fields that a class marks as `unsaid` appear only where they are not the default: records of
    before there was such a field stay valid.

    >>> to_text(PoolDecision(4))
    '{"tile_w":4}'
    """
    values = asdict(record)
    for item in fields(record):
        if item.metadata.get("unsaid") and values[item.name] == item.default:
            del values[item.name]
    return json.dumps(values, separators=(",", ":"))


def from_text(kind: Any, text: str) -> Any:
    """Inverse of `to_text`.

    >>> from_text(MatmulDecision, to_text(MatmulDecision(4, 2, 8)))
    MatmulDecision(tile_m=4, tile_n=2, lanes=8, rows_first=True)
    """
    return _adapter(kind).validate_json(text)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Return what reads a class; making it takes longer than a kernel does."""
    return TypeAdapter(kind)
