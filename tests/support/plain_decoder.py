"""A small Llama as exporters of transformers write it: attention of operators, caches by Concat."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgec.compiler.support.silent_onnxruntime import onnxruntime

WIDTH, HEADS, KEY_HEADS, SIZE, LAYERS, VOCABULARY, HIDDEN = 32, 4, 2, 8, 2, 61, 48


class PlainExport:
    """Writes the graph, operator by operator.

    Args:
        window: keys that a token sees at most; 0 is all.
        where: whether the mask says by truth values what is seen; else it is added.
        names: of caches, with places for the layer and the part.
    """

    # Where key heads get an axis along which they are repeated.
    axis_for_times = 2

    def __init__(
        self, window: int = 0, where: bool = False, names: tuple[str, str] | None = None
    ) -> None:
        self.window, self.where = window, where
        self.past, self.present = names or ("past_key_values.{}.{}", "present.{}.{}")
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.random = np.random.default_rng(0)

    def model(self) -> onnx.ModelProto:
        mask = self.mask()
        angles = self.angles()
        value = self.op("Gather", self.weight("embed", VOCABULARY, WIDTH), "input_ids", to="hidden")
        for layer in range(LAYERS):
            value = self.layer(value, layer, mask, angles)
        self.op(
            "MatMul", self.norm(value, "norm"), self.weight("head", WIDTH, VOCABULARY), to="logits"
        )
        tensor, cache = helper.make_tensor_value_info, ["batch", KEY_HEADS, "past", SIZE]
        grown = ["batch", KEY_HEADS, "past + tokens", SIZE]
        parts = [(layer, part) for layer in range(LAYERS) for part in ("key", "value")]
        graph = helper.make_graph(
            self.nodes,
            "plain",
            [
                tensor("input_ids", TensorProto.INT64, ["batch", "tokens"]),
                tensor("attention_mask", TensorProto.INT64, ["batch", "past + tokens"]),
                tensor("position_ids", TensorProto.INT64, ["batch", "tokens"]),
                *(tensor(self.past.format(*p), TensorProto.FLOAT, cache) for p in parts),
            ],
            [
                tensor("logits", TensorProto.FLOAT, ["batch", "tokens", VOCABULARY]),
                *(tensor(self.present.format(*p), TensorProto.FLOAT, grown) for p in parts),
            ],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)

    def op(self, kind: str, *inputs: str, to: str = "", **attributes: Any) -> str:
        name = to or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"/{name}", **attributes))
        return name

    def weight(self, name: str, *shape: int) -> str:
        scale = 1.5 * shape[0] ** -0.5 if len(shape) > 1 else 0.2
        values = self.random.normal(0 if len(shape) > 1 else 1, scale, shape)
        self.weights[name] = values.astype(np.float32)
        return name

    def number(self, value: Any, dtype: Any = np.int64) -> str:
        name = f"number.{np.dtype(dtype)}.{value}"
        self.weights[name] = np.array(value, dtype)
        return name

    def extent(self, value: str, axis: int) -> str:
        return self.op("Gather", self.op("Shape", value), self.number([axis]))

    def mask(self) -> str:
        """Return the mask [B, 1, S, T]: causal, or a window of it, without padding."""
        past, tokens = self.extent(self.past.format(0, "key"), 2), self.extent("input_ids", 1)
        total = self.op("Add", past, tokens)
        scalar = [self.op("Squeeze", value) for value in (past, total)]
        one, zero = self.number(1), self.number(0)
        keys = self.op("Range", zero, scalar[1], one)
        queries = self.op("Range", scalar[0], scalar[1], one)
        queries = self.op("Reshape", queries, self.number([-1, 1]))
        seen = self.op("LessOrEqual", keys, queries)
        if self.window:
            first = self.op("Sub", queries, self.number(self.window))
            seen = self.op("And", seen, self.op("Greater", keys, first))
        kept = self.op("Greater", "attention_mask", zero)
        kept = self.op("Unsqueeze", kept, self.number([1, 2]))
        seen = self.op("And", self.op("Unsqueeze", seen, self.number([0, 1])), kept)
        if self.where:
            return seen
        least = self.number(float(np.finfo(np.float32).min), np.float32)
        return self.op("Where", seen, self.number(0.0, np.float32), least)

    def angles(self) -> tuple[str, str]:
        """Return cosines and sines [B, 1, S, D]."""
        frequencies = (10.0 ** -np.arange(0, 2, 4 / SIZE)).astype(np.float32)
        self.weights["frequencies"] = frequencies.reshape(1, -1, 1)
        places = self.op("Unsqueeze", "position_ids", self.number([1]))
        self.nodes.append(helper.make_node("Cast", [places], ["places"], to=TensorProto.FLOAT))
        angles = self.op("Transpose", self.op("MatMul", "frequencies", "places"), perm=[0, 2, 1])
        angles = self.op("Concat", angles, angles, axis=-1)
        tables = [
            self.op("Unsqueeze", self.op(kind, angles), self.number([1])) for kind in ("Cos", "Sin")
        ]
        return tables[0], tables[1]

    def norm(self, value: str, name: str) -> str:
        power = self.op(
            "ReduceMean", self.op("Pow", value, self.number(2.0, np.float32)), axes=[-1]
        )
        root = self.op("Sqrt", self.op("Add", power, self.number(1e-5, np.float32)))
        return self.op("Mul", self.weight(name, WIDTH), self.op("Div", value, root))

    def heads(self, value: str, name: str, count: int) -> str:
        value = self.op("MatMul", value, self.weight(name, WIDTH, count * SIZE))
        tokens = [self.extent("input_ids", axis) for axis in (0, 1)]
        sizes = self.op("Concat", *tokens, self.number([count]), self.number([SIZE]), axis=0)
        return self.op("Transpose", self.op("Reshape", value, sizes), perm=[0, 2, 1, 3])

    def turned(self, value: str, angles: tuple[str, str]) -> str:
        half, ends = self.number([SIZE // 2]), self.number([2**62])
        first = self.op("Slice", value, self.number([0]), half, self.number([3]))
        second = self.op("Slice", value, half, ends, self.number([3]))
        back = self.op("Concat", self.op("Neg", second), first, axis=-1)
        straight = self.op("Mul", value, angles[0])
        return self.op("Add", straight, self.op("Mul", back, angles[1]))

    def repeated(self, value: str) -> str:
        """Return rows of key heads for each head of the queries."""
        batch, _, rows, _ = (self.extent(value, axis) for axis in range(4))
        place = self.axis_for_times
        times = self.number([HEADS // KEY_HEADS])
        shared = (self.number([KEY_HEADS]), self.number([SIZE]))
        heads = (shared[0], times) if place == 2 else (times, shared[0])
        wide = self.op("Concat", batch, *heads, rows, shared[1], axis=0)
        value = self.op("Expand", self.op("Unsqueeze", value, self.number([place])), wide)
        return self.op(
            "Reshape",
            value,
            self.op("Concat", batch, self.number([HEADS]), rows, shared[1], axis=0),
        )

    def layer(self, value: str, layer: int, mask: str, angles: tuple[str, str]) -> str:
        data, scope = self.norm(value, f"{layer}.before"), f"{layer}."
        query = self.turned(self.heads(data, f"{scope}q", HEADS), angles)
        key = self.turned(self.heads(data, f"{scope}k", KEY_HEADS), angles)
        rows = self.heads(data, f"{scope}v", KEY_HEADS)
        names = [
            (self.past.format(layer, p), self.present.format(layer, p)) for p in ("key", "value")
        ]
        keys = self.op("Concat", names[0][0], key, to=names[0][1], axis=2)
        values = self.op("Concat", names[1][0], rows, to=names[1][1], axis=-2)
        keys = self.op("Transpose", self.repeated(keys), perm=[0, 1, 3, 2])
        logits = self.op("MatMul", query, keys)
        logits = self.op("Div", logits, self.number(SIZE**0.5, np.float32))
        if self.where:
            least = self.number(float("-inf"), np.float32)
            logits = self.op("Where", mask, logits, least)
        else:
            logits = self.op("Add", logits, mask)
        shares = self.op("Softmax", logits, axis=-1)
        if self.where:
            none = self.op("IsNaN", shares)
            shares = self.op("Where", none, self.number(0.0, np.float32), shares)
        mixed = self.op("MatMul", shares, self.repeated(values))
        mixed = self.op("Transpose", mixed, perm=[0, 2, 1, 3])
        mixed = self.op("Reshape", mixed, self.number([0, 0, HEADS * SIZE]))
        mixed = self.op("MatMul", mixed, self.weight(f"{scope}o", HEADS * SIZE, WIDTH))
        value = self.op("Add", value, mixed)
        data = self.norm(value, f"{scope}after")
        gate = self.op("MatMul", data, self.weight(f"{scope}gate", WIDTH, HIDDEN))
        gate = self.op("Mul", gate, self.op("Sigmoid", gate))
        up = self.op("MatMul", data, self.weight(f"{scope}up", WIDTH, HIDDEN))
        down = self.op(
            "MatMul", self.op("Mul", gate, up), self.weight(f"{scope}down", HIDDEN, WIDTH)
        )
        return self.op("Add", value, down)


def growing_logits(path: Path, ids: list[int], chunks: list[int]) -> np.ndarray:
    """Return logits behind each token, by ONNX Runtime with caches that grow: [tokens, V]."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()][3:]
    state = {name: np.zeros((1, KEY_HEADS, 0, SIZE), np.float32) for name in names}
    rows, place = [], 0
    for count in chunks:
        given = {
            "input_ids": np.array([ids[place : place + count]]),
            "attention_mask": np.ones((1, place + count), np.int64),
            "position_ids": np.arange(place, place + count)[np.newaxis],
        }
        logits, *caches = session.run(None, {**given, **state})
        state = dict(zip(names, caches, strict=True))
        rows.append(logits[0])
        place += count
    return np.concatenate(rows)
