"""List models of one operator, for `benchmark_operators.py`.

This file is long because it is a table of all operators.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from support.onnx_graphs import make_model, node

Shape = tuple[int, ...]
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class OperatorCase:
    """An operator case describes a model of one operator and its inputs.

    Attributes:
        name: what people call it.
        op_type: name of the operator, with its domain before a colon if it has one.
        inputs: the arrays that it is run on, by name.
        weights: constant operands, by name; a name is "" where an operand is left out.
        attributes: those of the node.
        outputs: how many.
        opset: operator set.
    """

    name: str
    op_type: str
    inputs: Arrays
    weights: Arrays = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    outputs: int = 1
    opset: int = 17

    def model(self) -> onnx.ModelProto:
        """Return the model; operands are first the inputs, then the weights."""
        domain, _, op_type = self.op_type.rpartition(":")
        names = [f"y{index}" for index in range(self.outputs)]
        operands = [*self.inputs, *(n if a.size else "" for n, a in self.weights.items())]
        made = node(op_type, operands, names, domain=domain, **self.attributes)
        kinds = {n: onnx.helper.np_dtype_to_tensor_dtype(a.dtype) for n, a in self.inputs.items()}
        shapes = {name: array.shape for name, array in self.inputs.items()}
        kept = {name: array for name, array in self.weights.items() if array.size}
        dtypes = {**dict.fromkeys(names, onnx.TensorProto.UNDEFINED), **kinds}
        model = make_model([made], shapes, names, kept, opset=self.opset, dtypes=dtypes)
        known = [array.dtype for array in self.inputs.values()]
        for output in model.graph.output:
            if not output.type.tensor_type.elem_type:
                kind = onnx.helper.np_dtype_to_tensor_dtype(known[0])
                output.type.tensor_type.elem_type = kind
        return model


def _floats(*shape: int, dtype: str = "float32", low: float = -2, high: float = 2) -> np.ndarray:
    generator = np.random.default_rng(0)
    return generator.uniform(low, high, shape).astype(dtype)


def _whole(*shape: int, dtype: str = "int64", low: int = 0, high: int = 100) -> np.ndarray:
    return np.random.default_rng(1).integers(low, high, shape).astype(dtype)


def _x(*shape: int, **kwargs: Any) -> dict[str, np.ndarray]:
    return {"x": _floats(*shape, **kwargs)}


def _xy(*shape: int, other: Shape = (), **kwargs: Any) -> dict[str, np.ndarray]:
    second = _floats(*(other or shape), **kwargs)
    return {"x": _floats(*shape, **kwargs), "z": second[..., ::-1].copy()}


def _conv(
    name: str,
    channels: int,
    out: int,
    kernel: Shape,
    extents: Shape,
    dtype: str = "float32",
    op_type: str = "Conv",
    groups: int = 1,
    **attributes: Any,
) -> OperatorCase:
    first, second = (out, channels // groups) if op_type == "Conv" else (channels, out // groups)
    weights = {"w": _floats(first, second, *kernel, dtype=dtype), "b": _floats(out, dtype=dtype)}
    pads = attributes.pop("pads", [k // 2 for k in kernel] * 2)
    attributes = {"pads": pads, "group": groups, **attributes}
    return OperatorCase(name, op_type, _x(1, channels, *extents, dtype=dtype), weights, attributes)


_IMAGE = (1, 64, 64, 64)
_EMPTY = np.zeros(0, np.float32)


def _norm(name: str, op_type: str, shape: Shape, count: int, **attributes: Any) -> OperatorCase:
    parameters = {"s": _floats(count), "b": _floats(count, low=-1)}
    return OperatorCase(name, op_type, _x(*shape), parameters, attributes)


def _einsum(equation: str, one: Shape, other: Shape) -> OperatorCase:
    inputs = {"x": _floats(*one), "z": _floats(*other)}
    return OperatorCase(f"Einsum {equation}", "Einsum", inputs, {}, {"equation": equation})


NETWORKS = (
    # Attention of a diffusion U-Net at 128 x 128, from 32 x 32 and 16 x 16 on.
    _einsum("nchk,nchq->nkq", (1, 64, 4, 1024), (1, 64, 4, 1024)),
    _einsum("nkq,nchk->nchq", (1, 1024, 1024), (1, 64, 4, 1024)),
    _einsum("bhid,bhjd->bhij", (1, 4, 1024, 64), (1, 4, 1024, 64)),
    _einsum("bhij,bhjd->bhid", (1, 4, 1024, 1024), (1, 4, 1024, 64)),
    _einsum("bhdi,bhdj->bhij", (1, 8, 32, 256), (1, 8, 32, 256)),
    _einsum("bij,bjk->bik", (8, 256, 256), (8, 256, 256)),
    _norm("InstanceNormalization 64 at 128", "InstanceNormalization", (1, 64, 128, 128), 64),
    _norm("InstanceNormalization 512 groups rows", "InstanceNormalization", (1, 32, 32768), 32),
    OperatorCase(
        "GroupNormalization 32 of 128 at 64",
        "GroupNormalization",
        _x(1, 128, 64, 64),
        {"s": _floats(128), "b": _floats(128)},
        {"num_groups": 32},
        opset=21,
    ),
    OperatorCase(
        "GroupNormalization 32 of 512 at 16",
        "GroupNormalization",
        _x(1, 512, 16, 16),
        {"s": _floats(512), "b": _floats(512)},
        {"num_groups": 32},
        opset=21,
    ),
    OperatorCase(
        "LayerNormalization last",
        "LayerNormalization",
        _x(1, 1024, 256),
        {"s": _floats(256), "b": _floats(256)},
    ),
    OperatorCase(
        "LayerNormalization axis 1",
        "LayerNormalization",
        _x(4, 64, 32, 32),
        {"s": _floats(64, 32, 32), "b": _floats(64, 32, 32)},
        {"axis": 1},
    ),
    OperatorCase(
        "LayerNormalization axis 2",
        "LayerNormalization",
        _x(1, 64, 64, 64),
        {"s": _floats(64, 64), "b": _floats(64, 64)},
        {"axis": 2},
    ),
    OperatorCase("MeanVarianceNormalization", "MeanVarianceNormalization", _x(*_IMAGE)),
    OperatorCase("Softmax attention", "Softmax", _x(1, 4, 256, 1024)),
    OperatorCase("Softmax large row", "Softmax", _x(1, 262144)),
    OperatorCase("Softmax over channels", "Softmax", _x(*_IMAGE), {}, {"axis": 1}),
    # A 3-D segmentation network at 32 x 64 x 64.
    _conv("Conv3d 1 -> 16 at 32x64x64", 1, 16, (3, 3, 3), (32, 64, 64)),
    _conv("Conv3d 16 -> 32 at 16x32x32", 16, 32, (3, 3, 3), (16, 32, 32)),
    _conv("Conv3d 64 -> 64 at 8x16x16", 64, 64, (3, 3, 3), (8, 16, 16)),
    _conv("Conv3d 32 -> 64 stride 2", 32, 64, (3, 3, 3), (16, 32, 32), strides=[2, 2, 2]),
    _conv("Conv3d 1x1x1 32 -> 4", 32, 4, (1, 1, 1), (16, 32, 32)),
    _conv("Conv3d dilated", 16, 16, (3, 3, 3), (16, 32, 32), dilations=[2] * 3, pads=[2] * 6),
    _conv("Conv3d depthwise", 32, 32, (3, 3, 3), (16, 32, 32), groups=32),
    _conv(
        "ConvTranspose3d 64 -> 32 2x2x2",
        64,
        32,
        (2, 2, 2),
        (8, 16, 16),
        op_type="ConvTranspose",
        strides=[2] * 3,
        pads=[0] * 6,
    ),
    _conv(
        "ConvTranspose3d 32 -> 16 3x3x3",
        32,
        16,
        (3, 3, 3),
        (8, 16, 16),
        op_type="ConvTranspose",
        strides=[2] * 3,
        output_padding=[1] * 3,
    ),
    OperatorCase(
        "MaxPool3d 2",
        "MaxPool",
        _x(1, 16, 16, 32, 32),
        {},
        {"kernel_shape": [2] * 3, "strides": [2] * 3},
    ),
    OperatorCase(
        "MaxPool3d 3 stride 1",
        "MaxPool",
        _x(1, 16, 16, 32, 32),
        {},
        {"kernel_shape": [3] * 3, "pads": [1] * 6},
    ),
    OperatorCase(
        "AveragePool3d 2",
        "AveragePool",
        _x(1, 16, 16, 32, 32),
        {},
        {"kernel_shape": [2] * 3, "strides": [2] * 3},
    ),
    OperatorCase("GlobalAveragePool3d", "GlobalAveragePool", _x(1, 16, 16, 32, 32)),
    OperatorCase("GlobalMaxPool3d", "GlobalMaxPool", _x(1, 16, 16, 32, 32)),
    _norm("InstanceNormalization 3-D", "InstanceNormalization", (1, 16, 16, 32, 32), 16),
)

_UNARY = (
    *("Abs", "Ceil", "Cos", "Elu", "Erf", "Exp", "Floor", "HardSigmoid", "HardSwish", "LeakyRelu"),
    *("Neg", "Not", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign"),
    *("Tan", "Tanh", "ThresholdedRelu", "Mish", "Celu", "Gelu", "Sinh", "Cosh", "Asinh", "Atan"),
    *("IsNaN", "IsInf", "Identity"),
)
_POSITIVE = ("Log", "Sqrt", "Reciprocal", "Acosh", "Asin", "Acos", "Atanh")
_BINARY = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "PRelu", "Mod")
_COMPARE = ("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual")
_REDUCE = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean"),
    *("ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"),
)
_REDUCED_AXES = ("last", (3,)), ("rows and columns", (2, 3)), ("channels", (1,)), ("all", ())


def _unary() -> list[OperatorCase]:
    found = []
    for name in _UNARY:
        inputs = {"x": _whole(*_IMAGE, high=2).astype(bool)} if name == "Not" else _x(*_IMAGE)
        opset = 20 if name == "Gelu" else 18 if name == "Mish" else 17
        found.append(OperatorCase(name, name, inputs, opset=opset))
    for name in _POSITIVE:
        low = 1.0 if name == "Acosh" else 0.1
        inputs = _x(*_IMAGE, low=low, high=2.0 if name == "Acosh" else 0.9)
        found.append(OperatorCase(name, name, inputs))
    return found


def _binary() -> list[OperatorCase]:
    found = []
    for name in _BINARY:
        inputs = _xy(*_IMAGE, low=0.5)
        attributes = {"fmod": 1} if name == "Mod" else {}
        found.append(OperatorCase(name, name, inputs, {}, attributes))
    for name in _COMPARE:
        found.append(OperatorCase(name, name, _xy(*_IMAGE)))
    for name in ("And", "Or", "Xor"):
        bits = {k: _whole(*_IMAGE, high=2).astype(bool) for k in ("x", "z")}
        found.append(OperatorCase(name, name, bits))
    found += [
        OperatorCase("Add by rows", "Add", _xy(512, 512, other=(512,))),
        OperatorCase("Add by columns", "Add", _xy(512, 512, other=(512, 1))),
        OperatorCase("Add by channels", "Add", _xy(*_IMAGE, other=(1, 64, 1, 1))),
        OperatorCase("Sum of 3", "Sum", {**_xy(*_IMAGE), "u": _floats(*_IMAGE)}),
    ]
    for dtype in ("float16", "float64", "int32", "int64", "int8", "uint8"):
        if dtype.startswith("f"):
            inputs = _xy(*_IMAGE, dtype=dtype)
        else:
            inputs = {k: _whole(*_IMAGE, dtype=dtype, low=1, high=10) for k in ("x", "z")}
        found.append(OperatorCase(f"Add {dtype}", "Add", inputs, opset=17))
        found.append(OperatorCase(f"Mul {dtype}", "Mul", inputs, opset=17))
    whole = {k: _whole(512, 512, dtype="int32", low=1, high=99) for k in ("x", "z")}
    found.append(OperatorCase("Div int32", "Div", whole))
    found.append(OperatorCase("Mod int32", "Mod", whole))
    inputs = {"c": _whole(*_IMAGE, high=2).astype(bool), **_xy(*_IMAGE)}
    found.append(OperatorCase("Where", "Where", inputs))
    clip = {"lo": np.float32(-1).reshape(()), "hi": np.float32(1).reshape(())}
    found.append(OperatorCase("Clip", "Clip", _x(*_IMAGE), clip))
    return found


def _reductions() -> list[OperatorCase]:
    found = []
    for name in _REDUCE:
        for label, axes in _REDUCED_AXES:
            inputs = (
                _x(*_IMAGE, low=0.5, high=1.5)
                if name != "ReduceProd"
                else _x(*_IMAGE, low=0.99, high=1.01)
            )
            attributes = {"axes": list(axes)} if axes else {}
            opset = 17 if name != "ReduceSum" else 11
            found.append(OperatorCase(f"{name} {label}", name, inputs, {}, attributes, 1, opset))
    for name in ("ArgMax", "ArgMin"):
        for axis in (1, 3):
            inputs = _x(*_IMAGE)
            found.append(OperatorCase(f"{name} axis {axis}", name, inputs, {}, {"axis": axis}))
    for axis in (0, 1):
        inputs, one = _x(512, 512), {"a": np.array(axis, np.int64)}
        found.append(OperatorCase(f"CumSum axis {axis}", "CumSum", inputs, one))
    for name in ("LogSoftmax", "Hardmax", "Softmax"):
        found.append(OperatorCase(f"{name} last", name, _x(512, 512)))
    found.append(OperatorCase("LogSoftmax axis 1", "LogSoftmax", _x(*_IMAGE), {}, {"axis": 1}))
    found.append(OperatorCase("LpNormalization", "LpNormalization", _x(512, 512)))
    return found


def _layout() -> list[OperatorCase]:
    def shape(*extents: int) -> dict[str, np.ndarray]:
        return {"s": np.array(extents, np.int64)}

    image = _x(*_IMAGE)
    found = [
        OperatorCase("Transpose matrix", "Transpose", _x(512, 512)),
        OperatorCase("Transpose to NHWC", "Transpose", image, {}, {"perm": [0, 2, 3, 1]}),
        OperatorCase("Transpose to NCHW", "Transpose", image, {}, {"perm": [0, 3, 1, 2]}),
        OperatorCase("Transpose heads", "Transpose", _x(1, 512, 8, 64), {}, {"perm": [0, 2, 1, 3]}),
        OperatorCase("Transpose keys", "Transpose", _x(1, 512, 8, 64), {}, {"perm": [0, 2, 3, 1]}),
        OperatorCase("Tile", "Tile", _x(1, 64, 32, 32), shape(1, 1, 2, 2)),
        OperatorCase("Expand", "Expand", _x(1, 64, 1, 64), shape(1, 64, 64, 64)),
        OperatorCase("Concat channels", "Concat", _xy(1, 32, 64, 64), {}, {"axis": 1}),
        OperatorCase("Concat last", "Concat", _xy(512, 256), {}, {"axis": 1}),
        OperatorCase("Split channels", "Split", image, {}, {"axis": 1}, 2),
        OperatorCase("Split last", "Split", _x(512, 512), {}, {"axis": 1}, 2),
        OperatorCase(
            "Slice",
            "Slice",
            image,
            {
                "b": np.array([1, 1], np.int64),
                "e": np.array([63, 63], np.int64),
                "a": np.array([2, 3], np.int64),
            },
        ),
        OperatorCase(
            "Slice steps",
            "Slice",
            image,
            {
                "b": np.array([0, 0], np.int64),
                "e": np.array([64, 64], np.int64),
                "a": np.array([2, 3], np.int64),
                "t": np.array([2, 2], np.int64),
            },
        ),
        OperatorCase("Pad", "Pad", image, {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)}),
        OperatorCase(
            "Pad reflect",
            "Pad",
            image,
            {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)},
            {"mode": "reflect"},
        ),
        OperatorCase(
            "Pad edge",
            "Pad",
            image,
            {"p": np.array([0] * 3 + [8] + [0] * 3 + [8])},
            {"mode": "edge"},
        ),
        OperatorCase("DepthToSpace", "DepthToSpace", image, {}, {"blocksize": 2}),
        OperatorCase("SpaceToDepth", "SpaceToDepth", image, {}, {"blocksize": 2}),
        OperatorCase("Reshape", "Reshape", image, shape(64, 4096)),
        OperatorCase("Trilu", "Trilu", _x(512, 512)),
        OperatorCase("Cast to float16", "Cast", image, {}, {"to": onnx.TensorProto.FLOAT16}),
        OperatorCase("Cast to int32", "Cast", image, {}, {"to": onnx.TensorProto.INT32}),
        OperatorCase("Cast to int64", "Cast", image, {}, {"to": onnx.TensorProto.INT64}),
        OperatorCase("Cast to uint8", "Cast", _x(*_IMAGE, low=0, high=200), {}, {"to": 2}),
        OperatorCase("Cast to bool", "Cast", image, {}, {"to": onnx.TensorProto.BOOL}),
        OperatorCase(
            "Cast from int64", "Cast", {"x": _whole(*_IMAGE)}, {}, {"to": onnx.TensorProto.FLOAT}
        ),
        OperatorCase(
            "Cast from float16",
            "Cast",
            _x(*_IMAGE, dtype="float16"),
            {},
            {"to": onnx.TensorProto.FLOAT},
        ),
    ]
    table, rows = _floats(4096, 256), _whole(1024, high=4096)
    found += [
        OperatorCase("Gather rows", "Gather", {"x": table, "i": rows}),
        OperatorCase(
            "Gather columns",
            "Gather",
            {"x": _floats(512, 512), "i": _whole(512, high=512)},
            {},
            {"axis": 1},
        ),
        OperatorCase(
            "GatherElements",
            "GatherElements",
            {"x": _floats(512, 512), "i": _whole(512, 512, high=512)},
            {},
            {"axis": 1},
        ),
        OperatorCase(
            "GatherND", "GatherND", {"x": _floats(512, 512), "i": _whole(4096, 1, high=512)}
        ),
        OperatorCase(
            "ScatterElements",
            "ScatterElements",
            {"x": _floats(512, 512), "i": _whole(512, 64, high=512), "u": _floats(512, 64)},
            {},
            {"axis": 1, "reduction": "add"},
            opset=16,
        ),
        OperatorCase(
            "ScatterND",
            "ScatterND",
            {
                "x": _floats(512, 512),
                "i": np.random.default_rng(0).permutation(512)[:64].reshape(64, 1),
                "u": _floats(64, 512),
            },
        ),
        OperatorCase(
            "OneHot",
            "OneHot",
            {"i": _whole(1024, high=256)},
            {"d": np.array(256, np.int64), "v": np.array([0, 1], np.float32)},
        ),
        OperatorCase("TopK 100 of 8400", "TopK", _x(1, 8400), {"k": np.array([100])}, {}, 2),
        OperatorCase("TopK 10 of rows", "TopK", _x(256, 1024), {"k": np.array([10])}, {}, 2),
        OperatorCase(
            "ReverseSequence",
            "ReverseSequence",
            {"x": _floats(64, 64, 64), "l": np.full(64, 50, np.int64)},
        ),
    ]
    return found


def _windows() -> list[OperatorCase]:
    pool = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}
    image = _x(*_IMAGE)
    scales = {"r": _EMPTY, "s": np.array([1, 1, 2, 2], np.float32)}
    resize = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    found = [
        OperatorCase("MaxPool", "MaxPool", image, {}, pool),
        OperatorCase("AveragePool", "AveragePool", image, {}, pool),
        OperatorCase("MaxPool with indices", "MaxPool", image, {}, pool, 2),
        OperatorCase("LpPool", "LpPool", image, {}, pool, opset=18),
        OperatorCase("GlobalAveragePool", "GlobalAveragePool", image),
        OperatorCase("GlobalMaxPool", "GlobalMaxPool", image),
        OperatorCase("GlobalLpPool", "GlobalLpPool", image),
        OperatorCase("LRN", "LRN", image, {}, {"size": 5}),
        OperatorCase("Resize linear", "Resize", _x(1, 64, 32, 32), scales, resize),
        OperatorCase("Resize nearest", "Resize", _x(1, 64, 32, 32), scales),
        OperatorCase("Resize cubic", "Resize", _x(1, 64, 32, 32), scales, {"mode": "cubic"}),
        OperatorCase(
            "GridSample",
            "GridSample",
            {"x": _floats(1, 64, 64, 64), "g": _floats(1, 64, 64, 2, low=-1, high=1)},
            opset=16,
        ),
        OperatorCase(
            "BatchNormalization",
            "BatchNormalization",
            image,
            {n: _floats(64, low=0.5) for n in ("s", "b", "m", "v")},
        ),
        OperatorCase(
            "Col2Im",
            "Col2Im",
            _x(1, 64 * 9, 1024),
            {"s": np.array([32, 32]), "k": np.array([3, 3])},
            {"pads": [1] * 4},
            opset=18,
        ),
        OperatorCase(
            "RoiAlign",
            "RoiAlign",
            {
                "x": _floats(1, 64, 64, 64),
                "r": np.abs(_floats(20, 4, low=0, high=20)) + np.array([0, 0, 20, 20], np.float32),
                "b": np.zeros(20, np.int64),
            },
            {},
            {"output_height": 7, "output_width": 7, "spatial_scale": 1.0, "sampling_ratio": 2},
        ),
        OperatorCase(
            "MaxUnpool",
            "MaxUnpool",
            {
                "x": _floats(1, 64, 32, 32),
                "i": np.arange(64 * 32 * 32).reshape(1, 64, 32, 32) * 4,
            },
            {},
            {"kernel_shape": [2, 2], "strides": [2, 2]},
        ),
    ]
    for dtype in ("float32", "float16", "float64"):
        found += [
            _conv(f"Conv 3x3 {dtype}", 64, 64, (3, 3), (64, 64), dtype),
            _conv(f"Conv 1x1 {dtype}", 64, 64, (1, 1), (64, 64), dtype),
            _conv(f"Conv depthwise {dtype}", 64, 64, (3, 3), (64, 64), dtype, groups=64),
        ]
    up = {"op_type": "ConvTranspose", "strides": [2, 2]}
    found += [
        _conv("Conv1d", 64, 64, (3,), (4096,)),
        _conv("Conv in 4 groups", 64, 64, (3, 3), (64, 64), groups=4),
        _conv("Conv dilated", 64, 64, (3, 3), (64, 64), dilations=[2, 2], pads=[2] * 4),
        _conv("ConvTranspose 2x2", 64, 64, (2, 2), (64, 64), pads=[0] * 4, **up),
        _conv("ConvTranspose 4x4", 64, 32, (4, 4), (64, 64), pads=[1] * 4, **up),
        _conv("ConvTranspose in groups", 64, 64, (4, 4), (64, 64), groups=4, pads=[1] * 4, **up),
        _conv("ConvTranspose depthwise", 64, 64, (4, 4), (64, 64), groups=64, pads=[1] * 4, **up),
        _conv(
            "ConvTranspose dilated",
            64,
            64,
            (3, 3),
            (64, 64),
            op_type="ConvTranspose",
            dilations=[2, 2],
            pads=[2] * 4,
        ),
        _conv(
            "ConvTranspose1d dilated",
            64,
            64,
            (3,),
            (4096,),
            op_type="ConvTranspose",
            dilations=[2],
            pads=[2] * 2,
        ),
        OperatorCase(
            "Conv with run-time weights",
            "Conv",
            {"x": _floats(*_IMAGE), "w": _floats(64, 64, 3, 3)},
            {},
            {"pads": [1] * 4},
        ),
        OperatorCase(
            "DeformConv",
            "DeformConv",
            {"x": _floats(1, 32, 32, 32), "w": _floats(32, 32, 3, 3), "o": _floats(1, 18, 32, 32)},
            {},
            {"pads": [1] * 4},
            opset=19,
        ),
    ]
    return found


def _matrices() -> list[OperatorCase]:
    found = []
    for dtype in ("float32", "float16", "float64", "int32"):
        if dtype == "int32":
            one = _whole(512, 512, dtype=dtype)
            found.append(OperatorCase(f"MatMul {dtype}", "MatMul", {"x": one}, {"w": one.T.copy()}))
            continue
        weights = {"w": _floats(512, 512, dtype=dtype)}
        found.append(OperatorCase(f"MatMul {dtype}", "MatMul", _x(512, 512, dtype=dtype), weights))
        other = {**_x(512, 512, dtype=dtype), "w": weights["w"]}
        found.append(OperatorCase(f"MatMul {dtype} run-time", "MatMul", other))
    weights = {"w": _floats(512, 512), "b": _floats(512)}
    found += [
        OperatorCase("MatMul batches", "MatMul", _xy(8, 128, 128)),
        OperatorCase(
            "MatMul broadcast", "MatMul", {"x": _floats(8, 128, 128), "z": _floats(1, 128, 128)}
        ),
        OperatorCase(
            "MatMul shared left", "MatMul", {"x": _floats(128, 128), "z": _floats(8, 128, 128)}
        ),
        OperatorCase("MatMul by vector", "MatMul", {"x": _floats(512, 512), "z": _floats(512)}),
        OperatorCase("Gemm", "Gemm", _x(512, 512), weights, {"transB": 1}),
        OperatorCase("Gemm transposed", "Gemm", _xy(512, 512), {}, {"transA": 1, "transB": 1}),
    ]
    for data in ("uint8", "int8"):
        low, high = (0, 255) if data == "uint8" else (-127, 127)
        x = {"x": _whole(512, 512, dtype=data, low=low, high=high)}
        w = {"w": _whole(512, 512, dtype="int8", low=-127, high=127)}
        zeros = {"p": np.array(low + 100, data), "q": np.array(0, np.int8)}
        if data == "uint8":
            found += [
                OperatorCase("MatMulInteger run-time", "MatMulInteger", {**x, **w}),
                OperatorCase("MatMulInteger", "MatMulInteger", x, {**w, **zeros}),
            ]
            image = {"x": _whole(*_IMAGE, dtype=data, low=low, high=high)}
            kernel = {"w": _whole(64, 64, 3, 3, dtype="int8", low=-127, high=127)}
            pads = {"pads": [1] * 4}
            found.append(
                OperatorCase("ConvInteger", "ConvInteger", image, {**kernel, **zeros}, pads)
            )
        scale = np.float32(0.01).reshape(())
        parts = {
            "s": scale,
            "p": zeros["p"],
            **w,
            "t": scale,
            "q": zeros["q"],
            "u": np.float32(1).reshape(()),
            "r": np.array(low + 100, data),
        }
        found.append(OperatorCase(f"QLinearMatMul {data}", "QLinearMatMul", x, parts))
        image = {"x": _whole(*_IMAGE, dtype=data, low=low, high=high)}
        parts = dict(parts)
        parts["w"] = _whole(64, 64, 3, 3, dtype="int8", low=-127, high=127)
        found.append(
            OperatorCase(f"QLinearConv {data}", "QLinearConv", image, parts, {"pads": [1] * 4})
        )
        found.append(
            OperatorCase(
                f"DequantizeLinear {data}",
                "DequantizeLinear",
                image,
                {"s": scale, "p": zeros["p"]},
            )
        )
        found.append(
            OperatorCase(
                f"QuantizeLinear {data}",
                "QuantizeLinear",
                _x(*_IMAGE),
                {"s": scale, "p": zeros["p"]},
            )
        )
    found.append(
        OperatorCase("DynamicQuantizeLinear", "DynamicQuantizeLinear", _x(*_IMAGE), {}, {}, 3)
    )
    return found


def _recurrent() -> list[OperatorCase]:
    found = []
    for name, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        weights = {
            "w": _floats(1, gates * 128, 256, low=-0.1, high=0.1),
            "r": _floats(1, gates * 128, 128, low=-0.1, high=0.1),
        }
        found.append(OperatorCase(name, name, _x(32, 32, 256), weights, {"hidden_size": 128}))
    return found


CASES = (
    *_unary(),
    *_binary(),
    *_reductions(),
    *_layout(),
    *_windows(),
    *_matrices(),
    *_recurrent(),
)
