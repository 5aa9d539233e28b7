"""Positions of extreme values in rows that are compared in vectors, and Hardmax."""

from pathlib import Path

import numpy as np
import onnx
from support.kernel_runs import compile_graph
from support.onnx_graphs import make_model, node

from edgec.compiler.parity.oracle import run_original

# Two vectors, and some columns behind them.
COLUMNS = 37


def rows() -> np.ndarray:
    """Return rows with ties, NaN and infinities at all kinds of places."""
    generator = np.random.default_rng(0)
    found = generator.integers(0, 9, (40, COLUMNS)).astype(np.float32)
    found[8:16][generator.random((8, COLUMNS)) < 0.3] = np.nan
    found[16:24] = generator.choice([-np.inf, np.nan, np.inf, 1], (8, COLUMNS))
    found[24:32] = generator.choice([-np.inf, np.nan], (8, COLUMNS))
    found[32:36] = found[36:40] = 3
    found[np.arange(36, 40), [0, 17, 33, 36]] = [4, 4, 4, 2]
    return found


def test_against_onnx_runtime(tmp_path: Path) -> None:
    """As in ONNX Runtime: NaN stands as the first value, and is passed over elsewhere."""
    x = rows()
    nodes = [
        node(kind, ["x"], [f"{kind}{last}"], axis=1, select_last_index=last)
        for kind in ("ArgMax", "ArgMin")
        for last in (0, 1)
    ]
    nodes.append(node("Hardmax", ["x"], ["one"]))
    outputs = [item.output[0] for item in nodes]
    dtypes = {**dict.fromkeys(outputs, onnx.TensorProto.INT64), "one": onnx.TensorProto.FLOAT}
    model = make_model(nodes, {"x": list(x.shape)}, outputs, dtypes=dtypes)
    built = compile_graph(model, "native", tmp_path)
    found, expected = built.open().run({"x": x}), run_original(model, {"x": x})
    for name in outputs:
        # What Hardmax makes of NaN is left open.
        known = ~np.isnan(x).any(axis=1) if name == "one" else slice(None)
        np.testing.assert_array_equal(found[name][known], expected[name][known], err_msg=name)
    # The last of equal ones is another one.
    assert (found["ArgMax0"] != found["ArgMax1"]).any()


def test_hardmax_of_before_opset_13_takes_all_axes_behind(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((2, 3, 5), np.float32)
    model = make_model([node("Hardmax", ["x"], ["y"])], {"x": list(x.shape)}, ["y"], opset=11)
    found = compile_graph(model, "native", tmp_path).open().run({"x": x})["y"]
    np.testing.assert_array_equal(found, run_original(model, {"x": x})["y"])
    assert found.sum() == 2
