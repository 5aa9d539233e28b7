"""Shapes, reductions, windows, indices, sampling and transforms against ONNX Runtime.

Many nodes share a model, each with outputs of its own, since compiling takes longest.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from support.onnx_graphs import make_model, node, random, save, to_relax

from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.errors import UnsupportedModelError
from edgec.compiler.ir.signature import graph_signature
from edgec.compiler.parity.reference import run_reference
from edgec.compiler.support.silent_onnxruntime import onnxruntime

Array = np.ndarray[Any, Any]


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def check(
    folder: Path,
    nodes: list[Any],
    inputs: dict[str, Array],
    weights: dict[str, Array] | None = None,
    opset: int = 20,
    reference: bool = False,
) -> None:
    """Compile and run; outputs must be what ONNX Runtime, or ONNX's reference, computes."""
    names = [name for item in nodes for name in item.output if name]
    graph = helper.make_graph(
        nodes,
        "test",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for name, array in inputs.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in names],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    model = onnx.shape_inference.infer_shapes(model)
    if reference:
        expected = ReferenceEvaluator(model).run(None, inputs)
    else:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        expected = session.run(None, inputs)
    options = CompileOptions(parity=False)
    bundle = compile_model(save(model, folder), options=options, output=folder / "model.edgec")
    found = bundle.run(inputs)
    for name, value in zip(names, expected, strict=True):
        assert found[name].dtype == value.dtype, name
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def numbered(specs: list[tuple[str, list[str], dict[str, Any]]]) -> list[Any]:
    """A node for each operator, inputs and attributes; outputs y0, y1, ..."""
    return [node(op, names, [f"y{i}"], **a) for i, (op, names, a) in enumerate(specs)]


def test_shapes(tmp_path: Path) -> None:
    weights = {
        "pads": ints(1, 0, -1, 2, 1, 3),
        "two": ints(0, 2),
        "few": ints(2, 1, 1, 2),
        "start": ints(-1, 4),
        "end": ints(-100, 0),
        "axes": ints(0, 2),
        "step": ints(-1, -2),
        "value": np.array(2.5, np.float32),
        "repeats": ints(2, 1, 3),
        "shape": ints(2, 1, 1, 5),
        "keep": ints(0, -1),
        "sizes": ints(2, 0, 3),
        "crop": ints(2, 7),
    }
    nodes = numbered(
        [
            ("Slice", ["x", "start", "end", "axes", "step"], {}),
            ("Pad", ["x", "pads", "value"], {}),
            ("Pad", ["x", "few", "", "axes"], {"mode": "reflect"}),
            ("Pad", ["x", "few", "", "axes"], {"mode": "edge"}),
            ("Pad", ["x", "few", "", "axes"], {"mode": "wrap"}),
            ("Pad", ["i", "pads"], {}),
            ("Tile", ["x", "repeats"], {}),
            ("Expand", ["x", "shape"], {}),
            ("Reshape", ["x", "keep"], {}),
            ("Unsqueeze", ["x", "two"], {}),
            ("CenterCropPad", ["x", "crop"], {"axes": [0, 2]}),
            ("DepthToSpace", ["image"], {"blocksize": 2, "mode": "CRD"}),
            ("DepthToSpace", ["image"], {"blocksize": 2}),
            ("SpaceToDepth", ["image"], {"blocksize": 2}),
        ]
    )
    nodes.append(node("Split", ["x", "sizes"], ["a", "b", "c"], axis=2))
    nodes.append(node("Split", ["x"], ["d", "e", "f"], axis=2, num_outputs=3))
    inputs = {"x": random(3, 4, 5), "image": random(1, 8, 4, 6)}
    check(tmp_path, nodes, inputs | {"i": np.arange(60).reshape(3, 4, 5)}, weights)


def test_integer_arithmetic(tmp_path: Path) -> None:
    """Signs, zero, overflow and mixed dtypes."""
    signed = np.array([7, -7, 7, -7, 5, -128], np.int8)
    divisors = np.array([3, 3, -3, -3, 4, 3], np.int8)
    weights = {"b": divisors}
    inputs = {
        "a": signed,
        "x": np.array([5.5, -5.5, 5.5, -5.5, 0.25, -np.inf], np.float32),
        "y": np.array([3, 3, -3, -3, 2, 2], np.float32),
        "base": np.array([3, -2, 1, -1, 0, 7], np.int64),
        "power": np.array([4, 3, 9, 7, 2, 5], np.int32),
        "bits": np.array([1, 200, 3, 255, 0, 9], np.uint8),
        "by": np.array([1, 2, 3, 0, 5, 7], np.uint8),
    }
    nodes = numbered(
        [
            ("Div", ["a", "b"], {}),
            ("Mod", ["a", "b"], {}),
            ("Mod", ["a", "b"], {"fmod": 1}),
            ("Mod", ["x", "y"], {"fmod": 1}),
            ("Pow", ["base", "power"], {}),
            ("Pow", ["y", "power"], {}),
            ("Pow", ["base", "y"], {}),
            ("BitShift", ["bits", "by"], {"direction": "LEFT"}),
            ("BitShift", ["bits", "by"], {"direction": "RIGHT"}),
            ("IsInf", ["x"], {"detect_negative": 0}),
            ("IsInf", ["x"], {"detect_positive": 0}),
            ("Elu", ["x"], {"alpha": 0.5}),
            ("Mish", ["x"], {}),
        ]
    )
    check(tmp_path, nodes[:-2], inputs, weights)
    check(tmp_path, nodes[-2:], {"x": 5 * random(3, 40)}, opset=22, reference=True)


REDUCTIONS = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]


def test_reductions(tmp_path: Path) -> None:
    nodes = numbered(
        [
            item
            for name in REDUCTIONS
            for item in (
                (f"Reduce{name}", ["x"], {"keepdims": 0}),
                (f"Reduce{name}", ["x", "axes"], {}),
                (f"Reduce{name}", ["empty" if name != "Mean" else "x", "last"], {}),
                (f"Reduce{name}", ["x"], {"noop_with_empty_axes": 1}),
            )
        ]
        + [
            ("ReduceMax", ["flag", "last"], {"keepdims": 0}),
            ("ReduceMin", ["flag", "last"], {}),
            ("ReduceSum", ["i", "last"], {}),
            ("ArgMax", ["i"], {"axis": 1, "select_last_index": 1}),
            ("ArgMin", ["i"], {"axis": -1, "keepdims": 0}),
        ]
    )
    rng = np.random.default_rng(0)
    inputs = {
        "x": rng.random((3, 4, 5)).astype(np.float32) + 0.5,
        "flag": rng.random((3, 2)) < 0.5,
        "i": rng.integers(0, 3, (4, 5)),
    }
    weights = {"axes": ints(0, -1), "last": ints(-1), "empty": np.zeros((2, 0), np.float32)}
    check(tmp_path, nodes, inputs, weights, reference=True)


RESIZES: list[dict[str, Any]] = [
    *({"mode": "nearest", "nearest_mode": r} for r in ("floor", "ceil", "round_prefer_ceil")),
    {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"},
    {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
    {"mode": "linear", "coordinate_transformation_mode": "half_pixel_symmetric"},
    {"mode": "linear", "antialias": 1},
    {"mode": "cubic"},
    {"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1},
    {"mode": "cubic", "antialias": 1},
]


def test_resize(tmp_path: Path) -> None:
    weights = {
        "scales": np.array([1, 1, 1.7, 0.6], np.float32),
        "twice": np.array([1, 1, 2, 2], np.float32),
        "sizes": ints(1, 2, 5, 13),
        "fit": ints(7, 9),
        "roi": np.array([0, 0, 0.2, -0.3, 1, 1, 0.7, 1.2], np.float32),
    }
    crop = {"coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 9.0}
    specs = [
        ("Resize", ["x", "", "scales"], item)
        for item in RESIZES
        if item.get("coordinate_transformation_mode") != "align_corners"
    ]
    specs += [("Resize", ["x", "", "", "sizes"], item) for item in RESIZES]
    specs += [("Resize", ["x", "", "twice"], {"mode": mode}) for mode in ("nearest", "linear")]
    specs.append(("Resize", ["x", "roi", "", "sizes"], {"mode": "linear", **crop}))
    policy = {"axes": [2, 3], "keep_aspect_ratio_policy": "not_larger"}
    specs.append(("Resize", ["x", "", "", "fit"], {"mode": "linear", **policy}))
    nodes = numbered(specs)
    check(tmp_path, nodes, {"x": random(1, 2, 8, 9)}, weights, opset=19, reference=True)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_corners_stay_corners(mode: str, tmp_path: Path) -> None:
    """Extents that scales do not give exactly are whole, as ONNX Runtime and PyTorch have it."""
    attributes = {"mode": mode, "coordinate_transformation_mode": "align_corners"}
    nodes = [node("Resize", ["x", "", "scales"], ["y"], **attributes)]
    weights = {"scales": np.array([1, 1, 1.7, 0.6], np.float32)}
    x = random(1, 2, 8, 9)
    check(tmp_path, nodes, {"x": x}, weights, opset=19)
    bundle = compile_model(tmp_path / "model.onnx", output=tmp_path / "corners.edgec")
    y = bundle.run({"x": x})["y"]
    for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        np.testing.assert_allclose(y[..., row, column], x[..., row, column], rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 17), (1, 8, 9, 11), (1, 2, 5, 7, 7)], ids=len)
def test_pooling(tmp_path: Path, shape: tuple[int, ...]) -> None:
    rank = len(shape) - 2
    base = {"kernel_shape": [3] * rank, "strides": [2] * rank}
    pads = {"pads": [1] * 2 * rank}
    spread = {"kernel_shape": [2] * rank, "dilations": [2] * rank, **pads}
    specs: list[tuple[str, list[str], dict[str, Any]]] = []
    for op in ("MaxPool", "AveragePool", "LpPool"):
        specs.append((op, ["x"], {"ceil_mode": 1, **pads, **base}))
        specs.append((op, ["x"], {"auto_pad": "SAME_LOWER", **base}))
        specs.append((op, ["x"], spread))
    for item in ({"ceil_mode": 1, **base, **pads}, {**base, **pads}, spread):
        specs.append(("AveragePool", ["x"], {"count_include_pad": 1, **item}))
    specs.append(("LpPool", ["x"], {"p": 3, **base}))
    specs += [(f"Global{kind}Pool", ["x"], {}) for kind in ("Average", "Max", "Lp")]
    specs.append(("LpNormalization", ["x"], {"p": 1, "axis": 1}))
    nodes = numbered(specs)
    nodes.append(node("MaxPool", ["x"], ["v", "i"], **base, **pads))
    nodes.append(node("MaxUnpool", ["v", "i"], ["u"], **base, **pads))
    check(tmp_path, nodes, {"x": random(*shape)}, opset=19)


def test_indices(tmp_path: Path) -> None:
    weights = {
        "g": np.array([[0, -1, 2, 1], [1, 1, -3, 0]]),
        "nd": np.array([[0, 1], [-1, -2]]),
        "u": random(2, 4, seed=1),
        "v": random(2, seed=2),
        "depth": ints(4),
        "pair": np.array([-1, 2], np.float32),
        "axis": np.array(1),
        "lens": ints(1, 3, 2, 3),
        "which": np.array([True, False, True]),
        "k": ints(3),
    }
    reductions = ("none", "add", "mul", "max", "min")
    specs: list[tuple[str, list[str], dict[str, Any]]] = [
        ("GatherElements", ["x", "g"], {"axis": 0}),
        ("GatherND", ["x", "nd"], {}),
        ("OneHot", ["g", "depth", "pair"], {"axis": 1}),
        ("ReverseSequence", ["x", "lens"], {"batch_axis": 1, "time_axis": 0}),
        ("Compress", ["x", "which"], {"axis": 0}),
        ("Hardmax", ["x"], {}),
        ("Trilu", ["x"], {"upper": 0}),
        ("Einsum", ["x", "x"], {"equation": "ij,kj->ik"}),
    ]
    specs += [
        ("CumSum", ["x", "axis"], {"exclusive": e, "reverse": r}) for e in (0, 1) for r in (0, 1)
    ]
    specs += [("ScatterElements", ["x", "g", "u"], {"reduction": r}) for r in reductions]
    specs += [("ScatterND", ["x", "nd", "v"], {"reduction": r}) for r in reductions]
    nodes = numbered(specs)
    nodes.append(node("TopK", ["x", "k"], ["t", "ti"], axis=0))
    nodes.append(node("TopK", ["r", "k"], ["s", "si"], largest=0))
    inputs = {"x": random(3, 4), "r": np.round(random(2, 3, 40))}
    check(tmp_path, nodes, inputs, weights, opset=18)


def test_boxes_and_samples(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    corners = np.sort(rng.random((2, 30, 2, 2)), axis=2).astype(np.float32)
    inputs = {
        "x": random(2, 3, 10, 12),
        "boxes": corners.reshape(2, 30, 4),
        "scores": rng.random((2, 4, 30)).astype(np.float32),
        "rois": (rng.random((4, 4)) * 5 + np.array([0, 0, 5, 5])).astype(np.float32),
        "grid": (rng.random((2, 5, 6, 2)) * 2.4 - 1.2).astype(np.float32),
        "columns": random(1, 18, 20),
        "square": random(2, 4, 4),
    }
    weights = {
        "most": ints(5),
        "overlap": np.array([0.3], np.float32),
        "least": np.array([0.2], np.float32),
        "batch": ints(0, 1, 1, 0),
        "image": ints(6, 7),
        "block": ints(3, 3),
    }
    size = {"output_height": 3, "output_width": 4, "spatial_scale": 0.8}
    specs: list[tuple[str, list[str], dict[str, Any]]] = [
        ("RoiAlign", ["x", "rois", "batch"], {**size, "sampling_ratio": 2}),
        ("RoiAlign", ["x", "rois", "batch"], size),
        ("RoiAlign", ["x", "rois", "batch"], {**size, "mode": "max"}),
        ("Col2Im", ["columns", "image", "block"], {}),
        ("Det", ["square"], {}),
        ("NonMaxSuppression", ["boxes", "scores", "most", "overlap", "least"], {}),
        ("NonMaxSuppression", ["boxes", "scores", "most"], {"center_point_box": 1}),
    ]
    specs += [
        ("GridSample", ["x", "grid"], {"mode": mode, "padding_mode": padding, "align_corners": c})
        for mode in ("linear", "nearest", "cubic")
        for padding, c in (("zeros", 0), ("border", 1), ("reflection", 0))
    ]
    check(tmp_path, numbered(specs), inputs, weights)


def test_deformed_convolution(tmp_path: Path) -> None:
    inputs = {"x": random(1, 4, 6, 7), "o": random(1, 36, 4, 5), "m": random(1, 18, 4, 5)}
    weights = {"w": random(6, 2, 3, 3), "b": random(6)}
    nodes = [
        node("DeformConv", ["x", "w", "o", "b", "m"], ["y"], group=2, offset_group=2),
    ]
    check(tmp_path, nodes, inputs, weights, opset=19, reference=True)


def test_fourier_transforms(tmp_path: Path) -> None:
    inputs = {"r": random(2, 15, 1), "c": random(2, 15, 2), "s": random(1, 64)}
    weights = {
        "n": np.array(12),
        "axis": np.array(1),
        "step": np.array(8),
        "size": np.array(16),
        "window": random(16),
    }
    nodes = numbered(
        [
            ("DFT", ["r", "", "axis"], {"onesided": 1}),
            ("DFT", ["c", "n", "axis"], {}),
            ("DFT", ["c", "", "axis"], {"inverse": 1}),
            ("STFT", ["s", "step", "window"], {}),
            ("STFT", ["s", "step", "", "size"], {"onesided": 0}),
        ]
    )
    check(tmp_path, nodes, inputs, weights)


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        (node("RandomUniformLike", ["x"], ["y"]), "its result is random"),
        (node("Reshape", ["x", "s"], ["y"]), "input 'shape' must be constant"),
    ],
    ids=["random", "reshape"],
)
def test_refusals(tmp_path: Path, operator: Any, message: str) -> None:
    kinds = {"s": onnx.TensorProto.INT64}
    model = make_model([operator], {"x": [2, 3], "s": [1]}, ["y"], {}, dtypes=kinds)
    with pytest.raises(UnsupportedModelError, match=message):
        compile_model(save(model, tmp_path), output=tmp_path / "x.edgec")


@pytest.mark.parametrize("antialias", [0, 1])
def test_images_of_bytes_are_resized_to_the_bit(tmp_path: Path, antialias: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, 10, 12), np.uint8)
    weights = {
        "half": np.array([1, 1, 0.5, 0.5], np.float32),
        "less": np.array([1, 1, 0.35, 0.35], np.float32),
        "more": np.array([1, 1, 2, 2], np.float32),
    }
    modes = ["linear", "cubic"] if antialias else ["linear"]
    nodes = numbered(
        [
            ("Resize", ["x", "", scale], {"mode": mode, "antialias": antialias})
            for scale in weights
            for mode in modes
        ]
    )
    check(tmp_path, nodes, {"x": pixels}, weights)


def test_a_past_of_nothing(tmp_path: Path) -> None:
    """The first step of a decoder: an open dimension that the user makes 0."""
    nodes = [
        node("Concat", ["past", "keys"], ["all"], axis=2),
        node("MatMul", ["all", "w"], ["y"]),
    ]
    shapes = {"past": [1, 2, "p", 4], "keys": [1, 2, 3, 4]}
    model = make_model(nodes, shapes, ["y", "all"], {"w": random(4, 5)})
    bundle = compile_model(
        save(model, tmp_path),
        options=CompileOptions(shapes={"past": (1, 2, 0, 4)}),
        output=tmp_path / "m.edgec",
    )
    keys = random(1, 2, 3, 4, seed=3)
    found = bundle.run({"past": np.zeros((1, 2, 0, 4), np.float32), "keys": keys})
    np.testing.assert_array_equal(found["all"], keys)
    np.testing.assert_allclose(found["y"], keys @ random(4, 5), rtol=1e-5)


@pytest.mark.parametrize("rank", [1, 3])
def test_transposed_convolutions_of_any_size(tmp_path: Path, rank: int) -> None:
    """Sizes that ONNX Runtime has, groups, dilations and both ways to split an odd padding."""
    data, weight = random(1, 4, *(3, 4, 5)[:rank]), random(4, 3, *(3, 4, 2)[:rank], seed=1)
    specs: list[dict[str, Any]] = [
        {},
        {"strides": [2] * rank, "pads": [1] * 2 * rank, "output_padding": [1] * rank},
        {"strides": [2] * rank, "auto_pad": "SAME_UPPER"},
        {"strides": [2] * rank, "auto_pad": "SAME_LOWER"},
        {"strides": [2] * rank, "auto_pad": "VALID"},
        {"strides": [3] * rank, "output_shape": [10, 12, 13][:rank]},
        {"strides": [2] * rank, "dilations": [2] * rank, "group": 2},
    ]
    nodes = numbered([("ConvTranspose", ["x", "w", "b"], spec) for spec in specs[:-1]])
    nodes.append(node("ConvTranspose", ["x", "w", "c"], ["grouped"], **specs[-1]))
    weights = {"w": weight, "b": random(3, seed=2), "c": random(6, seed=3)}
    check(tmp_path, nodes, {"x": data}, weights)


def test_zeros_behind_a_transposed_convolution() -> None:
    """Beyond what the kernel spreads there are zeros, and the bias; ONNX Runtime refuses it."""
    data, weight, bias = random(1, 2, 4, 5), random(2, 3, 3, 3, seed=1), random(3, seed=2)
    plain = {"strides": [2, 2]}
    (spread,) = onnxruntime.InferenceSession(
        make_model(
            [node("ConvTranspose", ["x", "w"], ["y"], **plain)],
            {"x": [1, 2, 4, 5]},
            ["y"],
            {"w": weight},
        ).SerializeToString()
    ).run(None, {"x": data})
    nodes = [
        node("ConvTranspose", ["x", "w", "b"], ["a"], output_padding=[3, 2], **plain),
        node(
            "ConvTranspose",
            ["x", "w", "b"],
            ["c"],
            pads=[1, 0, 2, 1],
            output_padding=[4, 1],
            **plain,
        ),
        node(
            "ConvTranspose",
            ["x", "w", "b"],
            ["d"],
            auto_pad="SAME_UPPER",
            output_shape=[12, 15],
            **plain,
        ),
    ]
    model = make_model(nodes, {"x": [1, 2, 4, 5]}, ["a", "c", "d"], {"w": weight, "b": bias})
    found = run_reference(to_relax(model), graph_signature(model.graph), {"x": data})
    column = bias[:, None, None]
    around = {
        "a": ((0, 3), (0, 2)),
        "c": ((0, 4), (0, 1)),
        "d": ((2, 1), (2, 2)),
    }
    for name, (rows, columns) in around.items():
        wanted = np.pad(spread, ((0, 0), (0, 0), rows, columns))
        if name == "c":
            wanted = wanted[:, :, 1 : wanted.shape[2] - 2, : wanted.shape[3] - 1]
        np.testing.assert_allclose(found[name], wanted + column, atol=1e-5, err_msg=name)
