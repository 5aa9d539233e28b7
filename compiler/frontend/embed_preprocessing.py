"""Make the preparation of images a part of the model.

    x [N, C, H, W] float  ->  x [N, h, w, C] uint8, then
    cast, transpose, crop, resize, pad, order of the channels, (pixel * scale - mean) / std

Images are resized as Pillow does it: bilinearly, with an average over what shrinks. What reads
the image afterwards cannot tell, so that a program for a board hands over the bytes of a camera.
"""

from collections.abc import Iterable

import numpy as np
import onnx
import onnx.version_converter
from onnx import TensorProto, helper, numpy_helper

from edgec.compiler.errors import UnsupportedModelError, UsageError
from edgec.compiler.frontend.preprocessing import (
    EmbeddedPreprocessing,
    ImageInput,
    Preprocess,
    fit,
)
from edgec.compiler.ir.signature import TensorSpec, tensor_spec

# Of Resize with antialias, and of Clip, Pad and Slice whose operands are inputs.
RESIZE_OPSET = 18

DTYPES = ("float32", "float16", "uint8")


def embed_preprocessing(
    model: onnx.ModelProto, images: ImageInput
) -> tuple[onnx.ModelProto, EmbeddedPreprocessing]:
    """Copy a model of static shapes whose image input takes uint8 [N, height, width, C] instead.

    Args:
        model: result of `specialize`; stays as it is.
        images: what to embed.

    Raises:
        UsageError: there is no image input, or more than one, or the values do not fit it.
        UnsupportedModelError: the operator set is too old, and cannot be converted.
    """
    embedded = describe(model, images)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    if _opset(result) < RESIZE_OPSET:
        try:
            result = onnx.version_converter.convert_version(result, RESIZE_OPSET)
        except (RuntimeError, ValueError) as error:
            raise UnsupportedModelError(
                f"preprocessing needs operator set {RESIZE_OPSET}, and the model cannot be "
                f"converted to it: {' '.join(str(error).split())[:200]}; export it with a newer "
                "operator set, or compile without --embed-preprocess"
            ) from None
    graph = result.graph
    name, prepared = embedded.name, _fresh(graph, f"{embedded.name}/prepared")
    if name in {value.name for value in graph.output}:
        raise UsageError(
            f"--embed-preprocess: the model returns its input {name}, which would become bytes; "
            "drop that output first"
        )
    _rename(graph, name, prepared)
    nodes, constants = _Steps(embedded, prepared).run()
    for node in reversed(nodes):
        graph.node.insert(0, node)
    graph.initializer.extend(constants)
    (value,) = (value for value in graph.input if value.name == name)
    shape = (embedded.shape[0], *embedded.size, embedded.wanted[0])
    value.CopyFrom(helper.make_tensor_value_info(name, TensorProto.UINT8, shape))
    return result, embedded


def describe(model: onnx.ModelProto, images: ImageInput) -> EmbeddedPreprocessing:
    """Find the input that takes the images, and fix what is open.

    Raises:
        UsageError: see `embed_preprocessing`.
    """
    specs = list(map(tensor_spec, model.graph.input))
    layouts = {spec.name: _layout(spec, images.preprocess) for spec in specs}
    found = [spec for spec in specs if layouts[spec.name] and spec.dtype in DTYPES]
    if len(found) != 1:
        what = "no input takes" if not found else "more than one input takes"
        raise UsageError(
            f"--embed-preprocess: {what} images, [N, C, H, W] or [N, H, W, C] with 1 or 3 channels "
            f"of {', '.join(DTYPES)}, among {', '.join(map(str, specs))}"
        )
    (spec,) = found
    preprocess = images.preprocess.model_copy(update={"layout": layouts[spec.name]})
    shape = tuple(extent or 0 for extent in spec.shape)
    embedded = EmbeddedPreprocessing(
        name=spec.name, preprocess=preprocess, shape=shape, dtype=spec.dtype, size=(0, 0)
    )
    channels, height, width = embedded.wanted
    for name, values in (("mean", preprocess.mean), ("std", preprocess.std)):
        if len(values) not in (1, channels):
            raise UsageError(
                f"--preprocess {name} has {len(values)} values, {spec.name} has {channels} channels"
            )
    return EmbeddedPreprocessing(
        name=spec.name,
        preprocess=preprocess,
        shape=shape,
        dtype=spec.dtype,
        size=images.size or (height, width),
    )


def _layout(spec: TensorSpec, preprocess: Preprocess) -> str:
    """Return layout of an input that takes images, else empty."""
    shape = spec.shape
    if len(shape) != 4:
        return ""
    first, last = shape[1] in (1, 3), shape[3] in (1, 3)
    wanted = {"nchw": first, "nhwc": last}
    if preprocess.layout != "auto":
        return preprocess.layout if wanted[preprocess.layout] else ""
    return "nchw" if first else "nhwc" if last else ""


class _Steps:
    """Steps are nodes from the images to the original input.

    Attributes:
        nodes: in order.
        constants: what they read.
    """

    def __init__(self, embedded: EmbeddedPreprocessing, result: str) -> None:
        self.embedded = embedded
        self.result = result
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.value = embedded.name

    def run(self) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        """Write them."""
        how, dtype = self.embedded.preprocess, self.embedded.dtype
        channels, *wanted = self.embedded.wanted
        first = how.layout == "nchw"
        rows = 2 if first else 1
        self.add("Cast", to=TensorProto.FLOAT)
        if first:
            self.add("Transpose", perm=[0, 3, 1, 2])
        where = fit(self.embedded.size, (wanted[0], wanted[1]), how.resize)
        top, left, height, width = where.crop
        if (height, width) != self.embedded.size:
            ends, axes = [top + height, left + width], [rows, rows + 1]
            self.add("Slice", *map(np.array, ([top, left], ends, axes)))
        if where.resized != (height, width):
            self.add(
                "Resize",
                None,
                None,
                np.array(where.resized),
                mode="linear",
                antialias=1,
                exclude_outside=1,
                axes=[rows, rows + 1],
            )
        pads = np.zeros((2, 4), np.int64)
        for axis, (begin, size, extent) in enumerate(
            zip(where.place, where.resized, wanted, strict=True)
        ):
            pads[:, rows + axis] = begin, extent - size - begin
        if pads.any():
            self.add("Pad", pads.reshape(-1))
        if how.color == "bgr" and channels == 3:
            self.add("Gather", np.array([2, 1, 0]), axis=1 if first else 3)
        self.normalize(first)
        if dtype == "uint8":
            self.add("Round")
            self.add("Clip", np.float32(0), np.float32(255))
        if dtype != "float32":
            self.add("Cast", to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
        self.nodes[-1].output[0] = self.result
        return self.nodes, self.constants

    def normalize(self, first: bool) -> None:
        """Pixel * (scale / std) - mean / std, factors in double precision."""
        how = self.embedded.preprocess
        mean, std = (np.array(values, np.float64) for values in (how.mean, how.std))
        shape = (1, -1, 1, 1) if first else (1, 1, 1, -1)
        factor = (how.scale / std).astype(np.float32).reshape(shape)
        offset = (mean / std).astype(np.float32).reshape(shape)
        if np.any(factor != 1):
            self.add("Mul", factor)
        if np.any(offset != 0):
            self.add("Sub", offset)
        if self.nodes[-1].op_type == "Cast" and len(self.nodes) == 1:
            # So that the last node is never the one that reads the images.
            self.add("Identity")

    def add(
        self, op_type: str, *operands: np.ndarray | np.generic | None, **attributes: object
    ) -> None:
        """Append a node that reads the value so far and constants."""
        names = [self.value]
        for operand in operands:
            names.append("" if operand is None else f"{self.result}_c{len(self.constants)}")
            if operand is not None:
                self.constants.append(numpy_helper.from_array(np.asarray(operand), names[-1]))
        self.value = f"{self.result}_{len(self.nodes)}_{op_type}"
        self.nodes.append(
            helper.make_node(op_type, names, [self.value], name=self.value, **attributes)
        )


def _opset(model: onnx.ModelProto) -> int:
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)


def _fresh(graph: onnx.GraphProto, name: str) -> str:
    taken = {text for node in graph.node for text in (*node.input, *node.output)}
    while any(text.startswith(name) for text in taken):
        name += "_"
    return name


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Let nodes, also those of subgraphs, read another value."""
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new
        for inner in _subgraphs(node):
            hidden = {value.name for value in inner.input}
            if old not in hidden:
                _rename(inner, old, new)
                for value in inner.output:
                    if value.name == old:
                        value.name = new


def _subgraphs(node: onnx.NodeProto) -> Iterable[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs
