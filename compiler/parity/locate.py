"""Decide which operator is the first to go wrong.

The module is rebuilt with every value that stands for a value of the original graph as an
output, and each is compared, in order, with what ONNX Runtime computes there.
"""

from collections.abc import Mapping

import onnx
from tvm import IRModule, relax

from edgec.compiler.ir.evaluate import Evaluate
from edgec.compiler.ir.relax_helpers import shape_of
from edgec.compiler.ir.signature import Signature, Tensors, TensorSpec
from edgec.compiler.parity.compare import Tolerance, compare
from edgec.compiler.parity.oracle import run_original


def first_divergence(
    module: IRModule,
    value_names: Mapping[str, str],
    graph: onnx.ModelProto,
    inputs: Tensors,
    tolerance: Tolerance,
    evaluate: Evaluate,
) -> str | None:
    """Return the ONNX name of the first value of a module that is out of tolerance.

    Args:
        module: a Relax module from before lowering.
        value_names: ONNX name by Relax variable name, from the importer.
        graph: the simplified ONNX model that the module stands for.
        inputs: test inputs.
        tolerance: the tolerance of the whole model.
        evaluate: compiles a module for this machine.

    Returns:
        Its name and operator, or None if no value of the module is off.
    """
    expected = _all_values(graph, inputs)
    exposed, specs = _expose(module, value_names, expected)
    signature = Signature(
        tuple(TensorSpec(name, array.shape, str(array.dtype)) for name, array in inputs.items()),
        specs,
    )
    actual = evaluate(exposed, signature).run(inputs)
    producers = {name: node for node in graph.graph.node for name in node.output}
    for spec in specs:
        name = spec.name
        report = compare({name: expected[name]}, {name: actual[name]}, tolerance)
        if not report.passed:
            node = producers.get(name)
            operator = f"{node.op_type} {node.name}".strip() if node else "a constant"
            return f"{name} (output of {operator}): {report.outputs[0].problem}"
    return None


def _all_values(graph: onnx.ModelProto, inputs: Tensors) -> Tensors:
    """Return every value that a node of the graph computes."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(graph)
    outputs = {value.name for value in exposed.graph.output}
    for node in graph.graph.node:
        for name in node.output:
            if name and name not in outputs:
                exposed.graph.output.add().name = name
    return run_original(exposed, inputs)


def _expose(
    module: IRModule, value_names: Mapping[str, str], expected: Tensors
) -> tuple[IRModule, tuple[TensorSpec, ...]]:
    """Return the module with all values of known ONNX name as its outputs.

    Their dtypes are the expected ones: the module's are not, for storage types.
    """
    plain = relax.transform.ToNonDataflow()(module)
    function = plain["main"]
    shown, specs = [], []
    for block in function.body.blocks:
        for binding in block.bindings:
            variable = binding.var
            shape = shape_of(variable)
            name = value_names.get(variable.name)
            if name is not None and name in expected and shape is not None:
                shown.append(variable)
                specs.append(TensorSpec(name, shape, str(expected[name].dtype)))
    body = relax.SeqExpr(function.body.blocks, relax.Tuple(shown))
    kind = relax.TupleType([variable.ty for variable in shown])
    rebuilt = relax.Function(function.params, body, kind).with_attr("global_symbol", "main")
    plain.update_func(plain.get_global_var("main"), rebuilt)
    normal = relax.transform.Normalize()(plain)
    return relax.transform.ConvertToDataflow()(normal), tuple(specs)
