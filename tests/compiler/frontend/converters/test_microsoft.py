"""Operators of com.microsoft against ONNX Runtime, through the whole compile."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from support.onnx_graphs import make_model, node, random, save

from edgec.compiler import Bundle, CompileOptions, compile_model
from edgec.compiler.errors import UnsupportedModelError
from edgec.compiler.parity.oracle import run_original


def microsoft(op_type: str, inputs: list[str], outputs: list[str], **attributes: Any) -> Any:
    return node(op_type, inputs, outputs, domain="com.microsoft", **attributes)


def compiled(
    folder: Path, nodes: list[Any], inputs: Any, outputs: Any, *rest: Any, **kw: Any
) -> None:
    """Compile, which compares with ONNX Runtime after each stage."""
    path = save(make_model(nodes, inputs, list(outputs), *rest, **kw), folder)
    compile_model(path, options=CompileOptions(check_stages=True), output=folder / "model.edgec")


def test_activations(tmp_path: Path) -> None:
    nodes = [
        microsoft("Gelu", ["x"], ["a"]),
        microsoft("BiasGelu", ["x", "w"], ["b"]),
        microsoft("FastGelu", ["x"], ["c"]),
        microsoft("FastGelu", ["x", "w"], ["d"]),
        microsoft("QuickGelu", ["x"], ["e"]),
        microsoft("QuickGelu", ["x"], ["f"], alpha=1.0),
    ]
    compiled(tmp_path, nodes, {"x": [2, 3, 8]}, "abcdef", {"w": random(8)})


def test_normalizations(tmp_path: Path) -> None:
    skip, simplified = "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"
    nodes = [
        microsoft(skip, ["x", "s", "g", "h", "i"], ["a", "", "", "b"], epsilon=1e-3),
        microsoft(skip, ["x", "t", "g"], ["c"]),
        microsoft(simplified, ["x", "s", "g"], ["d"], epsilon=1e-3),
        microsoft(simplified, ["x", "s", "g", "i"], ["e", "", "", "f"], epsilon=1e-5),
    ]
    weights = {"g": random(8), "h": random(8, seed=1), "i": random(8, seed=2)}
    inputs = {"x": [2, 3, 8], "s": [2, 3, 8], "t": [3, 8]}
    compiled(tmp_path, nodes, inputs, "abcdef", weights)


def test_simplified_layer_normalization_of_the_default_domain(tmp_path: Path) -> None:
    """As ONNX Runtime GenAI's exporter writes it; the ONNX package does not know it."""
    plain = node("SimplifiedLayerNormalization", ["x", "g"], ["a"], epsilon=1e-5, axis=-1)
    path = save(make_model([plain], {"x": [2, 3, 8]}, ["a"], {"g": random(8)}), tmp_path)
    bundle = compile_model(path, output=tmp_path / "model.edgec")
    assert [step.template for step in bundle.open().steps()] == ["rows"]


def test_embeddings(tmp_path: Path) -> None:
    embed, integers = "EmbedLayerNormalization", TensorProto.INT32
    nodes = [
        microsoft(embed, ["i", "s", "w", "p", "t", "g", "b", "m"], ["a", "n"], epsilon=1e-5),
        microsoft(embed, ["i", "", "w", "p", "", "g", "b", "", "q"], ["c", "o", "e"]),
    ]
    weights = {
        "w": random(20, 8),
        "p": random(6, 8, seed=1),
        "t": random(2, 8, seed=2),
        "g": random(8, seed=3),
        "b": random(8, seed=4),
        "s": np.array([[0, 0, 1, 1], [0, 1, 1, 1]], np.int32),
        "m": np.array([[1, 1, 1, 0], [1, 1, 0, 0]], np.int32),
        "q": np.array([[3, 2, 1, 0], [0, 1, 2, 5]], np.int32),
    }
    kinds = {"i": integers, "n": integers, "o": integers}
    compiled(tmp_path, nodes, {"i": [2, 4]}, ["a", "n", "c", "e"], weights, dtypes=kinds)


def test_fused_linear_operators(tmp_path: Path) -> None:
    conv: dict[str, Any] = {"pads": [1, 1, 1, 1], "activation": "Relu"}
    leaky = {"activation": "LeakyRelu", "activation_params": [0.3]}
    clip = {"activation": "Clip", "activation_params": [-0.5, 0.5]}
    gemm = {"activation": "LeakyRelu", "activation_alpha": 0.2, "alpha": 0.7, "beta": 1.3}
    nodes = [
        microsoft("FusedConv", ["x", "w", "b"], ["a"], **conv),
        microsoft("FusedConv", ["x", "w", "b", "z"], ["c"], **conv),
        microsoft("FusedConv", ["x", "w"], ["d"], **leaky),
        microsoft("FusedConv", ["x", "w"], ["e"], **clip),
        microsoft("FusedGemm", ["m", "n", "c5"], ["f"], transA=1, transB=1, **gemm),
        microsoft("FusedMatMul", ["p", "q"], ["g"], transA=1, transB=1, alpha=0.4),
        microsoft("FusedMatMul", ["m", "n"], ["h"], transA=1, transB=1),
    ]
    weights = {"w": random(6, 4, 3, 3), "b": random(6), "n": random(5, 7), "c5": random(5)}
    inputs = {"x": [1, 4, 6, 7], "z": [1, 6, 6, 7], "m": [7, 3], "p": [2, 4, 3], "q": [2, 5, 4]}
    compiled(tmp_path, nodes, inputs, "acdefgh", weights)


@pytest.mark.parametrize("bits", [4, 8])
def test_matmul_nbits(tmp_path: Path, bits: int) -> None:
    k, n, size = 80, 6, 32
    blocks = 3
    numbers = np.random.default_rng(0)
    packed = -(-blocks * bits // 8)
    weights = {
        "b": numbers.integers(0, 256, (n, blocks, size * bits // 8), np.uint8),
        "s": np.abs(random(n, blocks)) / 8,
        "z": numbers.integers(0, 256, (n, packed), np.uint8),
        "c": random(n),
    }
    size_attributes = {"K": k, "N": n, "bits": bits, "block_size": size}
    nodes = [
        microsoft("MatMulNBits", ["x", "b", "s"], ["a"], **size_attributes),
        microsoft("MatMulNBits", ["x", "b", "s", "z"], ["d"], **size_attributes),
        microsoft("MatMulNBits", ["x", "b", "s", "z", "", "c"], ["e"], **size_attributes),
    ]
    compiled(tmp_path, nodes, {"x": [2, 3, k]}, "ade", weights)
    steps = [step.template for step in Bundle.of(tmp_path / "model.edgec").open().steps()]
    assert steps == ["stored_matmul" if bits == 4 else "matmul"] * 3


@pytest.mark.parametrize("bits", [4, 8])
def test_matmul_nbits_with_rounded_activations(tmp_path: Path, bits: int) -> None:
    """Codes stay codes: whole zero points, zero points as numbers, and none."""
    k, n, size = 80, 40, 16
    numbers = np.random.default_rng(0)
    points = numbers.integers(0, 256, (n, -(-5 * bits // 8)), np.uint8)
    weights = {
        "b": numbers.integers(0, 256, (n, 5, size * bits // 8), np.uint8),
        "s": np.abs(random(n, 5)) / 8,
        "z": points,
        "f": random(n, 5, seed=2) + (1 << bits - 1),
        "c": random(n),
    }
    attributes = {"K": k, "N": n, "bits": bits, "block_size": size, "accuracy_level": 4}
    operands = [["x", "b", "s"], ["x", "b", "s", "z", "", "c"]]
    # ONNX Runtime has no numbers as zero points of 8 bits.
    operands += [["x", "b", "s", "f"]] * (bits == 4)
    nodes = [
        microsoft("MatMulNBits", inputs, [name], **attributes)
        for inputs, name in zip(operands, "ade", strict=False)
    ]
    used = {name: weights[name] for inputs in operands for name in inputs[1:] if name}
    names = list("ade"[: len(nodes)])
    path = save(make_model(nodes, {"x": [2, 3, k]}, names, used), tmp_path)
    bundle = compile_model(path, output=tmp_path / "model.edgec")
    steps = [step.template for step in bundle.open().steps()]
    assert steps == ["quantize_rows", *["grouped_product"] * len(nodes)]


def test_attention(tmp_path: Path) -> None:
    nodes = [
        microsoft("Attention", ["x", "w", "b"], ["a"], num_heads=2),
        microsoft("Attention", ["x", "w", "b", "m"], ["c"], num_heads=2, scale=0.5),
        microsoft("Attention", ["x", "w", "b", "l"], ["d"], num_heads=2),
        microsoft("Attention", ["x", "w", "b", "", "p"], ["e", "f"], num_heads=2),
        microsoft("Attention", ["x", "w", "b"], ["g"], num_heads=2, unidirectional=1),
        microsoft("Attention", ["x", "w", "b", "", "", "r"], ["h"], num_heads=2),
    ]
    weights = {
        "w": random(12, 24) / 4,
        "b": random(24),
        "m": np.array([[1, 1, 1, 0], [1, 1, 0, 0]], np.int32),
        "l": np.array([3, 2], np.int32),
        "r": random(2, 2, 4, 4),
    }
    inputs = {"x": [2, 4, 12], "p": [2, 2, 2, 3, 4]}
    compiled(tmp_path, nodes, inputs, "acdefgh", weights)


def test_multi_head_attention(tmp_path: Path) -> None:
    kind = "MultiHeadAttention"
    nodes = [
        microsoft(kind, ["q", "k", "v"], ["a"], num_heads=2),
        microsoft(kind, ["q", "k", "v", "b", "m"], ["c"], num_heads=2),
        microsoft(kind, ["q", "k", "k", "", "", "r", "p", "p"], ["d", "e", "f"], num_heads=2),
        microsoft(kind, ["q", "kh", "vh"], ["i"], num_heads=2),
    ]
    weights = {"b": random(28), "m": np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]], np.int32)}
    inputs = {
        "q": [2, 3, 8],
        "k": [2, 5, 8],
        "v": [2, 5, 12],
        "p": [2, 2, 4, 4],
        "r": [1, 2, 3, 9],
        "kh": [2, 2, 5, 4],
        "vh": [2, 2, 5, 4],
    }
    compiled(tmp_path, nodes, inputs, "acdefi", weights)


def test_group_query_attention(tmp_path: Path) -> None:
    kind, heads = "GroupQueryAttention", {"num_heads": 4, "kv_num_heads": 2}
    plain, rotated = ["", "", "n3", "t3"], ["", "", "n3", "t3", "cos", "sin"]
    nodes = [
        microsoft(kind, ["q", "k", "k", *plain], ["a", "b", "c"], **heads),
        microsoft(kind, ["q", "k", "k", *rotated], ["d", "e", "f"], do_rotary=1, **heads),
        microsoft(
            kind,
            ["one", "onek", "onek", "p", "p", "n6", "t6", "cos", "sin"],
            ["g", "h", "i"],
            do_rotary=1,
            rotary_interleaved=1,
            **heads,
        ),
        microsoft(kind, ["qkv", "", "", *plain], ["j", "l", "m"], local_window_size=2, **heads),
        microsoft(kind, ["q", "k", "k", *plain], ["n", "o", "r"], softcap=1.5, scale=0.3, **heads),
    ]
    weights = {
        "n3": np.array([2, 2], np.int32),
        "t3": np.array(3, np.int32),
        "n6": np.array([5, 5], np.int32),
        "t6": np.array(6, np.int32),
        "cos": random(10, 8),
        "sin": random(10, 8, seed=1),
    }
    inputs = {
        "q": [2, 3, 64],
        "k": [2, 3, 32],
        "one": [2, 1, 64],
        "onek": [2, 1, 32],
        "p": [2, 2, 5, 16],
        "qkv": [2, 3, 128],
    }
    compiled(tmp_path, nodes, inputs, "abcdefghijlmnor", weights)


def test_rotary_embedding(tmp_path: Path) -> None:
    nodes = [
        microsoft("RotaryEmbedding", ["x", "i", "cos", "sin"], ["a"]),
        microsoft("RotaryEmbedding", ["h", "i", "cos", "sin"], ["b"], interleaved=1),
        microsoft("RotaryEmbedding", ["x", "first", "cos", "sin"], ["c"]),
    ]
    weights = {
        "i": np.array([[0, 3, 2], [5, 1, 1]]),
        "first": np.array([4]),
        "cos": random(10, 4),
        "sin": random(10, 4, seed=1),
    }
    compiled(tmp_path, nodes, {"x": [2, 3, 24], "h": [2, 3, 3, 8]}, "abc", weights)


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        (microsoft("MatMulNBits", ["x", "x", "x"], ["y"], K=8, N=2, block_size=16), "'B' must be"),
        (microsoft("FusedMatMul", ["x", "x"], ["y"], transBatchA=1), "batch dimensions"),
        (microsoft("FusedGemm", ["x", "x"], ["y"], activation="Elu"), "activation Elu"),
        (microsoft("Attention", ["x", "x"], ["y"], do_rotary=1, num_heads=2), "rotary embeddings"),
        (microsoft("NhwcConv", ["x", "x"], ["y"]), "the operator is not supported"),
    ],
)
def test_refusals(tmp_path: Path, operator: Any, message: str) -> None:
    model = make_model([operator], {"x": [8, 8]}, ["y"])
    with pytest.raises(UnsupportedModelError, match=message):
        compile_model(save(model, tmp_path), output=tmp_path / "x.edgec")


def test_group_query_attention_of_lengths_at_run_time(tmp_path: Path) -> None:
    """Right-padded caches as onnxruntime-genai exports them: lengths come from a mask."""
    heads = {"num_heads": 4, "kv_num_heads": 2, "do_rotary": 1}
    nodes = [
        node("ReduceSum", ["mask", "axis"], ["count"], keepdims=0),
        node("Sub", ["count", "one"], ["less"]),
        node("Cast", ["less"], ["n"], to=TensorProto.INT32),
        microsoft(
            "GroupQueryAttention",
            ["q", "k", "v", "pk", "pv", "n", "total", "cos", "sin"],
            ["a", "b", "c"],
            **heads,
        ),
    ]
    weights = {
        "axis": np.array([1]),
        "one": np.array(1),
        "total": np.array(8, np.int32),
        "cos": random(20, 8),
        "sin": random(20, 8, seed=1),
    }
    inputs = {
        "q": [2, 1, 64],
        "k": [2, 1, 32],
        "v": [2, 1, 32],
        "pk": [2, 2, 7, 16],
        "pv": [2, 2, 7, 16],
        "mask": [2, 8],
    }
    model = make_model(nodes, inputs, ["a", "b", "c"], weights, dtypes={"mask": TensorProto.INT64})
    given = {
        name: random(*shape, seed=number) for number, (name, shape) in enumerate(inputs.items())
    }
    given["mask"] = np.array([[1] * 8, [1] * 5 + [0] * 3])
    path = save(model, tmp_path)
    options = CompileOptions(inputs=given)
    bundle = compile_model(path, options=options, output=tmp_path / "model.edgec")
    given["mask"] = np.array([[1] * 4 + [0] * 4, [1] * 7 + [0]])
    found, expected = bundle.run(given), run_original(path, given)
    for name in "abc":
        np.testing.assert_allclose(found[name], expected[name], atol=2e-5, err_msg=name)


def test_quantized_attention(tmp_path: Path) -> None:
    """After DynamicQuantizeLinear, as quantize_dynamic writes it; a scale for each column, too."""
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        microsoft("QAttention", ["q", "w", "b", "s", "t", "m", "z", "y"], ["a"], num_heads=2),
        microsoft("QAttention", ["q", "w", "b", "s", "u", "", "z", "v"], ["c"], num_heads=2),
        microsoft(
            "QAttention",
            ["q", "w", "b", "s", "t", "", "z", "y", "p"],
            ["d", "e"],
            num_heads=2,
            unidirectional=1,
        ),
    ]
    weights = {
        "w": np.random.default_rng(0).integers(-127, 128, (12, 24), np.int8),
        "b": random(24),
        "t": np.array(0.02, np.float32),
        "u": np.abs(random(24, seed=1)) / 40,
        "v": np.zeros(24, np.int8),
        "y": np.array(3, np.int8),
        "m": np.array([[1, 1, 1, 0], [1, 1, 0, 0]], np.int32),
    }
    compiled(tmp_path, nodes, {"x": [2, 4, 12], "p": [2, 2, 2, 3, 4]}, "acde", weights)


@pytest.mark.parametrize(
    ("kind", "bits", "zeros", "axes"),
    [
        (TensorProto.UINT4, 4, False, (0, 1)),
        (TensorProto.UINT4, 4, True, (0, 1)),
        (TensorProto.INT4, 4, True, (0, 1)),
        (TensorProto.UINT8, 4, False, (0, 1)),
        (TensorProto.UINT8, 4, True, (0, 1)),
        (TensorProto.UINT8, 8, True, (0, 1)),
        (TensorProto.UINT4, 4, True, (1, 0)),
        (TensorProto.INT4, 4, True, (0, 0)),
    ],
)
def test_gather_block_quantized(
    tmp_path: Path, kind: int, bits: int, zeros: bool, axes: tuple[int, int]
) -> None:
    numbers, shape, size = np.random.default_rng(0), (32, 64), 16
    blocks = [e // size if axis == axes[1] else e for axis, e in enumerate(shape)]
    tensors = []
    for name, extents in (("w", shape), ("z", blocks)):
        if kind == TensorProto.UINT8:
            packed = (*extents[:-1], extents[-1] * bits // 8)
            values = numbers.integers(0, 256, packed, np.uint8)
            tensors.append(onnx.numpy_helper.from_array(values, name))
        else:
            values = numbers.integers(0, 8, extents)
            tensors.append(onnx.helper.make_tensor(name, kind, extents, values.reshape(-1)))
    attributes = {"gather_axis": axes[0], "quantize_axis": axes[1], "block_size": size}
    if kind == TensorProto.UINT8:
        attributes["bits"] = bits
    operator = microsoft(
        "GatherBlockQuantized", ["w", "i", "s", *["z"] * zeros], ["y"], **attributes
    )
    model = make_model(
        [operator],
        {"i": [2, 3]},
        ["y"],
        {"s": np.abs(random(*blocks))},
        opset=21,
        dtypes={"i": TensorProto.INT64},
    )
    model.graph.initializer.extend(tensors[: 1 + zeros])
    inputs = {"i": np.array([[0, 17, -1], [5, 31, -20]])}
    compile_model(
        save(model, tmp_path), options=CompileOptions(inputs=inputs), output=tmp_path / "m.edgec"
    )


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_dynamically_quantized_lstm(tmp_path: Path, direction: str) -> None:
    numbers, count = np.random.default_rng(0), 1 + (direction == "bidirectional")
    weights = {
        "w": numbers.integers(-127, 128, (count, 6, 32), np.int8),
        "r": numbers.integers(-127, 128, (count, 8, 32), np.int8),
        "b": random(count, 64),
        "ws": np.full(count, 0.01, np.float32),
        "wz": np.zeros(count, np.int8),
        "rs": np.abs(random(count, 32)) / 100,
        "rz": np.zeros((count, 32), np.int8),
    }
    names = ["x", "w", "r", "b", "", "", "", "", "ws", "wz", "rs", "rz"]
    operator = microsoft(
        "DynamicQuantizeLSTM", names, ["y", "h", "c"], hidden_size=8, direction=direction
    )
    model = make_model([operator], {"x": [5, 2, 6]}, ["y", "h", "c"], weights)
    path = save(model, tmp_path)
    bundle = compile_model(path, output=tmp_path / "model.edgec")
    given = {"x": random(5, 2, 6, seed=9)}
    found, expected = bundle.run(given), run_original(path, given)
    for name in "yhc":
        # Far closer than rounding moves it: as ONNX Runtime rounds.
        np.testing.assert_allclose(found[name], expected[name], atol=5e-3, err_msg=name)


def test_matrices_and_windows(tmp_path: Path) -> None:
    nodes = [
        microsoft("Inverse", ["x"], ["a"]),
        microsoft("Trilu", ["x", "k"], ["b"], upper=0),
        microsoft("Trilu", ["x"], ["c"]),
        node("DynamicQuantizeLinear", ["im"], ["q", "s", "z"]),
        microsoft("NhwcMaxPool", ["q"], ["d"], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
    ]
    inputs = {"x": [2, 3, 5, 5], "im": [1, 7, 8, 4]}
    kinds = {"d": TensorProto.UINT8}
    compiled(tmp_path, nodes, inputs, "abcd", {"k": np.array(1)}, dtypes=kinds)
