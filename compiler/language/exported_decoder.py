"""Give a decoder that ONNX Runtime GenAI's or another's tools exported the interface of our own.

Such a graph takes `input_ids`, `attention_mask` (and `position_ids`) of open lengths, and a cache
`past_key_values.N.key` and `.value`; its attention is GroupQueryAttention, or becomes that
(`plain_decoder.py`). Here the mask and the
positions follow from `past_length`, the cache has a fixed number of rows, and logits are computed
for the tokens `last` alone; see `decoder_graph.py`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgec.compiler.errors import UnsupportedModelError
from edgec.compiler.ir.signature import State
from edgec.compiler.language.folder_text import TOKENIZER, describe_text, digest_of, read_json
from edgec.compiler.language.language_model import LanguageModel, chosen_context
from edgec.compiler.language.plain_decoder import (
    KEY_LENGTHS,
    group_attention,
    has_growing_caches,
    rename_caches,
)
from edgec.compiler.language.settings import Settings

CONFIG = "genai_config.json"

_IDS, _MASK, _POSITIONS, _LOGITS = "input_ids", "attention_mask", "position_ids", "logits"
_PAST = "past_key_values."
_SCOPE = "edgec.interface"
# Between the product that makes logits and their output.
_SIMPLE = ("Cast", "Add", "Mul", "Div", "Tanh")
_PRODUCTS = ("MatMul", "MatMulNBits", "Gemm")


def is_exported_decoder(model: onnx.ModelProto) -> bool:
    """Return whether a graph has the inputs and the caches of an exported decoder."""
    if has_growing_caches(model):
        return True
    inputs = {value.name for value in model.graph.input}
    has_cache = any(name.startswith(_PAST) for name in inputs)
    attention = any(node.op_type == "GroupQueryAttention" for node in model.graph.node)
    return {_IDS, _MASK} <= inputs and has_cache and attention


def read_exported(
    model: onnx.ModelProto,
    context: int,
    path: Path,
    weights: Sequence[Path],
    states: Sequence[State] = (),
) -> tuple[str, LanguageModel]:
    """Change the interface of an exported decoder, and describe its text by the files beside it.

    Args:
        model: the graph, changed in place.
        context: rows of its cache, T.
        path: the model file.
        weights: files of its external data.
        states: inputs and outputs that are its caches, if they have names of their own.

    Returns:
        The content of `tokenizer.json`, empty if a decoder with growing caches has none; and what
        is to be known of the model beside it.

    Raises:
        UnsupportedModelError: its interface is not as the exporters write it.
        ModelFileError: the tokenizer is missing.
        UsageError: more context than it was made for.
    """
    folder = path.parent
    found = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    config = Settings(folder / CONFIG, found).section("model")
    trained = config.integer("context_length", context)
    chosen_context(context, trained, path)
    growing = has_growing_caches(model)
    if growing:
        rename_caches(model, [(state.input, state.output) for state in states], path)
    vocabulary = adapt_decoder(model, context, path)
    if growing and not (folder / TOKENIZER).is_file():
        return "", LanguageModel(
            name=path.stem,
            architecture="exported",
            context=context,
            trained_context=trained,
            vocabulary=vocabulary,
            digest=digest_of([path, *weights]),
        )
    return describe_text(
        folder,
        config,
        [path, *weights],
        architecture=config.text("type", "exported"),
        context=context,
        trained_context=trained,
        vocabulary=vocabulary,
    )


def adapt_decoder(model: onnx.ModelProto, context: int, path: Path) -> int:
    """Change the interface of an exported decoder, in place.

    Args:
        model: the graph; its weights need not be there.
        context: rows of its cache, T.
        path: named in errors.

    Returns:
        The number of logits.

    Raises:
        UnsupportedModelError: a part of its interface is not as the exporters write it.
    """
    graph = model.graph
    others = [
        value.name
        for value in graph.input
        if value.name not in (_IDS, _MASK, _POSITIONS) and not value.name.startswith(_PAST)
    ]
    if others:
        raise UnsupportedModelError(
            f"{path}: a decoder with the inputs {', '.join(others)}; name those that are caches by "
            "--state INPUT=OUTPUT"
        )
    if has_growing_caches(model):
        group_attention(model, context, path)
    integers = {v.name: v.type.tensor_type.elem_type for v in graph.input}
    if any(integers.get(name, TensorProto.INT64) != TensorProto.INT64 for name in (_IDS, _MASK)):
        raise UnsupportedModelError(f"{path}: tokens and mask of another type than int64")
    has_positions = _POSITIONS in integers
    kept = [value for value in graph.input if value.name not in (_MASK, _POSITIONS)]
    for value in kept:
        sizes: list[int | str] = [1, "sequence"]
        if value.name.startswith(_PAST):
            sizes = _cache_shape(value, context, path)
        _set_shape(value, sizes)
    tensor = helper.make_tensor_value_info
    del graph.input[:]
    graph.input.extend(
        [
            *kept,
            tensor("past_length", TensorProto.INT32, [1]),
            tensor("last", TensorProto.INT64, [1, "rows"]),
        ]
    )
    del graph.value_info[:]
    last = f"{_SCOPE}.last"
    vocabulary = _last_logits(graph, f"{last}.places", path)
    nodes = [*_interface(graph, context, has_positions), *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    for value in graph.output:
        if value.name.startswith("present."):
            past = next(v for v in kept if v.name == value.name.replace("present.", _PAST, 1))
            value.type.CopyFrom(past.type)
    graph.output.append(tensor("present_length", TensorProto.INT32, [1]))
    return vocabulary


def _set_shape(value: onnx.ValueInfoProto, sizes: Sequence[int | str]) -> None:
    kind = value.type.tensor_type.elem_type
    value.CopyFrom(helper.make_tensor_value_info(value.name, kind, sizes))


def _cache_shape(value: onnx.ValueInfoProto, context: int, path: Path) -> list[int | str]:
    dims = value.type.tensor_type.shape.dim
    if len(dims) != 4 or not all(dims[axis].HasField("dim_value") for axis in (1, 3)):
        raise UnsupportedModelError(
            f"{path}: the cache {value.name} is not [batch, heads, rows, head size]"
        )
    return [1, dims[1].dim_value, context, dims[3].dim_value]


def _interface(graph: onnx.GraphProto, context: int, has_positions: bool) -> list[onnx.NodeProto]:
    """Return nodes that compute mask, positions, the last token and the next length."""
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, values: np.ndarray) -> str:
        graph.initializer.append(numpy_helper.from_array(values, f"{_SCOPE}.{name}"))
        return f"{_SCOPE}.{name}"

    def node(operator: str, inputs: list[str], name: str, **attributes: int) -> str:
        made = helper.make_node(operator, inputs, [name], name=name, **attributes)
        nodes.append(made)
        return name

    one = constant("one", np.array([1], np.int64))
    shape = node("Shape", [_IDS], f"{_SCOPE}.shape")
    count = node("Gather", [shape, one], f"{_SCOPE}.count")
    before = node("Sub", [count, one], f"{_SCOPE}.before_last")
    last = node("Min", ["last", before], f"{_SCOPE}.last")
    past = node("Cast", ["past_length"], f"{_SCOPE}.past", to=TensorProto.INT64)
    # Keys that are there when the tokens have been appended.
    end = node("Add", [past, count], f"{_SCOPE}.end")
    lengths = node("Sub", [end, one], f"{_SCOPE}.lengths")
    node("Cast", [lengths], KEY_LENGTHS, to=TensorProto.INT32)
    rows = constant("rows", np.arange(context, dtype=np.int64)[np.newaxis])
    seen = node("Less", [rows, end], f"{_SCOPE}.seen")
    node("Cast", [seen], _MASK, to=TensorProto.INT64)
    if has_positions:
        first = constant("first", np.array(0, np.int64))
        step = constant("step", np.array(1, np.int64))
        scalar = node("Squeeze", [count], f"{_SCOPE}.length")
        steps = node("Range", [first, scalar, step], f"{_SCOPE}.steps")
        steps = node("Unsqueeze", [steps, constant("axis", np.array([0]))], f"{_SCOPE}.row")
        node("Add", [steps, past], _POSITIONS)
    node("Squeeze", [last, constant("row_axis", np.array([0]))], f"{last}.places")
    final = constant("final", np.array(-1, np.int64))
    final = node("Gather", [last, final], f"{last}.final", axis=1)
    new = node("Add", [final, one], f"{_SCOPE}.new")
    new = node("Add", [past, new], f"{_SCOPE}.next")
    node("Cast", [new], "present_length", to=TensorProto.INT32)
    return nodes


def _last_logits(graph: onnx.GraphProto, last: str, path: Path) -> int:
    """Compute logits of some tokens: gather their hidden states before the product of all."""
    makers = {name: node for node in graph.node for name in node.output}
    value = _LOGITS
    while value in makers and makers[value].op_type in _SIMPLE:
        value = next((name for name in makers[value].input if name in makers), "")
    product = makers.get(value)
    if product is None or product.op_type not in _PRODUCTS:
        raise UnsupportedModelError(f"{path}: no product makes the output {_LOGITS}")
    output = next(v for v in graph.output if v.name == _LOGITS)
    dims = output.type.tensor_type.shape.dim
    if len(dims) != 3 or not dims[2].HasField("dim_value"):
        raise UnsupportedModelError(f"{path}: {_LOGITS} are not [batch, tokens, vocabulary]")
    hidden = f"{_SCOPE}.hidden"
    gather = helper.make_node("Gather", [product.input[0], last], [hidden], name=hidden, axis=1)
    product.input[0] = hidden
    place = next(i for i, node in enumerate(graph.node) if value in node.output)
    graph.node.insert(place, gather)
    _set_shape(output, [1, "rows", dims[2].dim_value])
    return int(dims[2].dim_value)
