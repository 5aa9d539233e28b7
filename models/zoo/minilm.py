"""Provide all-MiniLM-L6-v2, a sentence encoder, around the weights of a safetensors file.

BERT (Devlin et al., 2018, arXiv:1810.04805) with six layers, spelled as PyTorch's exporter
does: LayerNormalization is one operator, GELU is written with Erf. The sentence embedding is the
mean over the tokens that the mask keeps, of length 1.

Inputs are int64 [batch, sequence], at most 512 tokens.
"""

import math

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgec.compiler.language.safetensors_file import parse_safetensors
from edgec.compiler.support.graph_builder import GraphBuilder

HEAD_SIZE = 32
NORM_EPSILON = 1e-12
# What sentence-transformers divides by at least.
MIN_TOKENS = 1e-9
MIN_LENGTH = 1e-12


def build(data: bytes) -> onnx.ModelProto:
    """Return the ONNX model of a weight file; layers and widths are those of the weights."""
    tensors = parse_safetensors(np.frombuffer(data, np.uint8), "the weights of MiniLM")
    return _Encoder({name: tensor.data for name, tensor in tensors.items()}).model()


class _Encoder:
    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self.weights = weights
        self.graph = GraphBuilder()
        self.width = weights["embeddings.word_embeddings.weight"].shape[1]
        self.layers = sum(name.endswith(".intermediate.dense.bias") for name in weights)

    def model(self) -> onnx.ModelProto:
        mask = self.graph.node("Cast", ["attention_mask"], "mask", to=TensorProto.FLOAT)
        bias = self.attention_bias(mask)
        value = self.embeddings()
        for index in range(self.layers):
            value = self.layer(value, bias, index)
        value = self.graph.node("Identity", [value], "last_hidden_state")
        self.pool(value, mask)
        tokens, hidden = ["batch", "sequence"], ["batch", "sequence", self.width]
        return self.graph.model(
            "all-MiniLM-L6-v2",
            [
                helper.make_tensor_value_info(name, TensorProto.INT64, tokens)
                for name in ("input_ids", "attention_mask", "token_type_ids")
            ],
            [
                helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, hidden),
                helper.make_tensor_value_info(
                    "sentence_embedding", TensorProto.FLOAT, ["batch", self.width]
                ),
            ],
        )

    def embeddings(self) -> str:
        """Add words, positions and token types, and normalize: [batch, sequence, width]."""
        graph = self.graph
        shape = graph.node("Shape", ["input_ids"], "embeddings.shape")
        length = graph.node("Gather", [shape, graph.integers(1)], "embeddings.length")
        positions = graph.node(
            "Slice",
            [
                self.parameter("embeddings.position_ids"),
                graph.integers(0),
                length,
                graph.integers(1),
            ],
            "embeddings.positions",
        )
        parts = [
            graph.node("Gather", [self.parameter(f"embeddings.{table}.weight"), indices], name)
            for table, indices, name in (
                ("word_embeddings", "input_ids", "embeddings.word"),
                ("token_type_embeddings", "token_type_ids", "embeddings.token_type"),
                ("position_embeddings", positions, "embeddings.position"),
            )
        ]
        value = graph.node("Add", parts[:2], "embeddings.word_and_type")
        value = graph.node("Add", [value, parts[2]], "embeddings.sum")
        return self.norm(value, "embeddings.LayerNorm", "embeddings.norm")

    def attention_bias(self, mask: str) -> str:
        """Return zero for tokens that the mask keeps.

        The lowest float for others, [batch, 1, 1, n].
        """
        graph = self.graph
        mask = graph.node("Unsqueeze", [mask, graph.integers(1, 2)], "mask.unsqueezed")
        dropped = graph.node("Sub", [graph.number(1.0), mask], "mask.dropped")
        lowest = graph.number(float(np.finfo(np.float32).min))
        return graph.node("Mul", [dropped, lowest], "mask.bias")

    def layer(self, value: str, bias: str, index: int) -> str:
        graph, source, scope = self.graph, f"encoder.layer.{index}", f"layer{index}"
        result = self.attention(value, bias, f"{source}.attention", f"{scope}.attention")
        value = graph.node("Add", [result, value], f"{scope}.attention.add")
        value = self.norm(value, f"{source}.attention.output.LayerNorm", f"{scope}.attention.norm")
        result = self.linear(value, f"{source}.intermediate.dense", f"{scope}.mlp.up")
        result = self.gelu(result, f"{scope}.mlp.gelu")
        result = self.linear(result, f"{source}.output.dense", f"{scope}.mlp.down")
        value = graph.node("Add", [result, value], f"{scope}.mlp.add")
        return self.norm(value, f"{source}.output.LayerNorm", f"{scope}.mlp.norm")

    def attention(self, value: str, bias: str, source: str, scope: str) -> str:
        graph = self.graph
        query, key, values = (
            self.heads(
                self.linear(value, f"{source}.self.{part}", f"{scope}.{part}"),
                f"{scope}.{part}",
                # Keys come transposed, as the product of queries and keys needs them.
                [0, 2, 3, 1] if part == "key" else [0, 2, 1, 3],
            )
            for part in ("query", "key", "value")
        )
        scores = graph.node("MatMul", [query, key], f"{scope}.product")
        root = graph.number(math.sqrt(HEAD_SIZE))
        scores = graph.node("Div", [scores, root], f"{scope}.scaled")
        scores = graph.node("Add", [scores, bias], f"{scope}.masked")
        shares = graph.node("Softmax", [scores], f"{scope}.softmax", axis=-1)
        mixed = graph.node("MatMul", [shares, values], f"{scope}.mixed")
        mixed = graph.node("Transpose", [mixed], f"{scope}.transposed", perm=[0, 2, 1, 3])
        merged = graph.node("Reshape", [mixed, graph.integers(0, 0, self.width)], f"{scope}.merged")
        return self.linear(merged, f"{source}.output.dense", f"{scope}.output")

    def heads(self, value: str, scope: str, order: list[int]) -> str:
        """Split [batch, sequence, width] into [batch, sequence, heads, size] in `order`."""
        shape = self.graph.integers(0, 0, self.width // HEAD_SIZE, HEAD_SIZE)
        value = self.graph.node("Reshape", [value, shape], f"{scope}.heads")
        return self.graph.node("Transpose", [value], f"{scope}.transposed", perm=order)

    def gelu(self, value: str, scope: str) -> str:
        """Return `x / 2 * (1 + erf(x / sqrt(2)))`."""
        graph = self.graph
        result = graph.node("Div", [value, graph.number(math.sqrt(2))], f"{scope}.scaled")
        result = graph.node("Erf", [result], f"{scope}.erf")
        result = graph.node("Add", [result, graph.number(1.0)], f"{scope}.plus_one")
        result = graph.node("Mul", [value, result], f"{scope}.product")
        return graph.node("Mul", [result, graph.number(0.5)], f"{scope}.half")

    def pool(self, value: str, mask: str) -> str:
        """Return mean over the kept tokens, then divided by its length, [batch, width]."""
        graph = self.graph
        mask = graph.node("Unsqueeze", [mask, graph.integers(2)], "pool.mask")
        kept = graph.node("Mul", [value, mask], "pool.kept")
        total = graph.node("ReduceSum", [kept, graph.integers(1)], "pool.total", keepdims=0)
        tokens = graph.node("ReduceSum", [mask, graph.integers(1)], "pool.tokens", keepdims=0)
        tokens = graph.node("Clip", [tokens, graph.number(MIN_TOKENS)], "pool.tokens_clipped")
        mean = graph.node("Div", [total, tokens], "pool.mean")
        length = graph.node("ReduceL2", [mean], "pool.length", axes=[1], keepdims=1)
        length = graph.node("Clip", [length, graph.number(MIN_LENGTH)], "pool.length_clipped")
        return graph.node("Div", [mean, length], "sentence_embedding")

    def linear(self, value: str, source: str, scope: str) -> str:
        """Return `x @ weight + bias`; the file's weight is [outputs, inputs]."""
        weight = self.graph.weight(f"{source}.weight", self.weights[f"{source}.weight"].T)
        product = self.graph.node("MatMul", [value, weight], f"{scope}.matmul")
        return self.graph.node("Add", [product, self.parameter(f"{source}.bias")], f"{scope}.bias")

    def norm(self, value: str, source: str, scope: str) -> str:
        return self.graph.node(
            "LayerNormalization",
            [value, self.parameter(f"{source}.weight"), self.parameter(f"{source}.bias")],
            scope,
            axis=-1,
            epsilon=NORM_EPSILON,
        )

    def parameter(self, name: str) -> str:
        return self.graph.weight(name, self.weights[name])
