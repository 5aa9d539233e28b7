"""Operators of `ai.onnx.ml`: what scikit-learn's, LightGBM's and XGBoost's exporters write.

Where the specification is silent (labels of two classes, scores of one), ONNX Runtime's kernels
decide. Text is not supported: labels that are text have no value, which only matters to their
readers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Never

import numpy as np
from numpy.typing import NDArray
from tvm import relax, tirx
from tvm.script.ir_builder import tirx as script

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
    """Scaler: (x - offset) * scale by feature, or the same for all."""
    data = node.cast(node.input(0), "float32")
    moved = node.call(op.subtract, data, _floats(node, "offset", 0.0))
    return op.multiply(moved, _floats(node, "scale", 1.0))


def convert_normalizer(node: Node) -> relax.Expr:
    """Normalizer: each row over its maximum, sum of magnitudes or length, unless that is zero."""
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
    """Binarizer: 1 above the threshold, 0 elsewhere, in the dtype of the data."""
    data = node.input(0)
    threshold = scalar(node.attributes.get("threshold", 0.0), dtype_of(data))
    return op.astype(node.call(op.greater, data, threshold), dtype_of(data))


def convert_imputer(node: Node) -> relax.Expr:
    """Imputer: other values in place of NaN, or of another number that stands for nothing."""
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
    """FeatureVectorizer: columns [N, k] side by side, as float32."""
    columns = []
    for index in range(len(node.inputs)):
        column = node.cast(node.input(index), "float32")
        shape = static_shape(column)
        columns.append(column if len(shape) == 2 else node.call(op.reshape, column, (-1, 1)))
    return op.concat(columns, axis=1)


def convert_array_feature_extractor(node: Node) -> relax.Expr:
    """ArrayFeatureExtractor: the elements of the last axis at the places [k]; rank 2 at least."""
    data, places = node.input(0), node.input(1)
    shape = static_shape(data)
    count = int(np.prod(static_shape(places)))
    places = node.call(op.reshape, places, (count,))
    picked = node.call(op.take, data, places, axis=len(shape) - 1, mode="clip")
    return op.reshape(picked, (1, count)) if len(shape) == 1 else picked


def convert_one_hot_encoder(node: Node) -> relax.Expr:
    """OneHotEncoder: float32 1 where a value is the category of the new last axis."""
    data, categories = node.input(0), node.attributes.get("cats_int64s")
    if not categories:
        raise Refusal("categories that are text are not supported; feed the model numbers")
    if not node.attributes.get("zeros", 1):
        raise Refusal("zeros=0, an error for unknown categories, is not supported")
    column = node.call(op.expand_dims, node.cast(data, "int64"), -1)
    hit = node.call(op.equal, column, constant_tensor(np.array(categories, np.int64)))
    return op.astype(hit, "float32")


def convert_label_encoder(node: Node) -> relax.Expr:
    """LabelEncoder: a number in place of each key, the default in place of others."""
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
    """Keys or values of a LabelEncoder.

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
    """LinearRegressor: x [N, F] times coefficients [targets, F], plus intercepts [targets]."""
    scores = _linear(node, int(node.attributes.get("targets", 1)))
    return _transformed(node, scores)


def convert_linear_classifier(node: Node) -> list[relax.Expr | None]:
    """LinearClassifier: labels [N] and scores [N, classes] of x [N, F]."""
    attributes = node.attributes
    labels = _labels(node)
    rows = len(attributes["coefficients"]) // static_shape(node.input(0))[-1]
    scores = _linear(node, rows)
    if rows > 1:
        return [_argmax_label(node, scores, labels), _transformed(node, scores)]
    positive = node.call(op.greater, scores, scalar(0, "float32"))
    return [_binary_label(node, positive, labels), _both(node, scores, complement=True)]


def convert_svm_regressor(node: Node) -> relax.Expr:
    """SVMRegressor: kernel(x, support vectors) times coefficients, plus rho."""
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
    return _transformed(node, total)


def _kernel(node: Node, data: relax.Expr, vectors: NDArray[np.float32]) -> relax.Expr:
    """Similarity of rows [N, F] to support vectors [S, F]: [N, S]."""
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


def _labels(node: Node) -> NDArray[np.int64] | None:
    """Labels of the classes; None where they are text."""
    attributes = node.attributes
    text = attributes.get("classlabels_strings") or attributes.get("classlabels_strings_int64s")
    if text:
        return None
    for name in ("classlabels_int64s", "classlabels_ints"):
        if attributes.get(name):
            return np.array(attributes[name], np.int64)
    raise Refusal("it has no class labels")


def _argmax_label(
    node: Node, scores: relax.Expr, labels: NDArray[np.int64] | None
) -> relax.Expr | None:
    if labels is None:
        return None
    best = node.call(op.argmax, scores, 1)
    return op.take(constant_tensor(labels), best, axis=0, mode="clip")


def _binary_label(
    node: Node, positive: relax.Expr, labels: NDArray[np.int64] | None
) -> relax.Expr | None:
    """The second label where `positive` [N, 1] holds, else the first."""
    if labels is None:
        return None
    chosen = node.call(op.reshape, positive, (static_shape(positive)[0],))
    first, second = (relax.const(int(label), "int64") for label in labels[:2])
    return op.where(chosen, second, first)


def _both(node: Node, scores: relax.Expr, complement: bool) -> relax.Expr:
    """Scores of two classes [N, 2] from those of the second one [N, 1].

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


def _transformed(node: Node, scores: relax.Expr) -> relax.Expr:
    """Scores [N, classes] after `post_transform`."""
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


# Trees


@dataclass(frozen=True)
class Forest:
    """Decision trees as tables of all their nodes, leaves included.

    Attributes:
        roots: node of each tree.
        feature: that a node looks at.
        split: what it compares with; float32 or float64, the precision of the whole.
        mode: comparison, `LEAF` for a leaf.
        yes: next node where the comparison holds; a leaf's is itself.
        no: next node where it does not.
        missing: whether NaN goes where the comparison holds.
        begin: first entry of a leaf in `target` and `weight`; the next node's is its end.
        target: what an entry adds to.
        weight: what it adds.
        depth: steps from a root to the deepest leaf.
    """

    roots: NDArray[np.int32]
    feature: NDArray[np.int32]
    split: NDArray[Any]
    mode: list[str]
    yes: NDArray[np.int32]
    no: NDArray[np.int32]
    missing: NDArray[np.bool_]
    begin: NDArray[np.int32]
    target: NDArray[np.int32]
    weight: NDArray[Any]

    @property
    def depth(self) -> int:
        """Steps from a root to the deepest leaf."""
        inner = np.array([mode != "LEAF" for mode in self.mode])
        level, steps = np.unique(self.roots), 0
        while inner[level].any():
            level = np.unique(np.concatenate([self.yes[level], self.no[level]]))
            steps += 1
            if steps > len(self.mode):
                raise Refusal("its trees have a cycle")
        return steps


_COMPARISONS: dict[str, Any] = {
    "BRANCH_LEQ": lambda x, split: x <= split,
    "BRANCH_LT": lambda x, split: x < split,
    "BRANCH_GTE": lambda x, split: x >= split,
    "BRANCH_GT": lambda x, split: x > split,
    "BRANCH_EQ": lambda x, split: x.equal(split),
    "BRANCH_NEQ": lambda x, split: x != split,
}


def _numbers(node: Node, name: str, dtype: Any) -> NDArray[Any]:
    """A list of numbers, or the tensor of double precision in its place."""
    tensor = node.attributes.get(f"{name}_as_tensor")
    return np.array(node.attributes.get(name, ()), dtype) if tensor is None else tensor.reshape(-1)


def _forest(node: Node, kind: str) -> Forest:
    """The trees of TreeEnsembleClassifier (`class`) and TreeEnsembleRegressor (`target`)."""
    attributes = node.attributes
    names = list(zip(attributes["nodes_treeids"], attributes["nodes_nodeids"], strict=True))
    place = {name: number for number, name in enumerate(names)}
    mode = list(attributes["nodes_modes"])

    def following(name: str) -> NDArray[np.int32]:
        steps = zip(names, attributes[name], mode, strict=True)
        return np.array(
            [
                place[tree, number] if kind_of != "LEAF" else place[tree, own]
                for (tree, own), number, kind_of in steps
            ],
            np.int32,
        )

    yes, no = following("nodes_truenodeids"), following("nodes_falsenodeids")
    children = {int(n) for i, m in enumerate(mode) if m != "LEAF" for n in (yes[i], no[i])}
    roots = [number for number in range(len(names)) if number not in children]
    owners = zip(attributes[f"{kind}_treeids"], attributes[f"{kind}_nodeids"], strict=True)
    owner = np.array([place[name] for name in owners], np.int32)
    order = np.argsort(owner, kind="stable")
    missing = attributes.get("nodes_missing_value_tracks_true") or [0] * len(names)
    return Forest(
        roots=np.array(roots, np.int32),
        feature=np.array(attributes["nodes_featureids"], np.int32),
        split=_numbers(node, "nodes_values", np.float32),
        mode=mode,
        yes=yes,
        no=no,
        missing=np.array(missing, bool),
        begin=np.searchsorted(owner[order], np.arange(len(names) + 1)).astype(np.int32),
        target=np.array(attributes[f"{kind}_ids"], np.int32)[order],
        weight=_numbers(node, f"{kind}_weights", np.float32)[order],
    )


_MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")


def _plain_forest(node: Node) -> Forest:
    """The trees of TreeEnsemble, whose leaves have lists of their own."""
    attributes = node.attributes
    codes = attributes["nodes_modes"].reshape(-1)
    if np.any(codes >= len(_MODES)):
        raise Refusal("tests of membership in a set are not supported")
    inner, leaves = len(codes), len(attributes["leaf_targetids"])

    def following(side: str) -> NDArray[np.int32]:
        steps = np.array(attributes[f"nodes_{side}nodeids"], np.int32)
        is_leaf = np.array(attributes[f"nodes_{side}leafs"], bool)
        own = np.arange(inner, inner + leaves, dtype=np.int32)
        return np.concatenate([np.where(is_leaf, steps + inner, steps), own]).astype(np.int32)

    splits = attributes["nodes_splits"].reshape(-1)
    tracks = attributes.get("nodes_missing_value_tracks_true") or [0] * inner
    none, own = np.zeros(leaves, np.int32), np.arange(leaves + 1, dtype=np.int32)
    return Forest(
        roots=np.array(attributes["tree_roots"], np.int32),
        feature=np.concatenate([np.array(attributes["nodes_featureids"], np.int32), none]),
        split=np.concatenate([splits, none.astype(splits.dtype)]),
        mode=[*(_MODES[code] for code in codes), *["LEAF"] * leaves],
        yes=following("true"),
        no=following("false"),
        missing=np.concatenate([np.array(tracks, bool), none.astype(bool)]),
        begin=np.concatenate([np.zeros(inner, np.int32), own]),
        target=np.array(attributes["leaf_targetids"], np.int32),
        weight=attributes["leaf_weights"].reshape(-1),
    )


def _grown(node: Node, forest: Forest, targets: int, aggregate: str = "SUM") -> relax.Expr:
    """What the leaves add up to, [N, targets], in the precision of the trees."""
    dtype, source = str(forest.weight.dtype), node.input(0)
    data = node.cast(source, str(forest.split.dtype))
    rows = static_shape(data)[0]
    lowest = {"MIN": np.inf, "MAX": -np.inf}.get(aggregate, 0.0)
    modes = sorted(set(forest.mode) - {"LEAF"})
    unknown = [mode for mode in modes if mode not in _COMPARISONS]
    if unknown:
        raise Refusal(f"modes {', '.join(unknown)} are not supported")
    depth, has_missing = forest.depth, bool(forest.missing.any())
    code = np.array([modes.index(m) if m != "LEAF" else 0 for m in forest.mode], np.int32)
    tables = [
        forest.roots,
        forest.feature,
        forest.split,
        code,
        forest.yes,
        forest.no,
        forest.missing.astype(np.int32),
        forest.begin,
        forest.target,
        forest.weight,
    ]

    def combined(old: Any, new: Any) -> Any:
        return {"MIN": tirx.min, "MAX": tirx.max}.get(aggregate, lambda a, b: a + b)(old, new)

    def body(x: Any, *rest: Any) -> None:
        root, feature, split, code_of, yes, no, missing, begin, target, weight, out, at = rest
        with script.serial(0, rows) as row:
            with script.serial(0, targets) as k:
                script.buffer_store(out, tirx.const(lowest, dtype), [row, k])
            with script.serial(0, len(forest.roots)) as tree:
                script.buffer_store(at, root[tree], [0])
                with script.serial(0, depth):
                    value = x[row, feature[at[0]]]
                    holds = _COMPARISONS[modes[0]](value, split[at[0]])
                    for number, mode in enumerate(modes[1:], 1):
                        other = _COMPARISONS[mode](value, split[at[0]])
                        holds = tirx.Select(code_of[at[0]].equal(number), other, holds)
                    if has_missing:
                        holds = tirx.any(
                            holds,
                            tirx.all(value != value, missing[at[0]] != tirx.const(0, "int32")),
                        )
                    script.buffer_store(at, tirx.Select(holds, yes[at[0]], no[at[0]]), [0])
                with script.serial(0, begin[at[0] + 1] - begin[at[0]]) as entry:
                    k = target[begin[at[0]] + entry]
                    total = combined(out[row, k], weight[begin[at[0]] + entry])
                    script.buffer_store(out, total, [row, k])

    outputs = [TensorSpec("", (rows, targets), dtype), TensorSpec("", (1,), "int32")]
    inputs = [data, *(constant_tensor(table) for table in tables)]
    scores = emit_procedure(node, inputs, outputs, body)[0]
    if aggregate == "AVERAGE":
        return node.call(op.divide, scores, scalar(len(forest.roots), dtype))
    return scores


def _with_base(node: Node, scores: relax.Expr) -> relax.Expr:
    base = _numbers(node, "base_values", np.float32)
    if not base.size:
        return scores
    return node.call(op.add, scores, constant_tensor(base.astype(dtype_of(scores))))


def _aggregate(node: Node) -> str:
    given = node.attributes.get("aggregate_function", "SUM")
    name = given if isinstance(given, str) else ("AVERAGE", "SUM", "MIN", "MAX")[given]
    if name not in ("AVERAGE", "SUM", "MIN", "MAX"):
        raise Refusal(f"aggregate_function {name!r} is not supported")
    return name


def convert_tree_ensemble_regressor(node: Node) -> relax.Expr:
    """TreeEnsembleRegressor: leaves of all trees for each target, [N, targets] float32."""
    forest, targets = _forest(node, "target"), int(node.attributes["n_targets"])
    scores = _with_base(node, _grown(node, forest, targets, _aggregate(node)))
    return _transformed(node, node.emit(node.cast(scores, "float32")))


def convert_tree_ensemble(node: Node) -> relax.Expr:
    """TreeEnsemble: leaves of all trees for each target, in the dtype of the leaves."""
    forest, targets = _plain_forest(node), int(node.attributes["n_targets"])
    return _transformed(node, _grown(node, forest, targets, _aggregate(node)))


def convert_tree_ensemble_classifier(node: Node) -> list[relax.Expr | None]:
    """TreeEnsembleClassifier: labels [N] and scores [N, classes].

    Two classes mostly have weights for one of them, the second by meaning, whatever its number.
    It is chosen above 0.5 where no weight is negative, and above 0 otherwise.
    """
    labels, forest = _labels(node), _forest(node, "class")
    classes = _class_count(node)
    used: Sequence[int] = np.unique(forest.target).tolist()
    if classes < 2:
        raise Refusal("fewer than two classes are not supported")
    if classes > 2:
        scores = _with_base(node, _grown(node, forest, classes))
        scores = node.emit(node.cast(scores, "float32"))
        return [_argmax_label(node, scores, labels), _transformed(node, scores)]
    base = _numbers(node, "base_values", np.float32)
    if used != [0] or base.size > 1:
        raise Refusal(
            "weights for both of two classes, or of the second alone, are not supported, as "
            "ONNX Runtime takes no label from them; export weights of class 0 only, as skl2onnx "
            "and onnxmltools do"
        )
    scores = _with_base(node, _grown(node, forest, 1))
    scores = node.emit(node.cast(scores, "float32"))
    shares = bool(np.all(forest.weight >= 0))
    bound = scalar(0.5 if shares else 0.0, "float32")
    positive = node.call(op.greater, scores, bound)
    return [_binary_label(node, positive, labels), _both(node, scores, complement=shares)]


def _class_count(node: Node) -> int:
    attributes = node.attributes
    return len(attributes.get("classlabels_int64s") or attributes.get("classlabels_strings", ()))
