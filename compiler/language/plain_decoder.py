"""Give a plain exported decoder, whose caches grow by Concat, attention over caches of fixed rows.

Exporters of transformers (Optimum, torch.onnx) write attention as operators of ONNX: each layer
puts new keys and values behind `past_key_values.N.key` and `.value` by Concat, multiplies, adds a
mask, and takes a softmax. Such a part becomes one GroupQueryAttention, which ONNX Runtime runs,
too; `exported_decoder.py` does the rest, as for decoders that have that operator already.

Nothing is taken for granted that was not looked at: operators between a cache and its attention by
their kind, the mask by its values for an empty and for a full cache. What is left may not depend on
how many rows a cache has.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgec.compiler.errors import UnsupportedModelError
from edgec.compiler.language.attention_mask import mask_window
from edgec.compiler.language.onnx_links import Links

PAST, PRESENT = "past_key_values.", "present."
MASK = "attention_mask"
KEY_LENGTHS = "edgec.attention.lengths"
_MICROSOFT = "com.microsoft"
_SCOPE = "edgec.attention"
# Rows of a cache and tokens with which shapes are found out.
_PROBE_ROWS, _PROBE_TOKENS = 3, 2
# Between a cache and its product, beside factors: heads are repeated, and keys transposed.
_REPEATS = ("Unsqueeze", "Expand", "Reshape", "Identity")
_PASSES = ("Identity", "Cast", "Dropout")


@dataclass(frozen=True)
class _Cache:
    """A cache is an input, with the Concat that puts new rows behind its own.

    Attributes:
        past: the name of the input.
        present: the name of the output.
        concat: the node.
    """

    past: str
    present: str
    concat: onnx.NodeProto

    @property
    def rows(self) -> str:
        """Return the name of all rows."""
        return str(self.concat.output[0])


@dataclass(frozen=True)
class _Attention:
    """An attention is what becomes one node.

    Attributes:
        query: name of the queries [B, N, S, D].
        keys: their cache [B, M, T, D].
        values: their cache.
        scale: factor of the products of queries and keys.
        mask: name of what is added to them, or says which are looked at; empty if nothing is.
        output: name of the result [B, N, S, D].
    """

    query: str
    keys: _Cache
    values: _Cache
    scale: float
    mask: str
    output: str


def has_growing_caches(model: onnx.ModelProto) -> bool:
    """Return whether a graph is a decoder whose caches grow by Concat."""
    inputs = {value.name for value in model.graph.input}
    grown = {n.input[0] for n in model.graph.node if n.op_type == "Concat" and n.input}
    return "input_ids" in inputs and any(name in grown for name in inputs)


def rename_caches(model: onnx.ModelProto, states: Sequence[tuple[str, str]], path: Path) -> None:
    """Give caches of other names those that exporters of transformers give them, in place.

    Args:
        model: the graph.
        states: inputs and outputs that are caches.
        path: named in errors.

    Raises:
        UnsupportedModelError: one of them is no cache of an attention that is known.
    """
    if all(past.startswith(PAST) for past, _ in states):
        return
    links = Links(model.graph)
    caches = [_cache(links, past, present, path) for past, present in states]
    new = {}
    for layer, found in enumerate(_attentions(links, caches, path)):
        for part, cache in (("key", found.keys), ("value", found.values)):
            new[cache.past] = f"{PAST}{layer}.{part}"
            new[cache.present] = f"{PRESENT}{layer}.{part}"
    for value in (*model.graph.input, *model.graph.output):
        value.name = new.get(value.name, value.name)
    for node in model.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = new.get(name, name)


def group_attention(model: onnx.ModelProto, context: int, path: Path) -> None:
    """Replace attention over growing caches by GroupQueryAttention, in place.

    It reads `KEY_LENGTHS` int32 [1], the number of keys less one, which nothing computes yet.

    Args:
        model: the graph; large weights need not be there.
        context: rows of the caches.
        path: named in errors.

    Raises:
        UnsupportedModelError: says which part is not as exporters write it.
    """
    graph = model.graph
    links = Links(graph)
    pasts = [value.name for value in graph.input if value.name.startswith(PAST)]
    outputs = {value.name for value in graph.output}
    for past in pasts:
        if (present := past.replace(PAST, PRESENT, 1)) not in outputs:
            raise UnsupportedModelError(
                f"{path}: {present}, the next value of {past}, is no output"
            )
    caches = [_cache(links, past, past.replace(PAST, PRESENT, 1), path) for past in pasts]
    found = _attentions(links, caches, path)
    shapes = _shapes(model, context)
    masks = {attention.mask for attention in found}
    windows = {mask: mask_window(model, mask, context, path) if mask else 0 for mask in masks}
    total = numpy_helper.from_array(np.array(context, np.int32), f"{_SCOPE}.total")
    graph.initializer.append(total)
    for number, attention in enumerate(found):
        nodes = _grouped(
            attention, f"{_SCOPE}.{number}", shapes, windows[attention.mask], graph, path
        )
        place = links.place(attention.output)
        links.replace(attention.output, f"{attention.output}.before")
        for cache in (attention.keys, attention.values):
            links.replace(cache.present, f"{cache.present}.before")
        links.insert(place, nodes)
    links.drop_unused()
    _check_rest(links, pasts, path)
    if not any(entry.domain == _MICROSOFT for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_MICROSOFT, 1))


def _cache(links: Links, past: str, present: str, path: Path) -> _Cache:
    node = links.maker(present)
    while node is not None and node.op_type == "Identity":
        node = links.maker(node.input[0])
    if node is None:
        raise UnsupportedModelError(f"{path}: nothing makes {present}, the next value of {past}")
    if node.op_type != "Concat" or len(node.input) != 2 or node.input[0] != past:
        raise UnsupportedModelError(
            f"{path}: the cache {past} does not grow by Concat: {present} is made by "
            f"{node.op_type} {node.name!r} of {', '.join(node.input)}"
        )
    axis = next(item.i for item in node.attribute if item.name == "axis")
    if axis not in (2, -2):
        raise UnsupportedModelError(
            f"{path}: the cache {past} grows along axis {axis}; [batch, heads, rows, size] and "
            "axis 2 are known"
        )
    return _Cache(past, present, node)


def _attentions(links: Links, caches: Sequence[_Cache], path: Path) -> list[_Attention]:
    """Return the attention over each pair of caches."""
    ends = {}
    for cache in caches:
        ends[cache.past] = _product(links, cache, path)
    values = {
        id(product): cache
        for cache in caches
        for product, _, transposed in [ends[cache.past]]
        if not transposed
    }
    found = []
    for cache in caches:
        product, factor, transposed = ends[cache.past]
        if not transposed and factor != 1:
            raise UnsupportedModelError(
                f"{path}: values of the cache {cache.past} are multiplied by {factor:g}; only keys "
                "may be"
            )
        if transposed:
            found.append(_attention(links, cache, product, factor, values, path))
    if 2 * len(found) != len(caches):
        raise UnsupportedModelError(
            f"{path}: {len(caches)} caches are of {len(found)} attentions; each has keys and values"
        )
    return found


def _product(links: Links, cache: _Cache, path: Path) -> tuple[onnx.NodeProto, float, bool]:
    """Follow a cache to the product that reads it: the node, a factor, whether it is transposed."""
    name, factor, transposed = cache.rows, 1.0, False
    while True:
        users = [node for node in links.users(name) if node.op_type != "Shape"]
        users = [node for node in users if node.output[0] != cache.present]
        if len(users) != 1:
            raise UnsupportedModelError(
                f"{path}: {len(users)} operators read the cache {cache.past} as {name}; one is "
                "expected, the product of an attention"
            )
        (node,) = users
        if node.op_type == "MatMul" and node.input[1] == name:
            return node, factor, transposed
        scale = links.factor_of(node, name)
        if scale is not None:
            factor *= scale
        elif node.op_type == "Transpose":
            order = next((list(item.ints) for item in node.attribute if item.name == "perm"), [])
            if order[-2:] != [len(order) - 1, len(order) - 2] or transposed:
                raise _unknown(path, cache, node)
            transposed = True
        elif node.op_type not in _REPEATS or not _keeps_heads(links, node):
            raise _unknown(path, cache, node)
        name = node.output[0]


def _keeps_heads(links: Links, node: onnx.NodeProto) -> bool:
    """Return whether heads that are repeated stay side by side, as attention in groups reads them.

    An axis for the repetitions is behind that of the heads: [batch, heads, 1, rows, size].
    """
    if node.op_type == "Unsqueeze":
        axes = [list(item.ints) for item in node.attribute if item.name == "axes"]
        given = links.constant(node.input[1]) if len(node.input) > 1 else None
        axes += [given.reshape(-1).tolist()] if given is not None else []
        return axes in ([[2]], [[-3]])
    made = links.maker(node.input[0]) if node.op_type == "Expand" else None
    return made is None or made.op_type != "Reshape"


def _unknown(path: Path, cache: _Cache, node: onnx.NodeProto) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{path}: {node.op_type} {node.name!r} between the cache {cache.past} and its attention is "
        "not known there"
    )


def _attention(
    links: Links,
    keys: _Cache,
    product: onnx.NodeProto,
    factor: float,
    values: dict[int, _Cache],
    path: Path,
) -> _Attention:
    """Follow products of queries and keys to those with values."""
    name, mask = product.output[0], ""
    normalized = False
    while True:
        users = links.users(name)
        # Where nothing was looked at, a softmax gives no numbers, which are made zeros.
        checks = [node for node in users if node.op_type == "IsNaN"]
        users = [node for node in users if node not in checks]
        node = users[0] if len(users) == 1 else None
        if node is None:
            raise UnsupportedModelError(
                f"{path}: {len(users)} operators read {name} between the cache {keys.past} and its "
                "values; one is expected"
            )
        scale = None if normalized else links.factor_of(node, name)
        if id(node) in values and normalized and node.input[0] == name:
            cache = values[id(node)]
            if factor == 0 or not math.isfinite(factor):
                raise UnsupportedModelError(
                    f"{path}: products with the cache {keys.past} are multiplied by {factor:g}; a "
                    "finite number but 0 is expected"
                )
            return _Attention(product.input[0], keys, cache, factor, mask, node.output[0])
        if node.op_type == "MatMul" and normalized:
            raise UnsupportedModelError(
                f"{path}: {node.input[1]}, which the attention over {keys.past} weighs, comes from "
                "no cache that is known; name it by --state, too"
            )
        if scale is not None and not mask:
            factor *= scale
        elif node.op_type == "Add" and not mask and not normalized:
            (mask,) = [given for given in node.input if given != name]
        elif node.op_type == "Where" and node.input[1] == name and not mask and not normalized:
            if not links.lowest(node.input[2]):
                raise _unknown(path, keys, node)
            mask = node.input[0]
        elif node.op_type == "Softmax" and not normalized:
            axis = next((item.i for item in node.attribute if item.name == "axis"), -1)
            if axis not in (3, -1):
                raise _unknown(path, keys, node)
            normalized = True
        elif not (node.op_type in _PASSES or (checks and node.op_type == "Where")):
            raise _unknown(path, keys, node)
        name = node.output[0]


def _shapes(model: onnx.ModelProto, context: int) -> dict[str, list[int]]:
    """Return shapes of values that are known, of a few tokens behind a few rows."""
    small = onnx.ModelProto()
    small.CopyFrom(Links.without_weights(model))
    for value in small.graph.input:
        dims = value.type.tensor_type.shape.dim
        for axis, dim in enumerate(dims):
            if dim.HasField("dim_value"):
                continue
            if value.name.startswith(PAST):
                dim.dim_value = 1 if axis == 0 else _PROBE_ROWS
            elif axis == 0:
                dim.dim_value = 1
            else:
                rows = _PROBE_ROWS if value.name == MASK else 0
                dim.dim_value = rows + _PROBE_TOKENS
    del small.graph.value_info[:]
    for value in small.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(small, data_prop=True)
    graph = inferred.graph
    return {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.input, *graph.output)
    }


def _grouped(
    attention: _Attention,
    scope: str,
    shapes: dict[str, list[int]],
    window: int,
    graph: onnx.GraphProto,
    path: Path,
) -> list[onnx.NodeProto]:
    """Return the nodes that take the place of an attention."""
    nodes: list[onnx.NodeProto] = []
    names = (attention.query, attention.keys.past, attention.values.past)
    query, keys, values = (shapes.get(name, []) for name in names)
    extents = [len(shape) == 4 and shape[1] > 0 and shape[3] > 0 for shape in (query, keys, values)]
    if not all(extents) or query[1] % keys[1] or keys[1] != values[1] or query[3] != keys[3]:
        found = zip(names, (query, keys, values), strict=True)
        raise UnsupportedModelError(
            f"{path}: {', '.join(f'{name} {shape}' for name, shape in found)} are not queries, "
            "keys and values [batch, heads, rows, size] of known heads"
        )

    def node(operator: str, inputs: list[str], name: str, **attributes: object) -> str:
        nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def sizes(name: str, *extents: int) -> str:
        tensor = numpy_helper.from_array(np.array(extents, np.int64), f"{scope}.{name}.sizes")
        graph.initializer.append(tensor)
        return str(tensor.name)

    def merged(name: str, value: str, heads: int, size: int) -> str:
        """Return [B, heads, S, size] with the heads of a token side by side."""
        value = node("Transpose", [value], f"{scope}.{name}.turned", perm=[0, 2, 1, 3])
        return node("Reshape", [value, sizes(name, 0, 0, heads * size)], f"{scope}.{name}")

    rows = [
        merged("query", attention.query, query[1], query[3]),
        merged("key", attention.keys.concat.input[1], keys[1], keys[3]),
        merged("value", attention.values.concat.input[1], values[1], values[3]),
    ]
    more = {"local_window_size": window} if window else {}
    nodes.append(
        helper.make_node(
            "GroupQueryAttention",
            [
                *rows,
                attention.keys.past,
                attention.values.past,
                KEY_LENGTHS,
                f"{_SCOPE}.total",
            ],
            [f"{scope}.result", attention.keys.present, attention.values.present],
            name=scope,
            domain=_MICROSOFT,
            num_heads=query[1],
            kv_num_heads=keys[1],
            scale=attention.scale,
            do_rotary=0,
            **more,
        )
    )
    split = sizes("result", 0, 0, query[1], values[3])
    value = node("Reshape", [f"{scope}.result", split], f"{scope}.heads")
    node("Transpose", [value], attention.output, perm=[0, 2, 1, 3])
    return nodes


def _check_rest(links: Links, pasts: Iterable[str], path: Path) -> None:
    """Refuse what still depends on how many rows a cache has."""
    for name in (*pasts, *(past.replace(PAST, PRESENT, 1) for past in pasts), MASK):
        users = [node for node in links.users(name) if node.op_type != "GroupQueryAttention"]
        if users:
            node = users[0]
            raise UnsupportedModelError(
                f"{path}: {node.op_type} {node.name!r} reads {name} outside of attention; what it "
                "computes would have to grow with the cache"
            )
