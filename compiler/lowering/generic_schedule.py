"""Provide the rule for functions that no template covers.

Vectorize inside, run in parallel outside.

It knows nothing about what a function computes, only which loops carry no dependence.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir import Call, PointerType, PrimType, TensorLoad
from tvm.sym import Analyzer
from tvm.tirx.stmt import IterVar

from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.emit.vector_math import FUNCTIONS
from edgec.targets.target import Target

# Below this many iterations of all loops together a block is one task.
PARALLEL_GRAIN = 4096

# An element that sums read more often is computed before them.
MOST_READS = 8
# Loads that the copies of an inlined element may have together: a chain of elements that are read
# several times each would grow with the power of its length.
MOST_LOADS = 32
# Rows and vectors of columns of a tile of sums.
TILE_ROWS, TILE_VECTORS = 4, 2

# What only the C library has, for one element.
_OF_THE_C_LIBRARY = frozenset({"cosh", "sinh"})
# What TVM computes in float32 and float64 only.
_NOT_IN_HALF = _OF_THE_C_LIBRARY | {"acos", "acosh", "asin", "asinh", "atan", "atanh"}


def schedule_generic(function: tirx.PrimFunc, target: Target) -> tirx.PrimFunc:
    """Schedule every block of a function with static shapes.

    Elementwise producers are inlined first. In each block that is left, the outer spatial
    loops are fused and marked parallel, and the innermost spatial loop is vectorized if it is
    the innermost loop of all, or if its neighbours are in memory: sums then are tiles in
    registers. A function that TVM wrote as plain loops stays as it is.
    """
    if not has_root_block(function):
        return function
    try:
        return _scheduled(function, target, tiles=True)
    except s_tir.ScheduleError:
        # Several results of one reduction, for example.
        return _scheduled(function, target, tiles=False)


def _scheduled(function: tirx.PrimFunc, target: Target, tiles: bool) -> tirx.PrimFunc:
    """Return a function with all blocks scheduled; `tiles` allows tiles of sums."""
    schedule = s_tir.Schedule(_with_infinite_starts(function))
    root = schedule.get_sblock("root")
    for block in schedule.get_child_blocks(root):
        _inline(schedule, block)
    for block in schedule.get_child_blocks(root):
        _schedule_block(schedule, block, target, tiles)
    # The schedule gave it a public name of its own.
    return schedule.mod["main"].without_attr("global_symbol")


def has_root_block(function: tirx.PrimFunc) -> bool:
    """Return whether a function is made of blocks that a schedule can change."""
    body = function.body
    return isinstance(body, s_tir.SBlockRealize) and body.block.name_hint == "root"


def _with_infinite_starts(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Let a maximum start from minus infinity, where TVM takes the least finite number.

    Otherwise the maximum of nothing but minus infinities would be finite.
    """

    def replace(block: s_tir.SBlock) -> Any:
        start = block.init
        if not isinstance(start, tirx.BufferStore) or not isinstance(start.value, tirx.FloatImm):
            return block
        dtype, value = str(start.value.ty.dtype), float(start.value.value)
        if abs(value) != float(ml_dtypes.finfo(dtype).max):
            return block
        infinite = tirx.const(math.copysign(math.inf, value), dtype)
        store = tirx.BufferStore(start.buffer, infinite, start.indices)
        return s_tir.SBlock(
            block.iter_vars,
            block.reads,
            block.writes,
            block.name_hint,
            block.body,
            store,
            block.alloc_buffers,
            block.match_buffers,
            block.annotations,
        )

    body = tvm_ffi.structural_map(function.body, [(s_tir.SBlock, replace)])
    return tirx.PrimFunc(function.params, body, function.ret_type, attrs=function.attrs)


def _inline(schedule: s_tir.Schedule, block: Any) -> None:
    """Inline a block into its consumers if it only computes elements from elements.

    One whose elements a sum reads many times, or whose copies would be long, is computed once, into
    memory.
    """
    consumers = schedule.get_consumers(block)
    if not consumers or not _is_spatial(schedule, block):
        return
    size = _iterations(schedule, block)
    if any(
        not _is_spatial(schedule, consumer) and _iterations(schedule, consumer) > MOST_READS * size
        for consumer in consumers
    ):
        return
    found = schedule.get(block)
    results = [region.source for region in found.writes]
    copies = sum(len(_loads(schedule.get(consumer), results)) for consumer in consumers)
    if copies > 1 and copies * len(_loads(found)) > MOST_LOADS:
        return
    try:
        schedule.compute_inline(block)
    except s_tir.ScheduleError:
        # A consumer that reads it through more than one index, for example.
        return


def _loads(block: s_tir.SBlock, buffers: Sequence[Any] | None = None) -> list[Any]:
    """Return what a block loads, each as often as it does, from any buffer or from some."""
    found: list[Any] = []
    tvm_ffi.structural_walk(block.body, [(TensorLoad, found.append)])
    if buffers is None:
        return found
    return [load for load in found if any(load.source.same_as(buffer) for buffer in buffers)]


def _is_spatial(schedule: s_tir.Schedule, block: Any) -> bool:
    return all(v.iter_type == IterVar.DataPar for v in schedule.get(block).iter_vars)


def _iterations(schedule: s_tir.Schedule, block: Any) -> int:
    """Return how often a block runs; 0 if only a run tells."""
    extents = [variable.dom.extent for variable in schedule.get(block).iter_vars]
    known = [int(extent) for extent in extents if isinstance(extent, tirx.IntImm)]
    return math.prod(known) if len(known) == len(extents) else 0


def _schedule_block(schedule: s_tir.Schedule, block: Any, target: Target, tiles: bool) -> None:
    kinds = [variable.iter_type for variable in schedule.get(block).iter_vars]
    loops = schedule.get_loops(block)
    if len(loops) != len(kinds) or not loops:
        return
    extents = [schedule.get(loop).extent for loop in loops]
    if not all(isinstance(extent, tirx.IntImm) for extent in extents):
        return
    sizes = [int(extent) for extent in extents]
    if 0 in sizes:
        return
    spatial = 0
    while spatial < len(kinds) and kinds[spatial] == IterVar.DataPar:
        spatial += 1
    if spatial == 0:
        return
    total = math.prod(sizes)
    if tiles and 0 < spatial < len(kinds) and _reads_neighbours(schedule, block, spatial - 1):
        lanes = math.gcd(sizes[spatial - 1], target.float_lanes)
        if lanes > 1 and total // math.prod(sizes[:spatial]) > 1:
            _tile_sums(schedule, block, spatial, sizes, lanes)
            return
    if spatial == len(kinds):
        # Vectors along the last dimension, where memory is contiguous.
        lanes = math.gcd(sizes[-1], target.float_lanes)
        if lanes > 1:
            _, inner = schedule.split(loops[-1], [None, lanes])
            schedule.vectorize(inner)
        spatial -= 1
    if spatial == 0:
        return
    fused = schedule.fuse(*loops[:spatial]) if spatial > 1 else loops[0]
    if total >= PARALLEL_GRAIN:
        schedule.parallel(fused)


def _reads_neighbours(schedule: s_tir.Schedule, block: Any, place: int) -> bool:
    """Return whether neighbours along a loop read neighbours in memory, or the same."""
    found = schedule.get(block)
    variable = found.iter_vars[place].var
    analyzer, neighbours = Analyzer(), False

    def following(expression: Any) -> Any:
        moved = [(tirx.Var, lambda v: v + 1 if v.same_as(variable) else v)]
        return tvm_ffi.structural_map(expression, moved)

    for region in found.reads:
        steps = [analyzer.simplify(following(r.min) - r.min) for r in region.region]
        if not all(isinstance(step, tirx.IntImm) for step in steps):
            return False
        *outer, last = [int(step) for step in steps]
        if any(outer) or last not in (0, 1):
            return False
        neighbours |= last == 1
    return neighbours


def _tile_sums(
    schedule: s_tir.Schedule, block: Any, spatial: int, sizes: list[int], lanes: int
) -> None:
    """Compute a tile of sums in registers: some rows of vectors, while one loop nest reduces."""
    loops = schedule.get_loops(block)
    reduced = loops[spatial:]
    vectors = math.gcd(sizes[spatial - 1] // lanes, TILE_VECTORS)
    outer, vector, lane = schedule.split(loops[spatial - 1], [None, vectors, lanes])
    before = list(loops[: spatial - 1])
    inside = [vector, lane]
    if before:
        rows = math.gcd(sizes[spatial - 2], TILE_ROWS)
        before[-1], row = schedule.split(before[-1], [None, rows])
        inside = [row, *inside]
    schedule.reorder(*before, outer, *reduced, *inside)
    tile = schedule.cache_write(block, 0, "local")
    schedule.reverse_compute_at(tile, outer)
    _in_registers(schedule, inside)
    _, last = schedule.split(schedule.get_loops(tile)[-1], [None, lanes])
    schedule.vectorize(last)
    fused = schedule.fuse(*before, outer) if before else outer
    if math.prod(sizes) >= PARALLEL_GRAIN:
        schedule.parallel(fused)
    # Last of all: then it is no reduction any more, and no loop of it may change.
    start = schedule.decompose_reduction(block, reduced[0])
    _in_registers(schedule, schedule.get_loops(start)[-len(inside) :])


def _in_registers(schedule: s_tir.Schedule, loops: Sequence[Any]) -> None:
    """Make the last loop a vector and unroll those around it."""
    *unrolled, last = loops
    for loop in unrolled:
        schedule.unroll(loop)
    schedule.vectorize(last)


def to_kernel(function: tirx.PrimFunc, target: Target, name: str) -> Kernel:
    """Return a scheduled function in the form of a kernel: pointers, then the range of tasks.

    If the function is one parallel loop, its iterations are the tasks; else it is one task.
    """
    pointers, declarations = [], []
    for buffer in function.params:
        dtype = str(buffer.ty.dtype.dtype)
        pointer = tirx.Var(f"{buffer.name}_pointer", PointerType(PrimType(dtype)))
        pointers.append(pointer)
        if isinstance(buffer.elem_offset, tirx.Var):
            # A function that TVM wrote by hand leaves open where in its memory a buffer begins.
            declarations.append(tirx.Bind(buffer.elem_offset, tirx.IntImm("int64", 0)))
        declarations.append(tirx.DeclBuffer(buffer, data=pointer))
    begin, end = tirx.Var("begin", "int32"), tirx.Var("end", "int32")
    body = tirx.SeqStmt([*declarations, _with_vector_math(_with_nan(function.body))])
    raw = tirx.PrimFunc([*pointers, begin, end], body)
    raw = raw.with_attrs({"global_symbol": name, "tirx.noalias": True})
    lowered = _lower(raw, target)
    statements, tasks = _split_tasks(list(_statements(lowered.body)), begin, end)
    # Large temporaries come from the runtime, which wants to know the device.
    body = tirx.SeqStmt(statements) if len(statements) > 1 else statements[0]
    for attribute, value in (("device_id", 0), ("device_type", 1)):
        body = tirx.AttrStmt(tirx.IntImm("int32", 0), attribute, tirx.IntImm("int32", value), body)
    # An allocation that fails makes it return early, so it returns a status.
    body = tirx.SeqStmt([body, tirx.Return(tirx.IntImm("int32", 0))])
    final = tirx.PrimFunc(lowered.params, body, PrimType("int32"))
    final = final.with_attrs(dict(lowered.attrs))
    module = tirx.transform.LowerTVMBuiltin()(tvm.IRModule({name: final}))
    return Kernel(module[name], tasks)


def _with_vector_math(body: Any) -> Any:
    """Replace what LLVM has no vectors of by what it has, before loops become vectors.

    TVM counts all of these functions among those that vectors have. Calls of the C library stay
    calls, one for each element.
    """

    def replace(call: Any) -> Any:
        operator = getattr(call.op, "name", "").removeprefix("tirx.")
        dtype = str(call.ty.dtype)
        if operator in FUNCTIONS and dtype == "float32":
            return _of_variable(FUNCTIONS[operator], call.args[0])
        if operator in _NOT_IN_HALF and dtype in ("float16", "bfloat16"):
            argument = call.args[0].astype("float32")
            if operator in FUNCTIONS:
                # Without a variable: a narrowing, as it is lowered, repeats its operand.
                return FUNCTIONS[operator](argument).astype(dtype)
            return replace(getattr(tirx, operator)(argument)).astype(dtype)
        if operator in _OF_THE_C_LIBRARY:
            name = f"{operator}f" if dtype == "float32" else operator
            return tirx.call_pure_extern(dtype, name, call.args[0])
        return call

    return tvm_ffi.structural_map(body, [(Call, replace)])


def _of_variable(function: Callable[[Any], Any], argument: Any) -> Any:
    """Return a function of an argument that is computed once.

    It stands in the result several times: functions of functions would grow with its power.
    """
    value = tirx.Var("argument", str(argument.ty.dtype))
    return tirx.Let(value, argument, function(value))


def _with_nan(body: Any) -> Any:
    """Let NaN pass through maxima and minima of floats, as it does in ONNX.

    A comparison with NaN is false, and then the second operand is the result. With a number as
    the first one NaN passes for no more instructions.
    """

    def replace(node: Any) -> Any:
        dtype = str(node.ty.dtype)
        if not dtype.startswith(("float", "bfloat")):
            return node
        kind = type(node)
        if isinstance(node.b, tirx.FloatImm):
            return kind(node.b, node.a)
        if isinstance(node.a, tirx.FloatImm):
            return node
        if dtype == "bfloat16":
            # Without a variable: a narrowing from float32, as this is lowered, repeats its operand.
            a, b = node.a.astype("float32"), node.b.astype("float32")
            return tirx.Select(tirx.isnan(a), a, kind(a, b)).astype(dtype)
        value = tirx.Var("value", dtype)
        kept = tirx.isnan(value.astype("float32") if dtype == "float16" else value)
        return tirx.Let(value, node.a, tirx.Select(kept, value, kind(value, node.b)))

    return tvm_ffi.structural_map(body, [(tirx.Max, replace), (tirx.Min, replace)])


def _lower(function: tirx.PrimFunc, target: Target) -> tirx.PrimFunc:
    """Return TVM's own lowering, up to the calling convention."""
    s, t = s_tir.transform, tirx.transform
    passes = tvm.ir.transform.Sequential(
        [
            t.BindTarget(tvm.target.Target(target.llvm()).with_host(target.llvm())),
            s.CanonicalizeLoop(),
            s.LowerInitBlock(),
            s.PlanAndUpdateBufferAllocationLocation(),
            s.ConvertBlocksToOpaque(),
            s.CompactBufferAllocation(),
            s.LowerMatchBuffer(),
            s.StmtSimplify(),
            s.LowerOpaqueBlock(),
            t.FlattenBuffer(),
            t.BF16ComputeLegalize(),
            t.NarrowDataType(32),
            s.LoopPartition(),
            t.VectorizeLoop(True),
            t.StorageRewrite(),
            t.UnrollLoop(),
            s.RenormalizeSplitPattern(),
            t.StmtSimplify(),
            t.RemoveNoOp(),
            s.RewriteUnsafeSelect(),
            t.CommonSubexprElim(),
            t.BF16StorageLegalize(),
        ]
    )
    return passes(tvm.IRModule({"kernel": function}))["kernel"]


def _statements(body: Any) -> list[Any]:
    return list(body.seq) if isinstance(body, tirx.SeqStmt) else [body]


def _split_tasks(statements: list[Any], begin: Any, end: Any) -> tuple[list[Any], int]:
    """Make a sole parallel loop the loop over tasks, and every other one serial."""
    loops = [s for s in statements if not isinstance(s, tirx.DeclBuffer | tirx.Bind)]
    tasks = 1
    if len(loops) == 1 and isinstance(loops[0], tirx.For):
        (loop,) = loops
        if loop.kind == tirx.ForKind.PARALLEL and isinstance(loop.extent, tirx.IntImm):
            tasks = int(loop.extent)
            kind = str(loop.loop_var.ty.dtype)
            start, count = tirx.Cast(kind, begin), tirx.Cast(kind, end - begin)
            ranged = tirx.For(loop.loop_var, start, count, tirx.ForKind.SERIAL, _serial(loop.body))
            return [ranged if s.same_as(loop) else s for s in statements], tasks
    return [_serial(s) for s in statements], tasks


def _serial(statement: Any) -> Any:
    def replace(loop: tirx.For) -> Any:
        if loop.kind != tirx.ForKind.PARALLEL:
            return loop
        return tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, loop.body)

    return tvm_ffi.structural_map(statement, [(tirx.For, replace)])
