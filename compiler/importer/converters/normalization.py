"""Normalization operators."""

from tvm import relax

from edgec.compiler.importer.node import Node, Refusal, dtype_of


def convert_batch_normalization(node: Node) -> relax.Expr:
    """BatchNormalization in inference, over axis 1.

    y = (x - mean) / sqrt(variance + epsilon) * scale + bias.
    """
    attributes = node.attributes
    if attributes.get("training_mode", 0) or len([o for o in node.proto.output if o]) > 1:
        raise Refusal("training mode is not supported")
    if not attributes.get("spatial", 1):
        raise Refusal("statistics per position (spatial=0) are not supported")
    data, *parameters = (node.input(index) for index in range(5))
    if any(dtype_of(parameter) != dtype_of(data) for parameter in parameters):
        raise Refusal("parameters of another dtype than the data are not supported")
    result = node.emit(
        relax.op.nn.batch_norm(
            data, *parameters, axis=1, epsilon=attributes.get("epsilon", 1e-5), training=False
        )
    )
    return relax.TupleGetItem(result, 0)
