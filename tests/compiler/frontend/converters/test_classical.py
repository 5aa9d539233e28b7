"""Operators of ai.onnx.ml against ONNX Runtime, through the whole compile."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.tree import DecisionTreeRegressor
from support.onnx_graphs import make_model, node, random, save

from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.errors import UnsupportedModelError
from edgec.compiler.support.silent_onnxruntime import onnxruntime

Array = np.ndarray[Any, Any]
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def ml(op_type: str, inputs: list[str], outputs: list[str], **attributes: Any) -> Any:
    return node(op_type, inputs, outputs, domain="ai.onnx.ml", **attributes)


def built(nodes: list[Any], inputs: dict[str, Array], outputs: dict[str, int]) -> onnx.ModelProto:
    kinds = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in inputs.items()}
    shapes = {name: list(array.shape) for name, array in inputs.items()}
    model = make_model(nodes, shapes, list(outputs), dtypes=kinds | outputs)
    for opset in model.opset_import:
        opset.version = 3 if opset.domain else opset.version
    if any(item.op_type == "TreeEnsemble" for item in nodes):
        model.opset_import[1].version = 5
    return model


def check(
    folder: Path, nodes: list[Any], inputs: dict[str, Array], outputs: dict[str, int]
) -> dict[str, Array]:
    """Compile, with parity on these inputs, and compare on others; the compiled model's answers."""
    model = built(nodes, inputs, outputs)
    bundle = compile_model(
        save(model, folder), options=CompileOptions(inputs=inputs), output=folder / "m.edgec"
    )
    others = {name: np.roll(array, 1, axis=0)[::-1].copy() for name, array in inputs.items()}
    session = onnxruntime.InferenceSession(model.SerializeToString())
    found = bundle.run(others)
    for name, expected in zip(outputs, session.run(None, others), strict=True):
        assert found[name].dtype == expected.dtype
        np.testing.assert_allclose(found[name], expected, rtol=2e-5, atol=1e-6, err_msg=name)
    return found


def test_features(tmp_path: Path) -> None:
    nodes = [
        ml("Scaler", ["x"], ["a"], offset=[0.1, 0.2, 0.3], scale=[1.0, 2.0, 3.0]),
        ml("Scaler", ["i"], ["b"], offset=[1.0], scale=[0.5]),
        ml("Normalizer", ["x"], ["c"], norm="L2"),
        ml("Normalizer", ["x"], ["d"], norm="L1"),
        ml("Normalizer", ["x"], ["e"], norm="MAX"),
        ml("Binarizer", ["x"], ["f"], threshold=0.3),
        ml("FeatureVectorizer", ["x", "n"], ["g"], inputdimensions=[3, 2]),
        ml("OneHotEncoder", ["i"], ["h"], cats_int64s=[0, 3, 1]),
        ml("LabelEncoder", ["i"], ["j"], keys_int64s=[0, 3], values_floats=[0.5, -2.0]),
        ml("LabelEncoder", ["i"], ["k"], keys_int64s=[1, 2], values_int64s=[7, 9], default_int64=4),
        ml("Imputer", ["n"], ["l"], imputed_value_floats=[5.0, 6.0], replaced_value_float=np.nan),
    ]
    x = random(4, 3)
    x[2] = 0
    missing = random(4, 2, seed=1)
    missing[1, 0] = missing[3, 1] = np.nan
    inputs = {"x": x, "i": np.array([[0, 1], [2, 3], [3, 3], [1, 0]]), "n": missing}
    kinds = dict.fromkeys("abcdefghjl", FLOAT) | {"k": INT64}
    # NaN as an input is no test of parity; ONNX Runtime's answers are compared below.
    model = built(nodes, inputs, kinds)
    options = CompileOptions(parity=False)
    bundle = compile_model(save(model, tmp_path), options=options, output=tmp_path / "m.edgec")
    found, session = bundle.run(inputs), onnxruntime.InferenceSession(model.SerializeToString())
    for value, expected in zip(session.get_outputs(), session.run(None, inputs), strict=True):
        np.testing.assert_allclose(found[value.name], expected, rtol=1e-6, err_msg=value.name)


def test_array_feature_extractor(tmp_path: Path) -> None:
    nodes = [
        ml("ArrayFeatureExtractor", ["x", "i"], ["a"]),
        node("ReduceMax", ["i"], ["top"]),
    ]
    inputs = {"x": random(4, 3), "i": np.array([[2, 0]])}
    check(tmp_path, nodes, inputs, {"a": FLOAT, "top": INT64})


def test_linear_models(tmp_path: Path) -> None:
    three: dict[str, Any] = {
        "coefficients": random(12).tolist(),
        "intercepts": [0.1, -0.2, 0.3],
        "classlabels_ints": [5, 7, 9],
    }
    two: dict[str, Any] = {
        "coefficients": random(4, seed=2).tolist(),
        "intercepts": [0.1],
        "classlabels_ints": [3, 8],
    }
    both = {
        "coefficients": random(8, seed=3).tolist(),
        "intercepts": [0.1, 0.2],
        "classlabels_ints": [0, 1],
    }
    nodes = [
        ml("LinearRegressor", ["x"], ["a"], coefficients=random(4, seed=1).tolist()),
        ml(
            "LinearRegressor",
            ["x"],
            ["b"],
            coefficients=random(8, seed=1).tolist(),
            intercepts=[0.5, 1.5],
            targets=2,
        ),
        ml("LinearClassifier", ["x"], ["c", "d"], post_transform="SOFTMAX", **three),
        ml("LinearClassifier", ["x"], ["e", "f"], post_transform="LOGISTIC", **two),
        ml("LinearClassifier", ["x"], ["g", "h"], post_transform="LOGISTIC", **both),
        ml("LinearClassifier", ["x"], ["i", "j"], post_transform="NONE", **two),
    ]
    kinds = dict.fromkeys("abdfhj", FLOAT) | dict.fromkeys("cegi", INT64)
    found = check(tmp_path, nodes, {"x": random(9, 4, seed=5)}, kinds)
    assert len(np.unique(found["c"])) > 1
    assert len(np.unique(found["e"])) == 2


@pytest.mark.parametrize("kernel", ["LINEAR", "RBF", "POLY", "SIGMOID"])
def test_support_vectors(tmp_path: Path, kernel: str) -> None:
    operator = ml(
        "SVMRegressor",
        ["x"],
        ["y"],
        kernel_type=kernel,
        kernel_params=[0.3, 0.5, 3.0],
        n_supports=5,
        support_vectors=random(20, seed=1).tolist(),
        coefficients=random(5, seed=2).tolist(),
        rho=[0.25],
    )
    check(tmp_path, [operator], {"x": random(6, 4)}, {"y": FLOAT})


def rounded_down(threshold: float) -> float:
    """As float32, so that float32 data lie on the same side as in double precision."""
    near = np.float32(threshold)
    return float(near if near <= threshold else np.nextafter(near, np.float32(-np.inf)))


def tables(trees: list[Any], kind: str, weights_of: Any) -> dict[str, Any]:
    """Attributes of TreeEnsemble… from scikit-learn's trees; weights_of(tree, leaf) is a dict."""
    found: dict[str, list[Any]] = {}

    def put(**fields: Any) -> None:
        for name, value in fields.items():
            found.setdefault(name, []).append(value)

    for number, tree in enumerate(trees):
        for index in range(tree.node_count):
            leaf = tree.children_left[index] < 0
            put(
                nodes_treeids=number,
                nodes_nodeids=index,
                nodes_featureids=0 if leaf else int(tree.feature[index]),
                nodes_values=0.0 if leaf else rounded_down(tree.threshold[index]),
                nodes_modes="LEAF" if leaf else "BRANCH_LEQ",
                nodes_truenodeids=0 if leaf else int(tree.children_left[index]),
                nodes_falsenodeids=0 if leaf else int(tree.children_right[index]),
            )
            for target, weight in weights_of(tree, index).items() if leaf else ():
                put(
                    **{
                        f"{kind}_treeids": number,
                        f"{kind}_nodeids": index,
                        f"{kind}_ids": target,
                        f"{kind}_weights": float(weight),
                    }
                )
    return found


@pytest.mark.parametrize("classes", [2, 3])
def test_forest_of_scikit_learn(tmp_path: Path, classes: int) -> None:
    data, labels = load_iris(return_X_y=True)
    data, labels = data[labels < classes].astype(np.float32), labels[labels < classes]
    forest = RandomForestClassifier(7, random_state=0, max_depth=4).fit(data, labels)

    def shares(tree: Any, leaf: int) -> dict[int, float]:
        values = tree.value[leaf][0] / tree.value[leaf][0].sum() / 7
        return {0: values[1]} if classes == 2 else dict(enumerate(values))

    attributes = tables([tree.tree_ for tree in forest.estimators_], "class", shares)
    operator = ml(
        "TreeEnsembleClassifier",
        ["x"],
        ["label", "scores"],
        classlabels_int64s=[10, 20, 30][:classes],
        post_transform="NONE",
        **attributes,
    )
    rows = data[::7]
    found = check(tmp_path, [operator], {"x": rows}, {"label": INT64, "scores": FLOAT})
    others = np.roll(rows, 1, axis=0)[::-1]
    np.testing.assert_allclose(found["scores"], forest.predict_proba(others), atol=1e-5)
    assert found["label"].tolist() == (10 * (forest.predict(others) + 1)).tolist()


@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC"])
def test_boosted_classifier(tmp_path: Path, transform: str) -> None:
    """Margins that may be negative, NaN on its way by `missing_value_tracks_true`."""
    data = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32)
    tree = DecisionTreeRegressor(max_depth=3).fit(data, data[:, 0] - data[:, 2]).tree_
    attributes = tables([tree], "class", lambda t, leaf: {0: t.value[leaf][0][0]})
    operator = ml(
        "TreeEnsembleClassifier",
        ["x"],
        ["label", "scores"],
        classlabels_int64s=[0, 1],
        post_transform=transform,
        base_values=[0.125],
        nodes_missing_value_tracks_true=[i % 2 for i in range(tree.node_count)],
        **attributes,
    )
    data[3, :] = np.nan
    data[5, 1] = np.nan
    check(tmp_path, [operator], {"x": data}, {"label": INT64, "scores": FLOAT})


@pytest.mark.parametrize("aggregate", ["SUM", "AVERAGE", "MIN", "MAX"])
def test_regressor(tmp_path: Path, aggregate: str) -> None:
    data = random(60, 4)
    goal = np.stack([data[:, 0] * data[:, 1], data[:, 2]], 1)
    trees = [
        DecisionTreeRegressor(max_depth=depth, random_state=depth).fit(data, goal).tree_
        for depth in (2, 3, 5)
    ]
    attributes = tables(
        trees, "target", lambda t, leaf: dict(enumerate(t.value[leaf].ravel().tolist()))
    )
    operator = ml(
        "TreeEnsembleRegressor",
        ["x"],
        ["y"],
        n_targets=2,
        aggregate_function=aggregate,
        base_values=[0.5, -0.5],
        **attributes,
    )
    found = check(tmp_path, [operator], {"x": data[:20]}, {"y": FLOAT})
    assert len(np.unique(found["y"])) > 10


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tree_ensemble(tmp_path: Path, dtype: type) -> None:
    """Version 5: two trees, the second of them with a leaf on either side."""
    operator = ml(
        "TreeEnsemble",
        ["x"],
        ["y"],
        n_targets=2,
        aggregate_function=1,
        nodes_featureids=[0, 1, 2],
        nodes_splits=numpy_helper.from_array(np.array([0.1, -0.2, 0.3], dtype)),
        nodes_modes=numpy_helper.from_array(np.array([0, 3, 1], np.uint8)),
        nodes_truenodeids=[1, 0, 3],
        nodes_falsenodeids=[2, 1, 4],
        nodes_trueleafs=[0, 1, 1],
        nodes_falseleafs=[1, 1, 1],
        tree_roots=[0, 2],
        leaf_targetids=[0, 1, 0, 1, 0],
        leaf_weights=numpy_helper.from_array(np.array([1.5, 2.25, -3.0, 0.7, 4.1], dtype)),
    )
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    check(tmp_path, [operator], {"x": random(20, 3).astype(dtype)}, {"y": kind})


def test_everything_that_is_text_is_refused_at_once(tmp_path: Path) -> None:
    linear = ml(
        "LinearClassifier",
        ["x"],
        ["label", "scores"],
        coefficients=random(6).tolist(),
        intercepts=[0.0, 0.0],
        classlabels_strings=["cat", "dog"],
    )
    zipped = ml("ZipMap", ["scores"], ["named"], classlabels_strings=["cat", "dog"])
    model = built([linear], {"x": random(4, 3)}, {"label": TensorProto.STRING, "scores": FLOAT})
    model.graph.node.append(zipped)
    value = model.graph.output.add(name="named").type.sequence_type.elem_type.map_type
    value.key_type = TensorProto.STRING
    value.value_type.tensor_type.elem_type = FLOAT
    with pytest.raises(UnsupportedModelError, match=r"label holds text.*named is a list.*zipmap"):
        compile_model(save(model, tmp_path), output=tmp_path / "x.edgec")


def test_scores_beside_text_compile(tmp_path: Path) -> None:
    """Labels that are text may be left out, and their readers are told that they are text."""
    linear = ml(
        "LinearClassifier",
        ["x"],
        ["label", "scores"],
        coefficients=random(6).tolist(),
        intercepts=[0.0, 0.0],
        post_transform="SOFTMAX",
        classlabels_strings=["cat", "dog"],
    )
    check(tmp_path, [linear], {"x": random(4, 3)}, {"scores": FLOAT})
    encode = ml("LabelEncoder", ["label"], ["y"], keys_strings=["dog"], values_int64s=[1])
    model = built([linear, encode], {"x": random(4, 3)}, {"y": INT64, "scores": FLOAT})
    with pytest.raises(UnsupportedModelError, match=r"LabelEncoder.*holds text"):
        compile_model(save(model, tmp_path), output=tmp_path / "x.edgec")
