"""Fold what is already known: the model before it is imported.

TVM's importer needs shapes and axes as constants where exporters write chains of Shape,
Gather and Concat. onnxscript's optimizer, which Microsoft maintains, evaluates those chains
and takes `If` branches whose condition is constant. Its fusions are not used: how operators are
spelled is the business of the passes, where it can be checked.
"""

import logging

import onnx
import onnx_ir as ir
from onnx_ir.passes import Sequential, common
from onnxscript import optimizer

from edgec.compiler.control_flow import flatten_control_flow
from edgec.compiler.expand_functions import expand_functions

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
    for _ in range(MAX_ROUNDS):
        expand_functions(graph)
        folded = optimizer.fold_constants(
            graph,
            onnx_shape_inference=True,
            input_size_limit=NO_LIMIT,
            output_size_limit=NO_LIMIT,
            should_fold=lambda node: True,
        )
        optimizer.remove_unused_nodes(graph)
        # What folding makes constant decides branches and trip counts.
        if not folded.modified and not flatten_control_flow(graph):
            break
    Sequential(
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
        common.TopologicalSortPass(),
        common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True),
    )(graph)
    return ir.to_proto(graph)


def _quiet_optimizer() -> None:
    """Only errors: it warns of each operator that it leaves alone."""
    for name in ("onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
