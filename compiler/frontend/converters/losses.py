"""Provide losses of classification, over any number of positions."""

from tvm import relax

from edgec.compiler.frontend.node import (
    Node,
    Refusal,
    accumulator_dtype,
    dtype_of,
    scalar,
    static_shape,
)

op = relax.op


def convert_negative_log_likelihood_loss(node: Node) -> relax.Expr:
    """Return NegativeLogLikelihoodLoss of log probabilities [N, C, *d] for classes [N, *d]."""
    data = node.input(0)
    exact = node.cast(data, accumulator_dtype(dtype_of(data)))
    return node.cast(_loss(node, exact), dtype_of(data))


def convert_softmax_cross_entropy_loss(node: Node) -> list[relax.Expr]:
    """Return SoftmaxCrossEntropyLoss of scores [N, C, *d] for classes [N, *d].

    And log probabilities.
    """
    data = node.input(0)
    logarithms = node.call(
        op.nn.log_softmax, node.cast(data, accumulator_dtype(dtype_of(data))), axis=1
    )
    return [node.cast(item, dtype_of(data)) for item in (_loss(node, logarithms), logarithms)]


def _loss(node: Node, logarithms: relax.Expr) -> relax.Expr:
    """Return loss = -w[class] * logarithm[class], zero where the class is `ignore_index`.

    The mean is that of the weights: sum of losses / sum of weights.
    """
    classes, weights = node.input(1), node.optional(2)
    dtype, kind = dtype_of(logarithms), dtype_of(classes)
    if not static_shape(classes):
        raise Refusal("classes without a batch dimension are not supported")
    reduction = node.attributes.get("reduction", "mean")
    ignored = node.attributes.get("ignore_index")
    count = static_shape(logarithms)[1]
    # The ignored class may be no class: clipped, it reads something that is not used.
    bounds = scalar(0, kind), scalar(count - 1, kind)
    index = node.call(op.minimum, node.call(op.maximum, classes, bounds[0]), bounds[1])
    picked = node.call(op.gather_elements, logarithms, node.call(op.expand_dims, index, 1), axis=1)
    loss = node.call(op.negative, node.call(op.squeeze, picked, [1]))
    factor = None
    if weights is not None:
        factor = node.call(op.take, node.cast(weights, dtype), index, axis=0, mode="clip")
    if ignored is not None:
        kept = node.call(op.not_equal, classes, scalar(ignored, kind))
        ones = scalar(1, dtype) if factor is None else factor
        factor = node.call(op.where, kept, ones, scalar(0, dtype))
        loss = node.call(op.where, kept, loss, scalar(0, dtype))
    if factor is not None:
        loss = node.call(op.multiply, loss, factor)
    if reduction == "none":
        return loss
    if reduction == "mean" and factor is None:
        return node.call(op.mean, loss)
    total = node.call(op.sum, loss)
    if reduction == "mean" and factor is not None:
        return node.call(op.divide, total, node.call(op.sum, factor))
    return total
