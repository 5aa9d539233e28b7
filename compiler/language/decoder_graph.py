"""Write a decoder as an ONNX graph, in the form that ONNX Runtime GenAI's decoders have.

```text
input_ids       int64 [B, S]                      logits          float32 [B, R, vocabulary]
past_length     int32 [B]                         present_length  int32 [B]
last            int64 [B, R]
past_key_values.N.key, .value                     present.N.key, .value
                float32 or float16 [B, key heads, T, head size]
```

S tokens are appended to a cache of T rows that holds `past_length`; `logits` are those of the R
tokens that `last` names. Tokens behind the last one that it names are padding: later calls
overwrite what they leave in the cache. `present_length` is `past_length + last[:, -1] + 1`; -1
there says that all tokens are padding. B texts do not know of each other. B, S and R are open; T is
the context.

Weights of codes are multiplied by MatMulNBits of `com.microsoft`, whose zero points are floats
where a group has a minimum. ONNX Runtime has no such zero points for eight bits: there the codes
are taken around their middle, and the rest is a product with the sums of each group. Attention is
GroupQueryAttention, which rotates and appends. Everything runs on ONNX Runtime's CPU provider.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgec.compiler.language.architectures import Decoder, WeightSource
from edgec.compiler.language.grouped_weight import GroupedWeight
from edgec.compiler.language.language_model import CacheDtype
from edgec.compiler.language.rotary import Rotary
from edgec.compiler.support.graph_builder import ExternalWeights, GraphBuilder

MODEL_FILE = "decoder.onnx"
WEIGHTS_FILE = "decoder.onnx.data"

_OPSET = 21
_IR_VERSION = 10
_MICROSOFT = "com.microsoft"
# Activations are quantized to int8 where weights are codes.
INT8_ACTIVATIONS = 4


def write_decoder(
    decoder: Decoder,
    weights: WeightSource,
    context: int,
    folder: Path,
    *,
    name: str = "decoder",
    accuracy_level: int = INT8_ACTIVATIONS,
    cache: CacheDtype = "float32",
) -> Path:
    """Write the graph of a decoder, and its weights to a file beside it, one at a time.

    Args:
        decoder: what is computed.
        weights: gives its tensors.
        context: rows of the cache, T.
        folder: where both files go.
        name: of the graph.
        accuracy_level: of MatMulNBits: 0 computes on float activations, 4 on int8.
        cache: dtype of its rows.

    Returns:
        The path of the model file.
    """
    path = folder / MODEL_FILE
    with (folder / WEIGHTS_FILE).open("wb") as stream:
        external = ExternalWeights(stream, folder / WEIGHTS_FILE)
        graph = GraphBuilder(_OPSET, _IR_VERSION, [_MICROSOFT], external)
        model = _Writer(decoder, weights, context, accuracy_level, graph, cache).model(name)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


@dataclass
class _Writer:
    decoder: Decoder
    weights: WeightSource
    context: int
    accuracy_level: int
    graph: GraphBuilder
    cache: CacheDtype

    def __post_init__(self) -> None:
        self.lengths = self.last = ""
        self.tables: dict[int, tuple[str, str]] = {}
        self.total = self.graph.weight("total_length", np.array(self.context, np.int32))

    def model(self, name: str) -> onnx.ModelProto:
        decoder, graph = self.decoder, self.graph
        self.count_tokens()
        value = self.embeddings()
        for layer in range(decoder.layers):
            value = self.block(value, layer)
        value = self.last_rows(value)
        value = self.norm(value, "output_norm")
        self.output(value)
        self.present_length()
        cache = ["batch", decoder.key_heads, self.context, decoder.head_size]
        parts = [(n, part) for n in range(decoder.layers) for part in ("key", "value")]
        tensor = helper.make_tensor_value_info
        kept = TensorProto.FLOAT16 if self.cache == "float16" else TensorProto.FLOAT
        return graph.model(
            name,
            [
                tensor("input_ids", TensorProto.INT64, ["batch", "sequence"]),
                tensor("past_length", TensorProto.INT32, ["batch"]),
                tensor("last", TensorProto.INT64, ["batch", "rows"]),
                *(tensor(f"past_key_values.{n}.{part}", kept, cache) for n, part in parts),
            ],
            [
                tensor("logits", TensorProto.FLOAT, ["batch", "rows", decoder.vocabulary]),
                tensor("present_length", TensorProto.INT32, ["batch"]),
                *(tensor(f"present.{n}.{part}", kept, cache) for n, part in parts),
            ],
        )

    def count_tokens(self) -> None:
        """Find the number of keys less one, int32 [1], past_length + S - 1; and `last` below S."""
        graph = self.graph
        shape = graph.node("Shape", ["input_ids"], "tokens.shape")
        count = graph.node("Gather", [shape, graph.integers(1)], "tokens.count")
        before = graph.node("Sub", [count, graph.integers(1)], "tokens.before_last")
        self.last = graph.node("Min", ["last", before], "tokens.last")
        before = graph.node("Cast", [before], "tokens.int32", to=TensorProto.INT32)
        self.lengths = graph.node("Add", ["past_length", before], "key_lengths")

    def last_rows(self, value: str) -> str:
        """Return the rows of tokens `last` [B, R, width]; of nothing but padding any."""
        graph = self.graph
        place = graph.node("Max", [self.last, graph.integers(0)], "last_place")
        place = graph.node("Unsqueeze", [place, graph.integers(2)], "last_places")
        return graph.node("GatherND", [value, place], "last_hidden", batch_dims=1)

    def present_length(self) -> None:
        graph = self.graph
        end = graph.node("Gather", [self.last, graph.integers(-1)], "tokens.end", axis=1)
        end = graph.node("Squeeze", [end, graph.integers(1)], "tokens.end_place")
        new = graph.node("Add", [end, graph.integers(1)], "new_tokens")
        new = graph.node("Cast", [new], "new_tokens.int32", to=TensorProto.INT32)
        graph.node("Add", ["past_length", new], "present_length")

    def embeddings(self) -> str:
        """Look up rows, decoded from their codes: float32 [1, S, width]."""
        graph, weight = self.graph, self.weights.matrix("token_embd.weight")
        if not isinstance(weight, GroupedWeight):
            table = graph.weight("token_embd.weight", weight)
            value = graph.node("Gather", [table, "input_ids"], "embeddings")
        else:
            value = self.coded_rows(weight)
        if self.decoder.family.scaled_embeddings:
            scale = graph.number(float(np.float32(self.decoder.width**0.5)))
            value = graph.node("Mul", [value, scale], "embeddings.scaled")
        return value

    def coded_rows(self, weight: GroupedWeight) -> str:
        graph, name = self.graph, "token_embd"
        weight, offsets = weight.around_middle()
        codes = graph.weight(f"{name}.codes", weight.packed())
        scales = graph.weight(f"{name}.scales", weight.scales)
        value = graph.node(
            "GatherBlockQuantized",
            [codes, "input_ids", scales],
            "embeddings",
            domain=_MICROSOFT,
            bits=weight.bits,
            block_size=weight.group,
            gather_axis=0,
            quantize_axis=1,
        )
        if offsets is None:
            return value
        # GatherBlockQuantized has zero points of codes alone.
        table = graph.weight(f"{name}.offsets", offsets)
        rows = graph.node("Gather", [table, "input_ids"], "embeddings.offsets")
        rows = graph.node("Unsqueeze", [rows, graph.integers(-1)], "embeddings.column")
        groups = graph.integers(0, 0, offsets.shape[1], weight.group)
        value = graph.node("Reshape", [value, groups], "embeddings.groups")
        value = graph.node("Add", [value, rows], "embeddings.moved")
        merged = graph.integers(0, 0, self.decoder.width)
        return graph.node("Reshape", [value, merged], "embeddings.merged")

    def output(self, value: str) -> None:
        """Return logits: by the model's own output, else by the embeddings."""
        own = "output.weight" in self.weights.names
        cap = self.decoder.output_cap
        name = "logits.uncapped" if cap else "logits"
        if own:
            self.linear(value, "output", name)
        else:
            self.linear(value, "token_embd", name)
        if cap:
            self.capped(name, cap, "logits")

    def capped(self, value: str, cap: float, name: str) -> str:
        graph = self.graph
        value = graph.node("Div", [value, graph.number(cap)], f"{name}.divided")
        value = graph.node("Tanh", [value], f"{name}.tanh")
        return graph.node("Mul", [value, graph.number(cap)], name)

    def block(self, value: str, layer: int) -> str:
        graph, source = self.graph, f"blk.{layer}"
        posts = self.decoder.family.post_norms
        result = self.norm(value, f"{source}.attn_norm")
        result = self.attention(result, layer)
        if posts:
            result = self.norm(result, f"{source}.post_attention_norm")
        value = graph.node("Add", [value, result], f"{source}.attn_added")
        result = self.norm(value, f"{source}.ffn_norm")
        result = self.feed_forward(result, source)
        if posts:
            result = self.norm(result, f"{source}.post_ffw_norm")
        return graph.node("Add", [value, result], f"{source}.ffn_added")

    def attention(self, value: str, layer: int) -> str:
        decoder, graph, source = self.decoder, self.graph, f"blk.{layer}"
        query, key, values = (
            self.linear(value, f"{source}.attn_{part}", f"{source}.{name}")
            for part, name in (("q", "query"), ("k", "key"), ("v", "value"))
        )
        if decoder.family.query_norm:
            query = self.head_norm(query, f"{source}.attn_q_norm", decoder.heads)
            key = self.head_norm(key, f"{source}.attn_k_norm", decoder.key_heads)
        attributes: dict[str, Any] = {
            "num_heads": decoder.heads,
            "kv_num_heads": decoder.key_heads,
            "scale": decoder.attention_scale,
            "do_rotary": 1,
            "rotary_interleaved": 0,
        }
        if decoder.attention_cap:
            attributes["softcap"] = decoder.attention_cap
        # A window that the context never fills is none.
        if 0 < decoder.windows[layer] < self.context:
            attributes["local_window_size"] = decoder.windows[layer]
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        present = names = [f"present.{layer}.{part}" for part in ("key", "value")]
        if self.cache == "float16":
            # Attention of ONNX Runtime has one type.
            wide = TensorProto.FLOAT
            past = [graph.node("Cast", [name], f"{name}.floats", to=wide) for name in past]
            present = [f"{name}.floats" for name in names]
        tables = self.rotation(decoder.rotaries[layer])
        graph.nodes(
            "GroupQueryAttention",
            [query, key, values, *past, self.lengths, self.total, *tables],
            [f"{source}.attention", *present],
            f"{source}.attention",
            domain=_MICROSOFT,
            **attributes,
        )
        for floats, given in zip(present, names, strict=True):
            if floats != given:
                graph.node("Cast", [floats], given, to=TensorProto.FLOAT16)
        return self.linear(f"{source}.attention", f"{source}.attn_output", f"{source}.attn_result")

    def rotation(self, rotary: Rotary) -> tuple[str, str]:
        """Return cosines and sines [T, pairs], shared by layers that rotate alike."""
        if id(rotary) not in self.tables:
            number = len(self.tables)
            cosines, sines = rotary.tables(self.context)
            self.tables[id(rotary)] = (
                self.graph.weight(f"rotary.{number}.cosines", cosines),
                self.graph.weight(f"rotary.{number}.sines", sines),
            )
        return self.tables[id(rotary)]

    def head_norm(self, value: str, name: str, heads: int) -> str:
        """Normalize each head of [1, S, heads * head size]."""
        graph, size = self.graph, self.decoder.head_size
        value = graph.node("Reshape", [value, graph.integers(0, 0, heads, size)], f"{name}.heads")
        value = self.norm(value, name)
        return graph.node("Reshape", [value, graph.integers(0, 0, heads * size)], f"{name}.merged")

    def feed_forward(self, value: str, source: str) -> str:
        """Return `down(activation(gate(x)) * up(x))` (Shazeer, 2020, arXiv:2002.05202)."""
        graph = self.graph
        gate = self.linear(value, f"{source}.ffn_gate", f"{source}.gate")
        up = self.linear(value, f"{source}.ffn_up", f"{source}.up")
        if self.decoder.family.activation == "silu":
            sigmoid = graph.node("Sigmoid", [gate], f"{source}.sigmoid")
            gate = graph.node("Mul", [gate, sigmoid], f"{source}.silu")
        else:
            gate = graph.node("Gelu", [gate], f"{source}.gelu", approximate="tanh")
        product = graph.node("Mul", [gate, up], f"{source}.gated")
        return self.linear(product, f"{source}.ffn_down", f"{source}.down")

    def norm(self, value: str, name: str) -> str:
        """Return `x / sqrt(mean(x^2) + epsilon) * weight` over the last dimension."""
        scale = self.graph.weight(f"{name}.weight", self.weights.vector(f"{name}.weight"))
        return self.graph.node(
            "SimplifiedLayerNormalization",
            [value, scale],
            name,
            axis=-1,
            epsilon=self.decoder.norm_epsilon,
            stash_type=1,
        )

    def linear(self, value: str, source: str, name: str) -> str:
        """Multiply by a matrix, and add its bias if it has one."""
        graph = self.graph
        bias = f"{source}.bias" if f"{source}.bias" in self.weights.names else ""
        weight = self.weights.matrix(f"{source}.weight")
        product = f"{name}.product" if bias else name
        if isinstance(weight, GroupedWeight):
            self.coded_product(value, weight, source, product)
        else:
            matrix = graph.weight(f"{source}.columns", weight.T)
            graph.node("MatMul", [value, matrix], product)
        if bias:
            graph.node("Add", [product, graph.weight(bias, self.weights.vector(bias))], name)
        return name

    def coded_product(self, value: str, weight: GroupedWeight, source: str, name: str) -> None:
        graph, offsets = self.graph, None
        zeros: NDArray[np.float32] | None = None
        if weight.bits == 4:
            weight, zeros = weight.with_zero_points()
        else:
            weight, offsets = weight.around_middle()
        outputs, inputs = weight.shape
        groups = inputs // weight.group
        operands = [
            value,
            graph.weight(f"{source}.blocks", weight.packed().reshape(outputs, groups, -1)),
            graph.weight(f"{source}.block_scales", weight.scales.reshape(-1)),
        ]
        if zeros is not None:
            operands.append(graph.weight(f"{source}.zero_points", zeros.reshape(-1)))
        graph.node(
            "MatMulNBits",
            operands,
            name if offsets is None else f"{name}.codes",
            domain=_MICROSOFT,
            K=inputs,
            N=outputs,
            bits=weight.bits,
            block_size=weight.group,
            accuracy_level=self.accuracy_level,
        )
        if offsets is None:
            return
        split = graph.integers(0, 0, groups, weight.group)
        sums = graph.node("Reshape", [value, split], f"{name}.groups")
        sums = graph.node("ReduceSum", [sums, graph.integers(-1)], f"{name}.sums", keepdims=0)
        columns = graph.weight(f"{source}.offset_columns", offsets.T)
        rest = graph.node("MatMul", [sums, columns], f"{name}.rest")
        graph.node("Add", [f"{name}.codes", rest], name)
