"""Provide ensembles of decision trees of `ai.onnx.ml`.

One walk through tables of nodes for each tree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax, tirx
from tvm.script.ir_builder import tirx as script

from edgec.compiler.frontend.converters.classical import (
    argmax_label,
    binary_label,
    both,
    class_labels,
    transformed,
)
from edgec.compiler.frontend.node import Node, Refusal, dtype_of, scalar, static_shape
from edgec.compiler.frontend.te_operators import constant_tensor, emit_procedure
from edgec.compiler.ir.signature import TensorSpec

op = relax.op


@dataclass(frozen=True)
class Forest:
    """A forest describes decision trees as tables of all their nodes, leaves included.

    Attributes:
        roots: node of each tree.
        feature: the feature that a node looks at.
        split: what it compares with; float32 or float64, the precision of the whole.
        mode: comparison, `LEAF` for a leaf.
        yes: next node where the comparison holds; a leaf's is itself.
        no: next node where it does not.
        missing: whether NaN goes where the comparison holds.
        begin: first entry of a leaf in `target` and `weight`; the next node's is its end.
        target: what an entry adds to.
        weight: what it adds.
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
        """Return steps from a root to the deepest leaf."""
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
    """Return a list of numbers, or the tensor of double precision in its place."""
    tensor = node.attributes.get(f"{name}_as_tensor")
    return np.array(node.attributes.get(name, ()), dtype) if tensor is None else tensor.reshape(-1)


def _forest(node: Node, kind: str) -> Forest:
    """Return the trees of TreeEnsembleClassifier (`class`) and TreeEnsembleRegressor (`target`)."""
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
    """Return the trees of TreeEnsemble, whose leaves have lists of their own."""
    attributes = node.attributes
    quantized = attributes["nodes_modes"].reshape(-1)
    if np.any(quantized >= len(_MODES)):
        raise Refusal("tests of membership in a set are not supported")
    inner, leaves = len(quantized), len(attributes["leaf_targetids"])

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
        mode=[*(_MODES[code] for code in quantized), *["LEAF"] * leaves],
        yes=following("true"),
        no=following("false"),
        missing=np.concatenate([np.array(tracks, bool), none.astype(bool)]),
        begin=np.concatenate([np.zeros(inner, np.int32), own]),
        target=np.array(attributes["leaf_targetids"], np.int32),
        weight=attributes["leaf_weights"].reshape(-1),
    )


def _grown(node: Node, forest: Forest, targets: int, aggregate: str = "SUM") -> relax.Expr:
    """Return what the leaves add up to, [N, targets], in the precision of the trees."""
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
    """Convert TreeEnsembleRegressor: leaves of all trees for each target, [N, targets] float32."""
    forest, targets = _forest(node, "target"), int(node.attributes["n_targets"])
    scores = _with_base(node, _grown(node, forest, targets, _aggregate(node)))
    return transformed(node, node.emit(node.cast(scores, "float32")))


def convert_tree_ensemble(node: Node) -> relax.Expr:
    """Convert TreeEnsemble: leaves of all trees for each target, in the dtype of the leaves."""
    forest, targets = _plain_forest(node), int(node.attributes["n_targets"])
    return transformed(node, _grown(node, forest, targets, _aggregate(node)))


def convert_tree_ensemble_classifier(node: Node) -> list[relax.Expr | None]:
    """Convert TreeEnsembleClassifier: labels [N] and scores [N, classes].

    Two classes mostly have weights for one of them, the second by meaning, whatever its number.
    It is chosen above 0.5 where no weight is negative, and above 0 otherwise.
    """
    labels, forest = class_labels(node), _forest(node, "class")
    classes = _class_count(node)
    used: Sequence[int] = np.unique(forest.target).tolist()
    if classes < 2:
        raise Refusal("fewer than two classes are not supported")
    if classes > 2:
        scores = _with_base(node, _grown(node, forest, classes))
        scores = node.emit(node.cast(scores, "float32"))
        return [argmax_label(node, scores, labels), transformed(node, scores)]
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
    return [binary_label(node, positive, labels), both(node, scores, complement=shares)]


def _class_count(node: Node) -> int:
    attributes = node.attributes
    return len(attributes.get("classlabels_int64s") or attributes.get("classlabels_strings", ()))
