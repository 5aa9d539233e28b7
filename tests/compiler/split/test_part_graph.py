"""Parts of operators on several devices: together they compute what the graph does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from support.onnx_graphs import make_model, node, random, save
from tvm import relax

from edgec.compiler.frontend.canonical import CanonicalModel, canonical_model
from edgec.compiler.split.choose_cuts import cuts_behind
from edgec.compiler.split.cut_graph import CutGraph
from edgec.compiler.split.devices import StageRequest
from edgec.compiler.split.model_values import ModelValues
from edgec.compiler.split.part_graph import PartGraph, PartReadings, make_part_graph
from edgec.targets import load_target

HERE = load_target("native")
UNOPTIMIZED = {"kind": "llvm", "opt-level": 0}


class Net:
    """A model, and what it computes on one device."""

    def __init__(self, nodes: Sequence[Any], shape: Sequence[int], folder: Path, **weights: Any):
        model = make_model(nodes, {"x": shape}, [nodes[-1].output[0]], weights)
        self.model: CanonicalModel = canonical_model(save(model, folder))
        values = ModelValues(self.model.module, self.model.value_names, self.model.signature, ())
        self.graph = CutGraph(values, [HERE])
        self.inputs = {"x": random(*shape, seed=5)}
        self.expected = self.run(self.model.module)

    def run(self, module: Any) -> list[Any]:
        """Return what a module computes, by TVM's own code: what is tested is the graph."""
        built = tvm.compile(relax.transform.LegalizeOps()(module), tvm.target.Target(UNOPTIMIZED))
        machine = relax.VirtualMachine(built, tvm.cpu())
        return [machine["main"](tvm.runtime.tensor(self.inputs["x"])).numpy()]

    def parts(self, *requests: StageRequest) -> tuple[PartReadings, PartGraph]:
        """Return the graph in parts."""
        known = ["a", "b", "c"]
        cuts = cuts_behind(self.graph, requests)
        bounds = [*cuts, frozenset(self.graph.operators)]
        segments = [request.segment(known) for request in requests]
        readings = PartReadings(self.graph, bounds, segments)
        return readings, make_part_graph(readings, self.graph, known)

    def largest_error(self, *requests: StageRequest) -> float:
        """Return how far the graph in parts is from the whole, as a share of the largest value."""
        (found,), (expected,) = self.run(self.parts(*requests)[1].module), self.expected
        assert found.shape == expected.shape
        return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Net:
    """Windows of all kinds on 21 rows: strides, pads of each side, dilation, groups, by channel."""
    weights = {
        "stem": 0.3 * random(8, 3, 7, 7),
        "depth": random(8, 1, 3, 3, seed=1),
        "point": 0.3 * random(8, 8, 1, 1, seed=2),
        "wide": 0.3 * random(8, 8, 3, 3, seed=3),
        "half": 0.3 * random(8, 4, 3, 2, seed=4),
        "last": 0.3 * random(8, 16, 3, 3, seed=6),
        "bias": random(8),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "f": random(8, 5, seed=7),
    }
    nodes = [
        node("Conv", ["x", "stem", "bias"], ["a0"], pads=[3, 2, 3, 3], strides=[2, 1]),
        node("Relu", ["a0"], ["a"]),
        node("MaxPool", ["a"], ["b"], kernel_shape=[3, 3], strides=[1, 2], pads=[1, 0, 1, 0]),
        node("Conv", ["b", "depth"], ["c0"], pads=[0, 1, 2, 1], group=8),
        node("HardSwish", ["c0"], ["c"]),
        node("Conv", ["c", "point"], ["d"]),
        node("Conv", ["d", "wide"], ["e0"], pads=[2, 2, 2, 2], dilations=[2, 2]),
        node("Add", ["e0", "b"], ["e1"]),
        node("Relu", ["e1"], ["e"]),
        node("AveragePool", ["e"], ["g"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        node("Conv", ["g", "half"], ["h"], pads=[1, 1, 1, 0], group=2),
        node(
            "Resize",
            ["h", "", "scales"],
            ["i"],
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        ),
        node("Slice", ["i", "starts", "ends", "axes"], ["j"]),
        node("Concat", ["e", "j"], ["k"], axis=1),
        node("Conv", ["k", "last"], ["l0"], pads=[1] * 4, strides=[2, 2]),
        node("Sigmoid", ["l0"], ["l"]),
        node("GlobalAveragePool", ["l"], ["m"]),
        node("Flatten", ["m"], ["n"]),
        node("MatMul", ["n", "f"], ["y"]),
    ]
    weights |= {"starts": np.array([0, 0]), "ends": np.array([11, 9]), "axes": np.array([2, 3])}
    return Net(nodes, [1, 3, 21, 18], tmp_path_factory.mktemp("images"), **weights)


def on(along: str, *until: str, devices: str = "ab", **settings: Any) -> StageRequest:
    return StageRequest(devices=tuple(devices), along=along, until=until, **settings)  # type: ignore[arg-type]


def one(*until: str) -> StageRequest:
    return StageRequest(device="a", until=until)


def test_rows_of_images_over_two_and_three_devices(images: Net) -> None:
    assert images.largest_error(on("rows", "b"), on("rows", "l", devices="abc"), one()) < 1e-5
    unequal = on("rows", "e", shares=(1.0, 2.5))
    assert images.largest_error(unequal, one("h"), on("rows", "l", devices="bc"), one()) < 1e-5


def test_channels_over_two_and_three_devices(images: Net) -> None:
    assert images.largest_error(on("channels", "b", devices="abc"), on("rows", "l"), one()) < 1e-5


def test_sums_over_channels(images: Net) -> None:
    assert images.largest_error(one("b"), on("sums", "d"), on("sums", "y", devices="abc")) < 1e-5


def test_rows_beside_those_of_a_part_are_the_receptive_field(images: Net) -> None:
    readings, _ = images.parts(one("b"), on("rows", "e"), one())
    (first,), (second,) = (
        [region for variable, region in readings.fetched[1, place].items()] for place in (0, 1)
    )
    # Of 11 rows 0 to 5 and 6 to 10; 2 more under the dilated kernel, then 2 below and none above.
    assert first[2] == (0, 10)
    assert second[2] == (4, 11)
