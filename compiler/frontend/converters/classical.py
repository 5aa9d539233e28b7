"""Provide operators of `ai.onnx.ml`: what scikit-learn's, LightGBM's and XGBoost's exporters write.

Where the specification is silent (labels of two classes, scores of one), ONNX Runtime's kernels
decide. Text is not supported: labels that are text have no value, which only matters to their
readers.
"""

from typing import Any, Never

import numpy as np
from numpy.typing import NDArray
from tvm import relax, tirx
from tvm.script.ir_builder import tirx as script

from edgec.compiler.frontend.converters.arg_reduce import arg_extreme
from edgec.compiler.frontend.node import Node, Refusal, dtype_of, scalar, static_shape
from edgec.compiler.frontend.te_operators import constant_tensor, emit_compute, emit_procedure
from edgec.compiler.ir.signature import TensorSpec

op = relax.op


def refuse_zip_map(node: Node) -> Never:
    """ZipMap: a list of dictionaries."""
    raise Refusal(
        "it makes dictionaries, edgec compiles tensors: export without it (skl2onnx and "
        "onnxmltools: options={'zipmap': False})"
    )


# Features


def convert_scaler(node: Node) -> relax.Expr:
    """Convert Scaler: (x - offset) * scale by feature, or the same for all."""
    data = node.cast(node.input(0), "float32")
    moved = node.call(op.subtract, data, _floats(node, "offset", 0.0))
    return op.multiply(moved, _floats(node, "scale", 1.0))


def convert_normalizer(node: Node) -> relax.Expr:
    """Convert Normalizer: each row over its maximum, sum of magnitudes or length.

    Unless that is zero.
    """
    data = node.cast(node.input(0), "float32")
    norm = node.attributes.get("norm", "MAX")
    match norm:
        case "MAX":
            size = node.call(op.max, data, -1, True)
        case "L1":
            size = node.call(op.sum, node.call(op.abs, data), -1, True)
        case "L2":
            size = node.call(
                op.sqrt, node.call(op.sum, node.call(op.multiply, data, data), -1, True)
            )
        case _:
            raise Refusal(f"norm {norm!r} is not supported")
    zero = node.call(op.equal, size, scalar(0, "float32"))
    return op.divide(data, node.call(op.where, zero, scalar(1, "float32"), size))


def convert_binarizer(node: Node) -> relax.Expr:
    """Convert Binarizer: 1 above the threshold, 0 elsewhere, in the dtype of the data."""
    data = node.input(0)
    threshold = scalar(node.attributes.get("threshold", 0.0), dtype_of(data))
    return op.astype(node.call(op.greater, data, threshold), dtype_of(data))


def convert_imputer(node: Node) -> relax.Expr:
    """Convert Imputer: other values in place of NaN, or of another missing value."""
    data, attributes = node.input(0), node.attributes
    if dtype_of(data) == "float32":
        missing, filler = (
            attributes.get("replaced_value_float", 0.0),
            _floats(node, "imputed_value_floats", 0.0),
        )
    elif dtype_of(data) == "int64":
        missing = attributes.get("replaced_value_int64", 0)
        filler = constant_tensor(np.array(attributes["imputed_value_int64s"], np.int64))
    else:
        raise Refusal(f"dtype {dtype_of(data)} is not supported")
    if isinstance(missing, float) and np.isnan(missing):
        found = node.call(op.isnan, data)
    else:
        found = node.call(op.equal, data, scalar(missing, dtype_of(data)))
    return op.where(found, filler, data)


def convert_feature_vectorizer(node: Node) -> relax.Expr:
    """Convert FeatureVectorizer: columns [N, k] side by side, as float32."""
    columns = []
    for index in range(len(node.inputs)):
        column = node.cast(node.input(index), "float32")
        shape = static_shape(column)
        columns.append(column if len(shape) == 2 else node.call(op.reshape, column, (-1, 1)))
    return op.concat(columns, axis=1)


def convert_array_feature_extractor(node: Node) -> relax.Expr:
    """Convert ArrayFeatureExtractor: the elements of the last axis at the places [k].

    Rank 2 at least.
    """
    data, places = node.input(0), node.input(1)
    shape = static_shape(data)
    count = int(np.prod(static_shape(places)))
    places = node.call(op.reshape, places, (count,))
    picked = node.call(op.take, data, places, axis=len(shape) - 1, mode="clip")
    return op.reshape(picked, (1, count)) if len(shape) == 1 else picked


def convert_one_hot_encoder(node: Node) -> relax.Expr:
    """Convert OneHotEncoder: float32 1 where a value is the category of the new last axis."""
    data, categories = node.input(0), node.attributes.get("cats_int64s")
    if not categories:
        raise Refusal("categories that are text are not supported; feed the model numbers")
    if not node.attributes.get("zeros", 1):
        raise Refusal("zeros=0, an error for unknown categories, is not supported")
    column = node.call(op.expand_dims, node.cast(data, "int64"), -1)
    hit = node.call(op.equal, column, constant_tensor(np.array(categories, np.int64)))
    return op.astype(hit, "float32")


def convert_label_encoder(node: Node) -> relax.Expr:
    """Convert LabelEncoder: a number in place of each key, the default in place of others."""
    keys = _table(node, "keys")
    values = _table(node, "values")
    if len(keys) != len(values):
        raise Refusal(f"{len(keys)} keys for {len(values)} values")
    defaults = {"f": "default_float", "i": "default_int64"}
    fallback = node.attributes.get(
        defaults[values.dtype.kind], -0.0 if values.dtype.kind == "f" else -1
    )
    given = node.attributes.get("default_tensor")
    if given is not None:
        fallback = given.reshape(-1)[0]
    default = tirx.const(np.asarray(fallback, values.dtype).item(), str(values.dtype))
    data = node.input(0)
    size = int(np.prod(static_shape(data)))

    def body(x: Any, key: Any, value: Any, y: Any) -> None:
        with script.serial(0, size) as i:
            script.buffer_store(y, default, [i])
            with script.serial(0, len(keys)) as k:
                hit = x[i].equal(key[k])
                if keys.dtype.kind == "f":
                    # NaN is a key like any other.
                    hit = tirx.any(hit, tirx.all(x[i] != x[i], key[k] != key[k]))
                with script.If(hit), script.Then():
                    script.buffer_store(y, value[k], [i])

    line = node.call(op.reshape, data, (size,))
    inputs = [line, constant_tensor(keys), constant_tensor(values)]
    output = TensorSpec("", (size,), str(values.dtype))
    return op.reshape(emit_procedure(node, inputs, [output], body)[0], static_shape(data))


def _table(node: Node, side: str) -> NDArray[Any]:
    """Return keys or values of a LabelEncoder.

    Raises:
        Refusal: they are text.
    """
    attributes = node.attributes
    for name, dtype in ((f"{side}_int64s", np.int64), (f"{side}_floats", np.float32)):
        if name in attributes:
            return np.array(attributes[name], dtype)
    tensor = attributes.get(f"{side}_tensor")
    if tensor is None or tensor.dtype.kind not in "fi":
        raise Refusal(f"{side} that are text are not supported; feed the model numbers")
    array: NDArray[Any] = tensor.reshape(-1)
    return array


# Linear models and support vectors


def convert_linear_regressor(node: Node) -> relax.Expr:
    """Convert LinearRegressor: x [N, F] times coefficients [targets, F], plus intercepts."""
    scores = _linear(node, int(node.attributes.get("targets", 1)))
    return transformed(node, scores)


def convert_linear_classifier(node: Node) -> list[relax.Expr | None]:
    """Convert LinearClassifier: labels [N] and scores [N, classes] of x [N, F]."""
    attributes = node.attributes
    labels = class_labels(node)
    rows = len(attributes["coefficients"]) // static_shape(node.input(0))[-1]
    scores = _linear(node, rows)
    if rows > 1:
        return [argmax_label(node, scores, labels), transformed(node, scores)]
    positive = node.call(op.greater, scores, scalar(0, "float32"))
    return [binary_label(node, positive, labels), both(node, scores, complement=True)]


def convert_svm_regressor(node: Node) -> relax.Expr:
    """Convert SVMRegressor: kernel(x, support vectors) times coefficients, plus rho."""
    attributes = node.attributes
    data = node.cast(node.input(0), "float32")
    features = static_shape(data)[-1]
    count = int(attributes.get("n_supports", 0))
    coefficients = np.array(attributes["coefficients"], np.float32)
    if not count:
        weights = constant_tensor(coefficients.reshape(features, 1))
        total = node.call(op.matmul, data, weights)
    else:
        vectors = np.array(attributes["support_vectors"], np.float32).reshape(count, features)
        weights = constant_tensor(coefficients.reshape(count, 1))
        total = node.call(op.matmul, _kernel(node, data, vectors), weights)
    total = node.call(op.add, total, constant_tensor(np.array(attributes["rho"][:1], np.float32)))
    if attributes.get("one_class", 0):
        positive = node.call(op.greater, total, scalar(0, "float32"))
        return op.where(positive, scalar(1, "float32"), scalar(-1, "float32"))
    return transformed(node, total)


def _kernel(node: Node, data: relax.Expr, vectors: NDArray[np.float32]) -> relax.Expr:
    """Return similarity of rows [N, F] to support vectors [S, F]: [N, S]."""
    kind = node.attributes.get("kernel_type", "LINEAR")
    gamma, coefficient, degree = (*node.attributes.get("kernel_params", ()), 0.0, 0.0, 3.0)[:3]
    product = node.call(op.matmul, data, constant_tensor(np.ascontiguousarray(vectors.T)))

    def number(value: float) -> relax.Expr:
        return scalar(value, "float32")

    if kind == "LINEAR":
        return product
    if kind == "RBF":
        # As differences: |x|² - 2 x v + |v|² would cancel.
        def element(x: Any, support: Any, at: list[Any]) -> Any:
            terms = [x[at[0], k] - support[at[1], k] for k in range(vectors.shape[1])]
            return sum((term * term for term in terms), tirx.const(0, "float32"))

        shape = (static_shape(data)[0], len(vectors))
        distance = emit_compute(node, [data, constant_tensor(vectors)], shape, element)
        return node.call(op.exp, node.call(op.multiply, distance, number(-gamma)))
    inner = node.call(op.add, node.call(op.multiply, product, number(gamma)), number(coefficient))
    if kind == "POLY":
        return node.call(op.power, inner, number(degree))
    if kind == "SIGMOID":
        return node.call(op.tanh, inner)
    raise Refusal(f"kernel {kind!r} is not supported")


def _linear(node: Node, targets: int) -> relax.Expr:
    data = node.cast(node.input(0), "float32")
    features = static_shape(data)[-1]
    if len(static_shape(data)) == 1:
        data = node.call(op.reshape, data, (1, features))
    matrix = np.array(node.attributes["coefficients"], np.float32).reshape(targets, features)
    product = node.call(op.matmul, data, constant_tensor(np.ascontiguousarray(matrix.T)))
    return node.call(op.add, product, _floats(node, "intercepts", 0.0))


# Labels and scores


def _floats(node: Node, name: str, default: float) -> relax.Expr:
    values = node.attributes.get(name) or (default,)
    return constant_tensor(np.array(values, np.float32))


def class_labels(node: Node) -> NDArray[np.int64] | None:
    """Return labels of the classes; None where they are text."""
    attributes = node.attributes
    text = attributes.get("classlabels_strings") or attributes.get("classlabels_strings_int64s")
    if text:
        return None
    for name in ("classlabels_int64s", "classlabels_ints"):
        if attributes.get(name):
            return np.array(attributes[name], np.int64)
    raise Refusal("it has no class labels")


def argmax_label(
    node: Node, scores: relax.Expr, labels: NDArray[np.int64] | None
) -> relax.Expr | None:
    """Return the label of the best score of each row, None where labels are text."""
    if labels is None:
        return None
    best = node.call(op.squeeze, arg_extreme(node, scores, 1), [1])
    return op.take(constant_tensor(labels), best, axis=0, mode="clip")


def binary_label(
    node: Node, positive: relax.Expr, labels: NDArray[np.int64] | None
) -> relax.Expr | None:
    """Return the second label where `positive` [N, 1] holds, else the first."""
    if labels is None:
        return None
    chosen = node.call(op.reshape, positive, (static_shape(positive)[0],))
    first, second = (relax.const(int(label), "int64") for label in labels[:2])
    return op.where(chosen, second, first)


def both(node: Node, scores: relax.Expr, complement: bool) -> relax.Expr:
    """Return scores of two classes [N, 2] from those of the second one [N, 1].

    Args:
        node: with the attribute `post_transform`.
        scores: before it.
        complement: the first class has 1 - score without a transform, else -score.
    """
    transform = node.attributes.get("post_transform", "NONE")
    negative = node.call(op.negative, scores)
    if transform == "LOGISTIC":
        pair = [node.call(op.sigmoid, item) for item in (negative, scores)]
    elif transform in ("NONE", "SOFTMAX", "SOFTMAX_ZERO"):
        first = node.call(op.subtract, scalar(1, "float32"), scores) if complement else negative
        pair = [first, scores]
    else:
        raise Refusal(f"post_transform {transform!r} is not supported")
    return op.concat(pair, axis=1)


def transformed(node: Node, scores: relax.Expr) -> relax.Expr:
    """Return scores [N, classes] after `post_transform`."""
    transform = node.attributes.get("post_transform", "NONE")
    if isinstance(transform, int):
        transform = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")[transform]
    match transform:
        case "NONE":
            return scores
        case "LOGISTIC":
            return op.sigmoid(scores)
        case "SOFTMAX":
            return op.nn.softmax(scores, axis=-1)
    raise Refusal(f"post_transform {transform!r} is not supported")
