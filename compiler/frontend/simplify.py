"""Fold what is already known: the model before it is imported.

TVM's importer needs shapes and axes as constants where exporters write chains of Shape,
Gather and Concat. onnxscript's optimizer, which Microsoft maintains, evaluates those chains
and takes `If` branches whose condition is constant. Its fusions are not used: how operators are
spelled is the business of the passes, where it can be checked.
"""

import logging
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import Sequential, common
from onnxscript import optimizer

from edgec.compiler.frontend.control_flow import flatten_control_flow
from edgec.compiler.frontend.expand_functions import expand_functions
from edgec.compiler.frontend.expand_quantized import expand_quantized

# Folding a Shape chain can make an If constant, whose branch holds the next chain.
MAX_ROUNDS = 16

# The weights of the compiled model stand in full anyway.
NO_LIMIT = 2**62


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold constants and drop dead code in a model with static inputs.

    Args:
        model: result of `specialize`; stays as it is.

    Returns:
        A model with the same inputs and outputs, all constants as initializers, and the
        inferred type of each value in `value_info`.
    """
    _quiet_optimizer()
    graph = ir.from_proto(model)
    _state_defaults(graph.graph)
    _replace_cast_like(graph)
    for _ in range(MAX_ROUNDS):
        expand_functions(graph)
        folded = optimizer.fold_constants(
            graph,
            onnx_shape_inference=True,
            input_size_limit=NO_LIMIT,
            output_size_limit=NO_LIMIT,
            should_fold=_is_folded,
        )
        changed = _fold_splits(graph.graph)
        changed = expand_quantized(graph) or changed
        optimizer.remove_unused_nodes(graph)
        # What folding makes constant decides branches and trip counts.
        if not folded.modified and not changed and not flatten_control_flow(graph):
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
    return ir.to_proto(graph)


def _is_folded(node: ir.Node) -> bool:
    """Constants stored as codes stay codes: `SettleStored` decides about them."""
    if node.op_type != "DequantizeLinear" or "block_size" in node.attributes:
        return True
    codes = node.inputs[0]
    return codes is None or codes.dtype not in _STORED


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


def _fold_splits(graph: ir.Graph) -> bool:
    """Split constants, which the optimizer does not do."""
    changed = False
    for node in list(graph):
        if node.op_type != "Split" or node.domain:
            continue
        arrays = [_constant_array(value) for value in node.inputs]
        array = arrays[0]
        if array is None or arrays[-1] is None or "split" in node.attributes:
            continue
        axis, count = node.attributes.get_int("axis", 0), len(node.outputs)
        sizes = arrays[1] if len(arrays) > 1 else None
        if sizes is None:
            sizes = np.full(count, -(-array.shape[axis] // count))
        ends = np.cumsum(sizes)
        for value, part in zip(node.outputs, np.split(array, ends[:-1], axis), strict=True):
            constant = ir.node("Constant", [], {"value": ir.tensor(part)})
            graph.insert_before(node, constant)
            ir.convenience.replace_all_uses_with(
                value, constant.outputs[0], replace_graph_outputs=True
            )
        graph.remove(node, safe=True)
        changed = True
    return changed


def _constant_array(value: ir.Value | None) -> NDArray[Any] | None:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def _quiet_optimizer() -> None:
    """Only errors: it warns of each operator that it leaves alone."""
    for name in ("onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
