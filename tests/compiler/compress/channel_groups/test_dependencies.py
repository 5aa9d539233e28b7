"""What hangs together, checked against ONNX Runtime with zeros in the readers' weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from support.onnx_graphs import make_model, node, random
from tvm import IRModule

from edgec.compiler.compress.channel_groups.dependencies import Dependencies, Group
from edgec.compiler.compress.costs import costs_of
from edgec.compiler.frontend.canonical import canonical_model
from edgec.compiler.ir.graph import Graph
from edgec.compiler.ir.relax_helpers import op_name, shape_of
from edgec.compiler.ir.signature import Signature
from edgec.compiler.parity.reference import run_reference
from edgec.compiler.support.silent_onnxruntime import onnxruntime


class Case:
    """A small model, and what hangs together in it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        canonical = canonical_model(model)
        self.signature: Signature = canonical.signature
        self.graph = Graph(canonical.module, canonical.value_names)
        self.dependencies = Dependencies(self.graph)
        self.inputs = {
            spec.name: random(*(int(n) for n in spec.shape or ()), seed=9)
            for spec in self.signature.inputs
        }

    def groups(self, shape: Sequence[int], axis: int) -> list[Group]:
        """Those along an axis of the constant of a shape, in its order."""
        found = [
            (slot.indices[0], group)
            for group in self.dependencies.groups
            for slot in group.slots
            if slot.axis == axis and self.dependencies.array(slot.place).shape == tuple(shape)
        ]
        return [group for _, group in sorted(found, key=lambda pair: pair[0])]

    def run(self, module: IRModule) -> np.ndarray:
        (output,) = run_reference(module, self.signature, self.inputs).values()
        return output

    def with_zeros(self, zeros: Mapping[str, tuple[int, Sequence[int]]]) -> np.ndarray:
        """ONNX Runtime, with indices along an axis of some weights set to zero."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for tensor in model.graph.initializer:
            if tensor.name in zeros:
                axis, indices = zeros[tensor.name]
                array = numpy_helper.to_array(tensor).copy()
                np.moveaxis(array, axis, 0)[list(indices)] = 0
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        session = onnxruntime.InferenceSession(model.SerializeToString())
        (output,) = session.run(None, self.inputs)
        return np.asarray(output)

    def check(
        self, groups: Sequence[Group], zeros: Mapping[str, tuple[int, Sequence[int]]]
    ) -> IRModule:
        """The smaller module gives what ONNX Runtime gives with zeros; without them it differs."""
        smaller = self.dependencies.without(groups)
        actual = self.run(smaller)
        # Float32 sums of some tens of values of order 1, in another order.
        np.testing.assert_allclose(actual, self.with_zeros(zeros), rtol=1e-4, atol=1e-4)
        assert np.abs(actual - self.with_zeros({})).max() > 1e-2
        return smaller


def shapes(module: IRModule, operator: str) -> list[tuple[int, ...]]:
    """Of the weights of an operator, in order."""
    bindings = [b.value for block in module["main"].body.blocks for b in block.bindings]
    calls = [value for value in bindings if op_name(value) == f"relax.{operator}"]
    return [shape_of(call.args[1]) or () for call in calls]


def conv(data: str, weight: str, out: str, **attributes: Any) -> Any:
    return node("Conv", [data, weight], [out], **attributes)


def test_a_chain_with_a_depthwise_convolution() -> None:
    case = Case(
        make_model(
            [
                conv("x", "w0", "a"),
                node("Relu", ["a"], ["b"]),
                conv("b", "w1", "c", group=6, pads=[1, 1, 1, 1]),
                node("Add", ["c", "bias"], ["d"]),
                conv("d", "w2", "y"),
            ],
            {"x": [1, 3, 5, 5]},
            ["y"],
            {
                "w0": random(6, 3, 1, 1),
                "w1": random(6, 1, 3, 3, seed=1),
                "bias": random(1, 6, 1, 1, seed=2),
                "w2": random(4, 6, 1, 1, seed=3),
            },
        )
    )
    assert len(case.dependencies.groups) == 6
    chosen = [case.groups((6, 3, 1, 1), 0)[i] for i in (1, 4)]
    smaller = case.check(chosen, {"w2": (1, [1, 4])})
    assert shapes(smaller, "nn.conv2d") == [(4, 3, 1, 1), (4, 1, 3, 3), (4, 4, 1, 1)]
    # The readers of other channels: not the same.
    wrong = case.with_zeros({"w2": (1, [1, 3])})
    assert np.abs(case.run(smaller) - wrong).max() > 1e-2


def test_a_residual_sum_ties_its_branches() -> None:
    case = Case(
        make_model(
            [
                conv("x", "w0", "a"),
                node("Relu", ["a"], ["b"]),
                conv("b", "w1", "c"),
                node("Add", ["b", "c"], ["d"]),
                node("Relu", ["d"], ["e"]),
                conv("e", "w2", "y"),
            ],
            {"x": [1, 3, 4, 4]},
            ["y"],
            {
                "w0": random(8, 3, 1, 1),
                "w1": random(8, 8, 1, 1, seed=1),
                "w2": random(4, 8, 1, 1, seed=3),
            },
        )
    )
    assert len(case.dependencies.groups) == 8
    chosen = [case.groups((8, 3, 1, 1), 0)[i] for i in (0, 7)]
    smaller = case.check(chosen, {"w1": (1, [0, 7]), "w2": (1, [0, 7])})
    assert shapes(smaller, "nn.conv2d")[1] == (6, 6, 1, 1)


def test_a_concatenation_keeps_its_offsets() -> None:
    case = Case(
        make_model(
            [
                conv("x", "w0", "a"),
                conv("x", "w1", "b"),
                node("Concat", ["a", "b"], ["c"], axis=1),
                node("MaxPool", ["c"], ["d"], kernel_shape=[2, 2]),
                conv("d", "w2", "y"),
            ],
            {"x": [1, 3, 4, 4]},
            ["y"],
            {
                "w0": random(4, 3, 1, 1),
                "w1": random(5, 3, 1, 1, seed=1),
                "w2": random(4, 9, 1, 1, seed=3),
            },
        )
    )
    chosen = [case.groups((4, 3, 1, 1), 0)[1], case.groups((5, 3, 1, 1), 0)[2]]
    case.check(chosen, {"w2": (1, [1, 6])})


def test_a_split_and_a_gate() -> None:
    case = Case(
        make_model(
            [
                conv("x", "w0", "a"),
                node("Split", ["a", "sizes"], ["b", "c"], axis=1),
                node("Sigmoid", ["c"], ["d"]),
                node("Mul", ["b", "d"], ["e"]),
                conv("e", "w1", "y"),
            ],
            {"x": [1, 3, 4, 4]},
            ["y"],
            {
                "w0": random(10, 3, 1, 1),
                "sizes": np.array([5, 5]),
                "w1": random(4, 5, 1, 1, seed=3),
            },
        )
    )
    # Channel i and channel i + 5 are one group.
    assert len(case.dependencies.groups) == 5
    smaller = case.check([case.groups((4, 5, 1, 1), 1)[2]], {"w1": (1, [2])})
    assert shapes(smaller, "nn.conv2d") == [(8, 3, 1, 1), (4, 4, 1, 1)]


def test_squeeze_and_excitation() -> None:
    case = Case(
        make_model(
            [
                conv("x", "w0", "a"),
                node("GlobalAveragePool", ["a"], ["b"]),
                conv("b", "w1", "c"),
                node("Relu", ["c"], ["d"]),
                conv("d", "w2", "e"),
                node("Sigmoid", ["e"], ["f"]),
                node("Mul", ["a", "f"], ["g"]),
                conv("g", "w3", "y"),
            ],
            {"x": [1, 3, 4, 4]},
            ["y"],
            {
                "w0": random(6, 3, 1, 1),
                "w1": random(2, 6, 1, 1, seed=1),
                "w2": random(6, 2, 1, 1, seed=2),
                "w3": random(4, 6, 1, 1, seed=3),
            },
        )
    )
    chosen = [case.groups((6, 3, 1, 1), 0)[3], case.groups((2, 6, 1, 1), 0)[0]]
    smaller = case.check(chosen, {"w1": (1, [3]), "w2": (1, [0]), "w3": (1, [3])})
    expected = [(5, 3, 1, 1), (1, 5, 1, 1), (5, 1, 1, 1), (4, 5, 1, 1)]
    assert shapes(smaller, "nn.conv2d") == expected


def test_a_flattened_image_before_a_matrix_product() -> None:
    case = Case(
        make_model(
            [
                conv("x", "w0", "a"),
                node("Relu", ["a"], ["b"]),
                node("Flatten", ["b"], ["c"]),
                node("MatMul", ["c", "w1"], ["y"]),
            ],
            {"x": [1, 3, 2, 2]},
            ["y"],
            {"w0": random(5, 3, 1, 1), "w1": random(20, 7, seed=1)},
        )
    )
    smaller = case.check([case.groups((5, 3, 1, 1), 0)[1]], {"w1": (0, [4, 5, 6, 7])})
    assert shapes(smaller, "matmul") == [(16, 7)]


def test_shuffled_groups_lose_the_same_channels() -> None:
    case = Case(
        make_model(
            [
                conv("x", "w0", "a", group=2),
                node("Reshape", ["a", "split"], ["b"]),
                node("Transpose", ["b"], ["c"], perm=[0, 2, 1, 3, 4]),
                node("Reshape", ["c", "joined"], ["d"]),
                conv("d", "w1", "e", group=8),
                conv("e", "w2", "y", group=2),
            ],
            {"x": [1, 4, 3, 3]},
            ["y"],
            {
                "w0": random(8, 2, 1, 1),
                "split": np.array([1, 2, 4, 3, 3]),
                "joined": np.array([1, 8, 3, 3]),
                "w1": random(8, 1, 1, 1, seed=1),
                "w2": random(6, 4, 1, 1, seed=2),
            },
        )
    )
    # Before: channels j and j + 4. Shuffled: 2 j and 2 j + 1; in the second convolution's groups
    # of four: j and j + 2 too.
    groups = case.groups((8, 2, 1, 1), 0)
    assert len(set(groups)) == 2
    case.check(groups[1:2], {"w2": (1, [2, 3])})


def attention() -> onnx.ModelProto:
    """Four heads of two channels, over sequences of three."""
    nodes: list[Any] = []
    for part, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            node("MatMul", ["x", f"w{part}"], [f"{part}0"]),
            node("Reshape", [f"{part}0", "heads"], [f"{part}1"]),
            node("Transpose", [f"{part}1"], [part], perm=order),
        ]
    nodes += [
        node("MatMul", ["q", "k"], ["scores"]),
        node("Softmax", ["scores"], ["shares"], axis=-1),
        node("MatMul", ["shares", "v"], ["mixed"]),
        node("Transpose", ["mixed"], ["back"], perm=[0, 2, 1, 3]),
        node("Reshape", ["back", "flat"], ["joined"]),
        node("MatMul", ["joined", "wo"], ["y"]),
    ]
    weights = {f"w{part}": random(5, 8, seed=i) for i, part in enumerate("qkv")}
    weights |= {"wo": random(8, 5, seed=4)}
    weights |= {"heads": np.array([1, 3, 4, 2]), "flat": np.array([1, 3, 8])}
    return make_model(nodes, {"x": [1, 3, 5]}, ["y"], weights)


def test_attention_heads_go_as_a_whole() -> None:
    case = Case(attention())
    assert len(case.dependencies.groups) == 4
    head = case.groups((8, 5), 0)[1]
    smaller = case.check([head], {"wo": (0, [2, 3])})
    assert shapes(smaller, "matmul")[-1] == (6, 5)


def softmax_over_channels() -> list[Any]:
    return [
        conv("x", "w0", "a"),
        node("Softmax", ["a"], ["b"], axis=1),
        conv("b", "w1", "y"),
    ]


def unknown_operator() -> list[Any]:
    return [
        conv("x", "w0", "a"),
        node("CumSum", ["a", "axis"], ["b"]),
        conv("b", "w1", "y"),
    ]


def mean_over_channels() -> list[Any]:
    return [
        conv("x", "w0", "a"),
        node("ReduceMean", ["a"], ["m"], axes=[1]),
        node("Sub", ["a", "m"], ["b"]),
        conv("b", "w1", "y"),
    ]


@pytest.mark.parametrize(
    "nodes", [softmax_over_channels(), unknown_operator(), mean_over_channels()]
)
def test_what_needs_all_channels_keeps_them(nodes: list[Any]) -> None:
    weights = {
        "w0": random(6, 3, 1, 1),
        "w1": random(4, 6, 1, 1, seed=1),
        "axis": np.array(1),
    }
    case = Case(make_model(nodes, {"x": [1, 3, 4, 4]}, ["y"], weights))
    assert not case.dependencies.groups


def test_the_count_of_multiplications_follows() -> None:
    case = Case(attention())
    head = case.groups((8, 5), 0)[0]
    smaller = Graph(case.dependencies.without([head]), {})
    kept = case.dependencies.kept([head])
    terms = case.dependencies.multiplications
    counted = sum(
        term.factor * int(np.prod([np.count_nonzero(kept[ids]) for ids in term.axes]))
        for term in terms
    )
    assert counted == costs_of(smaller).macs < costs_of(case.graph).macs
