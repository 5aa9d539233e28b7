"""Moments are those of the patches that an operator reads, however they are added up."""

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from support.onnx_graphs import make_model, node, random

from edgec.compiler.backend import evaluate_here
from edgec.compiler.calibration import float_model
from edgec.compiler.calibration.float_model import FloatModel, observe
from edgec.compiler.calibration.moments import (
    Moments,
    begin_moments,
    input_patches,
    measure_moments,
)
from edgec.compiler.calibration.samples import Sample, Samples
from edgec.compiler.frontend.canonical import CanonicalModel, canonical_model
from edgec.compiler.ir.anchors import find_operators
from edgec.compiler.ir.graph import Graph
from edgec.compiler.ir.relax_helpers import shape_of

ROWS, IMAGE, BATCHES = (1, 6, 16), (1, 4, 7, 8), 9


@pytest.fixture(scope="module")
def canonical() -> CanonicalModel:
    nodes = [
        node("MatMul", ["rows", "q"], ["a"]),
        node("MatMul", ["rows", "k"], ["b"]),
        node("Conv", ["image", "w"], ["c"], group=2, pads=[1, 0, 2, 1], strides=[2, 1]),
    ]
    weights = {"q": random(16, 8, seed=1), "k": random(16, 4, seed=2), "w": random(6, 2, 3, 3)}
    return canonical_model(
        make_model(nodes, {"rows": ROWS, "image": IMAGE}, ["a", "b", "c"], weights)
    )


@pytest.fixture(scope="module")
def model(canonical: CanonicalModel) -> FloatModel:
    graph = Graph(canonical.module, canonical.value_names)
    read = [operator.inputs[0] for operator in find_operators(graph)]
    return FloatModel(graph, canonical.signature, read, evaluate_here)


@pytest.fixture(scope="module")
def measured(model: FloatModel) -> dict[str, Moments]:
    """The moments by the name of the input that an operator reads, twice for the rows."""
    operators = list(find_operators(model.graph))
    found = measure_moments(model, operators, Samples("made up", BATCHES, samples))
    return {f"{model.graph.names[o.inputs[0]]} {i}": m for i, (o, m) in enumerate(found)}


def samples() -> Iterator[Sample]:
    for seed in range(BATCHES):
        yield {"rows": random(*ROWS, seed=seed), "image": random(*IMAGE, seed=seed + 50)}


def test_products_of_all_batches_are_added(measured: dict[str, Moments]) -> None:
    rows = np.concatenate([sample["rows"][0] for sample in samples()]).astype(np.float64)
    moments = measured["rows 0"]
    assert moments.count == len(rows)
    np.testing.assert_allclose(moments.second[0], rows.T @ rows / len(rows), atol=1e-5)
    np.testing.assert_allclose(moments.mean[0], rows.mean(axis=0), atol=1e-6)


def test_operators_that_read_the_same_rows_share_them(measured: dict[str, Moments]) -> None:
    assert measured["rows 1"] is measured["rows 0"]
    assert measured["image 2"] is not measured["rows 0"]


def test_moments_that_begin_in_another_run_are_the_same(
    model: FloatModel, measured: dict[str, Moments]
) -> None:
    operators, given = list(find_operators(model.graph)), Samples("made up", BATCHES, samples)
    begun = begin_moments(operators, model.graph, BATCHES)
    assert begun is not None
    for values in observe(model, given, "moments"):
        begun.see(values)
    unread = Samples("unread", BATCHES, lambda: iter(()))
    for (_, found), expected in zip(
        measure_moments(model, operators, unread, begun=begun), measured.values(), strict=True
    ):
        np.testing.assert_array_equal(found.second, expected.second)
        np.testing.assert_array_equal(found.mean, expected.mean)
    assert not begun.is_of([[operator] for operator in operators])


def test_results_of_samples_are_kept_within_a_bound(
    model: FloatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, _ = (sample for _, sample in zip(range(3), samples(), strict=False))
    size = sum(array.nbytes for array in model.results(first).values())
    monkeypatch.setattr(float_model, "MAX_KEPT_BYTES", size)
    model.kept.clear()
    assert model.results(first) is model.results(dict(first))
    again = [model.results(second) for _ in range(2)]
    assert again[0] is not again[1]
    for name, array in again[0].items():
        np.testing.assert_array_equal(array, again[1][name])
        assert not np.array_equal(array, model.results(first)[name])


def test_patches_are_in_the_order_of_the_weights(canonical: CanonicalModel) -> None:
    graph = Graph(canonical.module, canonical.value_names)
    [conv] = [operator for operator in find_operators(graph) if operator.kind == "conv"]
    image = random(2, *IMAGE[1:], seed=3)
    padded = np.pad(image, ((0, 0), (0, 0), (1, 2), (0, 1)))
    windows = sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2]
    height, width = windows.shape[2:4]
    places = np.array([0, 5, height * width + 4])
    patches = input_patches(conv, graph, image, places)
    found = zip(*np.unravel_index(places, (2, height, width)), strict=True)
    expected = [windows[i, :, row, column] for i, row, column in found]
    assert patches.shape == (2, 18, 3)
    np.testing.assert_array_equal(patches.reshape(36, 3).T, np.stack(expected).reshape(3, 36))


def test_an_operator_is_measured_by_its_own_patches(
    canonical: CanonicalModel, measured: dict[str, Moments]
) -> None:
    graph = Graph(canonical.module, canonical.value_names)
    [conv] = [operator for operator in find_operators(graph) if operator.kind == "conv"]
    _, _, height, width = shape_of(conv.anchor) or ()
    everywhere = np.arange(height * width)
    patches = np.concatenate(
        [input_patches(conv, graph, sample["image"], everywhere) for sample in samples()], axis=2
    ).astype(np.float64)
    expected = patches @ patches.transpose(0, 2, 1) / patches.shape[2]
    np.testing.assert_allclose(measured["image 2"].second, expected, atol=1e-5)
