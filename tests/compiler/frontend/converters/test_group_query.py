"""GroupQueryAttention of lengths that a run tells, against ONNX Runtime."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from support.onnx_graphs import make_model, node, random, save

from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.backend import HostModel, lower, pack
from edgec.compiler.cli.main import main
from edgec.compiler.errors import UnsupportedModelError
from edgec.compiler.frontend.canonical import canonical_model
from edgec.compiler.lowering.schedule import schedule_program
from edgec.compiler.parity.oracle import run_original
from edgec.targets import load_target

ROWS = 40
# What a node has beside its number of queries.
KINDS: dict[str, dict[str, Any]] = {
    "turned": {"num_heads": 4, "kv_num_heads": 2, "do_rotary": 1},
    "interleaved": {"num_heads": 4, "kv_num_heads": 4, "do_rotary": 1, "rotary_interleaved": 1},
    "window": {"num_heads": 6, "kv_num_heads": 2, "local_window_size": 9},
    "cap": {"num_heads": 3, "kv_num_heads": 1, "softcap": 2.0, "scale": 0.4},
}
SIZE = 16


def decoder(count: int) -> onnx.ModelProto:
    """Return one node of each kind with as many new tokens, behind `past` ones."""
    nodes, outputs = [node("Add", ["past", "more"], ["n"])], []
    inputs: dict[str, list[int]] = {"past": [1]}
    for number, attributes in enumerate(KINDS.values()):
        heads, groups = attributes["num_heads"], attributes["kv_num_heads"]
        names = [f"{name}{number}" for name in ("q", "k", "v", "pk", "pv")]
        made = [f"{name}{number}" for name in ("y", "pnk", "pnv")]
        tables = ["cos", "sin"] if "do_rotary" in attributes else []
        kind = "GroupQueryAttention"
        given = [*names, "n", "total", *tables]
        nodes.append(node(kind, given, made, domain="com.microsoft", **attributes))
        widths = (heads * SIZE, groups * SIZE, groups * SIZE)
        inputs |= {n: [1, count, width] for n, width in zip(names[:3], widths, strict=True)}
        inputs |= {name: [1, groups, ROWS, SIZE] for name in names[3:]}
        outputs += made
    weights = {
        "more": np.array([count - 1], np.int32),
        "total": np.array(ROWS, np.int32),
        "cos": random(ROWS, SIZE // 2),
        "sin": random(ROWS, SIZE // 2, seed=1),
    }
    return make_model(nodes, inputs, outputs, weights, dtypes={"past": TensorProto.INT32})


def values(model: onnx.ModelProto, past: int) -> dict[str, np.ndarray]:
    shapes = {
        i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input
    }
    given = {name: random(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    return {**given, "past": np.array([past], np.int32)}


def wrong(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> list[str]:
    """Return outputs that are not right."""
    return [
        name
        for name, array in expected.items()
        if not np.allclose(found[name], array, rtol=2e-5, atol=2e-5)
    ]


@pytest.mark.parametrize("count", [1, 3])
def test_lengths_at_run_time(count: int, tmp_path: Path) -> None:
    """One library for every length; new rows are appended, and nothing else is a kernel."""
    model = decoder(count)
    path = save(model, tmp_path)
    canonical, machine = canonical_model(model), load_target("native")
    packed = lower(pack(canonical.module, machine), machine)
    program = schedule_program(packed, machine, canonical.signature)
    kernels = [step.template for step in program.steps if step.template != "generic"]
    assert sorted(kernels) == ["cache_append"] * 8 + ["cache_attention"] * 4
    library = HostModel(canonical.module, canonical.signature)
    for past in (0, 1, 17, ROWS - count):
        given = values(model, past)
        found, expected = library.run(given), run_original(path, given)
        assert wrong(found, expected) == []
        # The negative control: one row later is wrong everywhere.
        later = {**given, "past": given["past"] + 1}
        assert wrong(library.run(later), expected) == list(expected)


def test_on_a_board_under_qemu(tmp_path: Path) -> None:
    path = save(decoder(3), tmp_path)
    # 19 keys at last: whole vectors of them, and a rest.
    options = CompileOptions(runner=True, inputs=values(decoder(3), 16))
    bundle = compile_model(path, "rpi4", options, output=tmp_path / "model.edgec")
    command = ["board", "exec", "qemu-rpi4", str(bundle.path / "run"), "--verify"]
    assert main(command) == 0
    expected = bundle.path / "vectors/0/output-0.npy"
    np.save(expected, np.load(expected) * np.float32(1.01))
    assert main(command) == 1


def test_scattered_caches_of_lengths_at_run_time(tmp_path: Path) -> None:
    """TensorScatter and Attention of ONNX itself, as decoders of opset 24 have them."""
    nodes = [
        node("TensorScatter", ["keys", "k", "past"], ["a"]),
        node("TensorScatter", ["values", "v", "past"], ["b"]),
        node("Add", ["past", "count"], ["lengths"]),
        node("Attention", ["q", "a", "b", "", "", "", "lengths"], ["y"], is_causal=1),
    ]
    inputs = {
        "q": [2, 4, 3, 8],
        "k": [2, 2, 3, 8],
        "v": [2, 2, 3, 8],
        "keys": [2, 2, 20, 8],
        "values": [2, 2, 20, 8],
        "past": [2],
    }
    weights, kinds = {"count": np.array([3])}, {"past": TensorProto.INT64}
    model = make_model(nodes, inputs, ["y", "a", "b"], weights, dtypes=kinds, opset=24)
    canonical = canonical_model(model)
    library = HostModel(canonical.module, canonical.signature)
    given = {name: random(*shape, seed=i) for i, (name, shape) in enumerate(inputs.items())}
    for past in ((0, 5), (17, 9)):
        given["past"] = np.array(past)
        found, expected = library.run(given), run_original(model, given)
        assert wrong(found, expected) == []
        assert wrong(library.run({**given, "past": given["past"] - 1}), expected) == [*expected]


@pytest.mark.parametrize(
    ("heads", "rows", "message"),
    [
        ((3, 2), [1, 2, 9, 8], "3 query heads cannot share 2 key heads"),
        ((4, 2), [1, 2, 9, 4], r"a cache \(1, 2, 9, 4\) does not fit 2 heads of 8"),
    ],
)
def test_refusals(heads: tuple[int, int], rows: list[int], message: str) -> None:
    count, groups = heads
    names = ["q", "k", "k", "p", "p", "n", "total"]
    made = node(
        "GroupQueryAttention",
        names,
        ["y", "a", "b"],
        domain="com.microsoft",
        num_heads=count,
        kv_num_heads=groups,
    )
    inputs = {"q": [1, 1, count * 8], "k": [1, 1, groups * 8], "p": rows, "n": [1]}
    weights, kinds = {"total": np.array(9, np.int32)}, {"n": TensorProto.INT32}
    model = make_model([made], inputs, ["y", "a", "b"], weights, dtypes=kinds)
    with pytest.raises(UnsupportedModelError, match=message):
        canonical_model(model)
