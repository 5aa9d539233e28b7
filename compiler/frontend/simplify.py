"""Fold what is already known: the model before it is imported.

TVM's importer needs shapes and axes as constants where exporters write chains of Shape,
Gather and Concat. onnxscript's optimizer, which Microsoft maintains, follows those chains
and takes `If` branches whose condition is constant; see `fold_constants` for the values. Its
fusions are not used: how operators are spelled is the business of the passes, where it can be
checked.
"""

import logging

import onnx
import onnx_ir as ir
from onnx.inliner import inline_local_functions
from onnx_ir.passes import Sequential, common
from onnxscript import optimizer

from edgec.compiler.errors import EdgecError, LimitError, UnsupportedModelError
from edgec.compiler.frontend.control_flow import flatten_control_flow
from edgec.compiler.frontend.expand_functions import expand_functions
from edgec.compiler.frontend.expand_quantized import expand_quantized
from edgec.compiler.frontend.fold_constants import ConstantFolding
from edgec.compiler.frontend.limits import DEFAULT_LIMITS, Limits
from edgec.compiler.frontend.rehearse_inference import rehearse_inference
from edgec.compiler.frontend.resolve_ceil_mode import resolve_ceil_mode
from edgec.compiler.frontend.resolve_resize_scales import resolve_resize_scales

log = logging.getLogger("edgec.simplify")

# Folding a Shape chain can make an If constant, whose branch holds the next chain.
MAX_ROUNDS = 16


def simplify(model: onnx.ModelProto, limits: Limits = DEFAULT_LIMITS) -> onnx.ModelProto:
    """Fold constants and drop dead code in a model with static inputs.

    Args:
        model: result of `specialize`; stays as it is.
        limits: the limits of what the model may ask for.

    Returns:
        A model with the same inputs and outputs, all constants as initializers, and the
        inferred type of each value in `value_info`.

    Raises:
        LimitError: a value, or the constants together, or the nodes are more than is allowed.
        UnsupportedModelError: the graph contradicts itself.
    """
    _quiet_optimizer()
    try:
        return _simplify(model, limits)
    except EdgecError:
        raise
    except Exception as error:
        # The packages that rewrite ONNX trust the graph, and fail in many ways where it is wrong.
        log.debug("simplify", exc_info=True)
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = (lines or [type(error).__name__])[0][:300]
        raise UnsupportedModelError(f"the graph cannot be simplified: {reason}") from error


def _simplify(model: onnx.ModelProto, limits: Limits) -> onnx.ModelProto:
    for value in model.graph.input:
        _check_value("input", value, limits)
    try:
        rehearse_inference(model)
    except LimitError:
        # A constant that is too large is named by what folds it.
        ConstantFolding(ir.from_proto(model), limits, _is_folded).run()
        raise
    model = resolve_resize_scales(resolve_ceil_mode(model))
    # In C++: the pass of onnx_ir takes minutes for thousands of calls.
    graph = ir.from_proto(inline_local_functions(model) if model.functions else model)
    _state_defaults(graph.graph)
    _replace_cast_like(graph)
    folding = ConstantFolding(graph, limits, _is_folded)
    for _ in range(MAX_ROUNDS):
        expand_functions(graph)
        changed = folding.run()
        changed = expand_quantized(graph) or changed
        optimizer.remove_unused_nodes(graph)
        # What folding makes constant decides branches and trip counts.
        if not changed and not flatten_control_flow(graph, limits):
            break
    Sequential(
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.NameFixPass(),
        common.TopologicalSortPass(),
        common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True),
    )(graph)
    limits.check_nodes(graph.graph.num_nodes())
    result = ir.to_proto(graph)
    for value in [*result.graph.value_info, *result.graph.output]:
        _check_value("value", value, limits)
    return result


def _check_value(what: str, value: onnx.ValueInfoProto, limits: Limits) -> None:
    """Compare a value of known shape with the limit."""
    tensor = value.type.tensor_type
    if tensor.HasField("shape") and tensor.elem_type not in (0, onnx.TensorProto.STRING):
        shape = [max(0, dim.dim_value) for dim in tensor.shape.dim]
        limits.check_value(f"{what} {value.name}", shape, tensor.elem_type)


def _is_folded(node: ir.Node) -> bool:
    """Constants stored quantized stay quantized.

    `NormalizeQuantizedConstants` decides about them.
    """
    if node.op_type != "DequantizeLinear" or "block_size" in node.attributes:
        return True
    quantized = node.inputs[0]
    return quantized is None or quantized.dtype not in _STORED


_STORED = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT32)


def _state_defaults(graph: ir.Graph) -> None:
    """Write out what ONNX's shape inference takes for another default than ONNX's definition."""
    for node in graph.all_nodes():
        if node.op_type == "STFT" and not node.domain and "onesided" not in node.attributes:
            node.attributes["onesided"] = ir.AttrInt64("onesided", 1)


def _replace_cast_like(model: ir.Model) -> None:
    """Turn CastLike with attributes into Cast, which the optimizer does without them."""
    nodes = [
        node
        for node in model.graph.all_nodes()
        if node.op_type == "CastLike" and not node.domain and node.attributes
    ]
    if not nodes:
        return
    common.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    for node in nodes:
        like = node.inputs[1]
        if like is not None and like.dtype is not None:
            node.op_type = "Cast"
            node.attributes["to"] = ir.AttrInt64("to", like.dtype.value)
            node.resize_inputs(1)


def _quiet_optimizer() -> None:
    """Let the optimizer print only errors: it warns of each operator that it leaves alone."""
    for name in ("onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
