"""Lowering to loop nests."""

import numpy as np
import pytest
from support.onnx_graphs import make_model, node, to_relax

from edgec.compiler.lowering.legalize import lower
from edgec.targets import load_target


def test_positions_that_are_known_come_without_a_warning(capfd: pytest.CaptureFixture[str]) -> None:
    """TVM warns in C++, which no option of Python's silences, that they might be out of range."""
    resize = node("Resize", ["x", "", "s"], ["y"], mode="nearest")
    scales = {"s": np.array([1, 1, 0.7, 1.3], np.float32)}
    module = to_relax(make_model([resize], {"x": [1, 2, 10, 7]}, ["y"], scales))
    lower(module, load_target("native"))
    assert capfd.readouterr() == ("", "")
