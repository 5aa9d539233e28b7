"""Find out what the mask of an exported attention lets a token see, by computing it."""

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator

from edgec.compiler.errors import UnsupportedModelError
from edgec.compiler.language.onnx_links import Links

# Tokens whose rows of the mask are looked at.
_TOKENS = 3
# What is added to a product: nothing, or so little that it rules out.
_NOTHING, _RULED_OUT = 1e-6, -1e4


def mask_window(model: onnx.ModelProto, mask: str, context: int, path: Path) -> int:
    """Return how many keys a token sees at most, its own among them; 0 is all before it.

    The mask is computed for an empty and for a full cache.

    Args:
        model: the graph.
        mask: the name of the value.
        context: rows of the caches.
        path: named in errors.

    Raises:
        UnsupportedModelError: it lets tokens see what is behind them, hides what is before them,
            or adds other numbers.
    """
    links = Links(model.graph)
    nodes = links.before(mask)
    names = {name for node in nodes for name in node.input}
    inputs = [value for value in model.graph.input if value.name in names]
    weights = [item for item in model.graph.initializer if item.name in names]
    output = helper.make_tensor_value_info(mask, onnx.TensorProto.UNDEFINED, None)
    graph = helper.make_graph(nodes, "mask", inputs, [output], weights)
    part = helper.make_model(graph, opset_imports=model.opset_import, functions=model.functions)
    evaluator = ReferenceEvaluator(part)
    tokens = min(_TOKENS, context)
    window = 0
    for rows in dict.fromkeys((context - tokens, 0)):
        given = {value.name: _input(value, rows, tokens) for value in inputs}
        try:
            values = np.asarray(evaluator.run(None, given)[0])
        except Exception as error:
            raise UnsupportedModelError(
                f"{path}: the mask {mask} cannot be computed for {rows} rows of a cache: {error}"
            ) from None
        seen = _seen(values, mask, path)
        try:
            seen = np.broadcast_to(seen, (1, 1, tokens, rows + tokens))[0, 0]
        except ValueError:
            raise UnsupportedModelError(
                f"{path}: the mask {mask} is {list(seen.shape)} for {tokens} tokens behind {rows}"
            ) from None
        if rows:
            count = int(seen[-1].sum())
            window = count if count < rows + tokens else 0
        back = rows + np.arange(tokens)[:, np.newaxis] - np.arange(rows + tokens)
        causal = (back >= 0) & ((back < window) | (window == 0))
        if not np.array_equal(seen, causal):
            raise UnsupportedModelError(
                f"{path}: the mask {mask} does not show each token what is before it, or a window "
                "of it"
            )
    return window


def _seen(values: NDArray[np.generic], mask: str, path: Path) -> NDArray[np.bool_]:
    if values.dtype == np.bool_:
        return values.astype(np.bool_)
    numbers = values.astype(np.float64)
    seen: NDArray[np.bool_] = np.abs(numbers) <= _NOTHING
    if not np.all(seen | (numbers <= _RULED_OUT)):
        raise UnsupportedModelError(
            f"{path}: the mask {mask} adds numbers to products, it does not rule out alone"
        )
    return seen


def _input(value: onnx.ValueInfoProto, rows: int, tokens: int) -> NDArray[np.generic]:
    """Return an input for so many tokens behind so many rows of a cache."""
    dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    if value.name == "position_ids":
        return np.arange(rows, rows + tokens, dtype=dtype)[np.newaxis]
    if value.name == "attention_mask":
        return np.ones((1, rows + tokens), dtype)
    dims = value.type.tensor_type.shape.dim
    if len(dims) == 4:
        return np.zeros((1, dims[1].dim_value, rows, dims[3].dim_value), dtype)
    return np.zeros((1, tokens), dtype)
