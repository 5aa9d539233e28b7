"""Build SmolLM2, a small language model of the Llama architecture, around weights of a GGUF file.

Llama (Touvron et al., 2023, arXiv:2302.13971): RMS normalization, rotary embedding, grouped-query
attention, SwiGLU. The quantized weights become float32, each exactly the number that the file
means. Everything is spelled in plain operators, as PyTorch's exporter does; what depends on the
sequence's length alone (positions, cosines, the causal mask) folds once the length is known.

`input_ids` are int64 [1, sequence]; `logits` are [1, sequence, vocabulary].
"""

import importlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgec.compiler.errors import ToolchainError
from edgec.models.zoo.graph_builder import GraphBuilder


def build(data: bytes) -> onnx.ModelProto:
    """Return the ONNX model of a GGUF file; layers and widths are those of the file.

    Raises:
        ToolchainError: the package `gguf` is missing.
    """
    return _Decoder(*read_gguf(data)).model()


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings describe metadata of a Llama-like GGUF file, section `llama`."""

    blocks: int
    heads: int
    key_heads: int
    rotary_base: float
    norm_epsilon: float


def read_gguf(data: bytes) -> tuple[Settings, dict[str, np.ndarray]]:
    """Return settings, and float32 weights [outputs, inputs] by name.

    Raises:
        ToolchainError: the package `gguf` is missing.
    """
    gguf = _import_gguf()
    with tempfile.TemporaryDirectory(prefix="edgec-") as folder:
        path = Path(folder) / "weights.gguf"
        path.write_bytes(data)
        reader = gguf.GGUFReader(path)

        def setting(name: str) -> float:
            value: float = reader.get_field(f"llama.{name}").contents()
            return value

        settings = Settings(
            blocks=int(setting("block_count")),
            heads=int(setting("attention.head_count")),
            key_heads=int(setting("attention.head_count_kv")),
            rotary_base=setting("rope.freq_base"),
            norm_epsilon=setting("attention.layer_norm_rms_epsilon"),
        )
        weights = {
            tensor.name: np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
            for tensor in reader.tensors
        }
    return settings, weights


def _import_gguf() -> ModuleType:
    try:
        return importlib.import_module("gguf")
    except ModuleNotFoundError:
        raise ToolchainError(
            "reading a GGUF file needs the package gguf: pip install 'edgec[models]'"
        ) from None


def halves_from_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the outputs of a query or key projection from GGUF's to PyTorch's rotary layout.

    GGUF stores a head's outputs so that rotation turns the pairs (0, 1), (2, 3), ...; the
    exported spelling turns (0, n/2), (1, n/2 + 1), ... of the n outputs of a head.

    >>> halves_from_pairs(np.arange(6)[:, None], heads=1).ravel().tolist()
    [0, 2, 4, 1, 3, 5]
    """
    outputs, inputs = weight.shape
    pairs = weight.reshape(heads, outputs // heads // 2, 2, inputs)
    return pairs.swapaxes(1, 2).reshape(outputs, inputs)


class _Decoder:
    def __init__(self, settings: Settings, weights: dict[str, np.ndarray]) -> None:
        self.settings = settings
        self.weights = weights
        self.graph = GraphBuilder()
        self.vocabulary, self.width = weights["token_embd.weight"].shape
        self.head_size = self.width // settings.heads

    def model(self) -> onnx.ModelProto:
        positions = self.positions()
        rotation = self.rotation(positions)
        mask = self.causal_mask(positions)
        embeddings = self.parameter("token_embd.weight")
        value = self.graph.node("Gather", [embeddings, "input_ids"], "embeddings")
        for index in range(self.settings.blocks):
            value = self.block(value, rotation, mask, index)
        value = self.norm(value, "output_norm", "norm")
        self.graph.node("MatMul", [value, self.output_weight(embeddings)], "logits")
        tokens, logits = [1, "sequence"], [1, "sequence", self.vocabulary]
        return self.graph.model(
            "smollm2",
            [helper.make_tensor_value_info("input_ids", TensorProto.INT64, tokens)],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, logits)],
        )

    def output_weight(self, embeddings: str) -> str:
        """Return [width, vocabulary]; a file without its own means the embeddings'."""
        if "output.weight" in self.weights:
            return self.graph.weight("output.weight", self.weights["output.weight"].T)
        return self.graph.node("Transpose", [embeddings], "output.weight", perm=[1, 0])

    def positions(self) -> str:
        """Return 0, 1, ..., int64 [sequence]."""
        graph = self.graph
        shape = graph.node("Shape", ["input_ids"], "positions.shape")
        length = graph.node("Gather", [shape, graph.integer(1)], "positions.length")
        return graph.node("Range", [graph.integer(0), length, graph.integer(1)], "positions")

    def rotation(self, positions: str) -> tuple[str, str]:
        """Return cosines and sines of the rotary angles, [sequence, head size].

        Su et al., 2021, arXiv:2104.09864, equation 15: position times `base ** (-2 i / size)`.
        """
        graph = self.graph
        exponents = -np.arange(0, self.head_size, 2) / self.head_size
        frequencies = graph.weight(
            "rotary.frequencies", (self.settings.rotary_base**exponents).astype(np.float32)
        )
        steps = graph.node("Cast", [positions], "rotary.positions", to=TensorProto.FLOAT)
        steps = graph.node("Unsqueeze", [steps, graph.integers(1)], "rotary.column")
        angles = graph.node("Mul", [steps, frequencies], "rotary.half_angles")
        angles = graph.node("Concat", [angles, angles], "rotary.angles", axis=-1)
        return (
            graph.node("Cos", [angles], "rotary.cosines"),
            graph.node("Sin", [angles], "rotary.sines"),
        )

    def causal_mask(self, positions: str) -> str:
        """Return zero where a row's token may see a column's, else the lowest float."""
        graph = self.graph
        rows = graph.node("Unsqueeze", [positions, graph.integers(1)], "mask.rows")
        columns = graph.node("Unsqueeze", [positions, graph.integers(0)], "mask.columns")
        seen = graph.node("LessOrEqual", [columns, rows], "mask.seen")
        lowest = graph.number(float(np.finfo(np.float32).min))
        return graph.node("Where", [seen, graph.number(0.0), lowest], "mask")

    def block(self, value: str, rotation: tuple[str, str], mask: str, index: int) -> str:
        graph, source, scope = self.graph, f"blk.{index}", f"block{index}"
        result = self.norm(value, f"{source}.attn_norm", f"{scope}.attention.norm")
        result = self.attention(result, rotation, mask, source, f"{scope}.attention")
        value = graph.node("Add", [value, result], f"{scope}.attention.add")
        result = self.norm(value, f"{source}.ffn_norm", f"{scope}.mlp.norm")
        result = self.mlp(result, source, f"{scope}.mlp")
        return graph.node("Add", [value, result], f"{scope}.mlp.add")

    def attention(
        self, value: str, rotation: tuple[str, str], mask: str, source: str, scope: str
    ) -> str:
        graph, heads, key_heads = self.graph, self.settings.heads, self.settings.key_heads
        query = self.heads(value, f"{source}.attn_q", f"{scope}.query", heads, rotary=True)
        key = self.heads(value, f"{source}.attn_k", f"{scope}.key", key_heads, rotary=True)
        values = self.heads(value, f"{source}.attn_v", f"{scope}.value", key_heads)
        query = self.rotate(query, rotation, f"{scope}.query")
        key = self.repeat(self.rotate(key, rotation, f"{scope}.key"), f"{scope}.key")
        values = self.repeat(values, f"{scope}.value")
        key = graph.node("Transpose", [key], f"{scope}.key.columns", perm=[0, 1, 3, 2])
        scores = graph.node("MatMul", [query, key], f"{scope}.product")
        scale = graph.number(self.head_size**-0.5)
        scores = graph.node("Mul", [scores, scale], f"{scope}.scaled")
        scores = graph.node("Add", [scores, mask], f"{scope}.masked")
        shares = graph.node("Softmax", [scores], f"{scope}.softmax", axis=-1)
        mixed = graph.node("MatMul", [shares, values], f"{scope}.mixed")
        mixed = graph.node("Transpose", [mixed], f"{scope}.transposed", perm=[0, 2, 1, 3])
        shape = graph.integers(0, 0, self.width)
        merged = graph.node("Reshape", [mixed, shape], f"{scope}.merged")
        return self.linear(merged, f"{source}.attn_output", f"{scope}.output")

    def heads(self, value: str, source: str, scope: str, heads: int, rotary: bool = False) -> str:
        """Project and split, [1, heads, sequence, head size]."""
        weight = self.weights[f"{source}.weight"]
        if rotary:
            weight = halves_from_pairs(weight, heads)
        matrix = self.graph.weight(f"{source}.weight", weight.T)
        value = self.graph.node("MatMul", [value, matrix], f"{scope}.matmul")
        shape = self.graph.integers(0, 0, heads, self.head_size)
        value = self.graph.node("Reshape", [value, shape], f"{scope}.heads")
        return self.graph.node("Transpose", [value], f"{scope}.transposed", perm=[0, 2, 1, 3])

    def rotate(self, value: str, rotation: tuple[str, str], scope: str) -> str:
        """Return `x * cos + (-second half, first half) * sin`."""
        graph, half = self.graph, self.head_size // 2
        cosines, sines = rotation
        first, second = (
            graph.node(
                "Slice",
                [value, graph.integers(start), graph.integers(start + half), graph.integers(-1)],
                f"{scope}.{name}",
            )
            for name, start in (("first", 0), ("second", half))
        )
        second = graph.node("Neg", [second], f"{scope}.negative")
        turned = graph.node("Concat", [second, first], f"{scope}.turned", axis=-1)
        straight = graph.node("Mul", [value, cosines], f"{scope}.cosine_part")
        turned = graph.node("Mul", [turned, sines], f"{scope}.sine_part")
        return graph.node("Add", [straight, turned], f"{scope}.rotated")

    def repeat(self, value: str, scope: str) -> str:
        """Give each key head to its group of queries, [1, heads, sequence, head size]."""
        graph, group = self.graph, self.settings.heads // self.settings.key_heads
        value = graph.node("Unsqueeze", [value, graph.integers(2)], f"{scope}.unsqueezed")
        shape = graph.integers(1, 1, group, 1, 1)
        value = graph.node("Expand", [value, shape], f"{scope}.expanded")
        shape = graph.integers(1, self.settings.heads, -1, self.head_size)
        return graph.node("Reshape", [value, shape], f"{scope}.repeated")

    def mlp(self, value: str, source: str, scope: str) -> str:
        """SwiGLU: `down(silu(gate(x)) * up(x))`."""
        graph = self.graph
        gate = self.linear(value, f"{source}.ffn_gate", f"{scope}.gate")
        sigmoid = graph.node("Sigmoid", [gate], f"{scope}.sigmoid")
        gate = graph.node("Mul", [gate, sigmoid], f"{scope}.silu")
        up = self.linear(value, f"{source}.ffn_up", f"{scope}.up")
        product = graph.node("Mul", [gate, up], f"{scope}.product")
        return self.linear(product, f"{source}.ffn_down", f"{scope}.down")

    def norm(self, value: str, source: str, scope: str) -> str:
        """Return `x / sqrt(mean(x^2) + epsilon) * weight`."""
        graph = self.graph
        square = graph.node("Pow", [value, graph.number(2.0)], f"{scope}.square")
        mean = graph.node("ReduceMean", [square], f"{scope}.mean", axes=[-1], keepdims=1)
        epsilon = graph.number(self.settings.norm_epsilon)
        mean = graph.node("Add", [mean, epsilon], f"{scope}.epsilon")
        root = graph.node("Sqrt", [mean], f"{scope}.root")
        inverse = graph.node("Reciprocal", [root], f"{scope}.inverse")
        value = graph.node("Mul", [value, inverse], f"{scope}.normalized")
        return graph.node("Mul", [self.parameter(f"{source}.weight"), value], scope)

    def linear(self, value: str, source: str, scope: str) -> str:
        weight = self.graph.weight(f"{source}.weight", self.weights[f"{source}.weight"].T)
        return self.graph.node("MatMul", [value, weight], scope)

    def parameter(self, name: str) -> str:
        return self.graph.weight(name, self.weights[name])
