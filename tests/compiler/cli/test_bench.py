"""`edgec bench`: its arguments, and that its figures can be read."""

import json
from pathlib import Path

import pytest
from support.cli_calls import Call, check_error

from edgec.compiler.bench.names import RIVAL_NAMES
from edgec.compiler.bench.rivals import RIVALS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "-3"], "--threads -3: expected 0 to"),
        (["--busy", "-1"], "--busy -1: expected 0 to"),
        (["--board", "qemu-rpi4", "--busy", "1"], "cores of this machine busy"),
        (["--seconds", "-1"], "--seconds -1: a number above 0"),
        (["--seconds", "nan"], "--seconds nan: a number above 0"),
        (["--seconds", "inf"], "--seconds inf: a number above 0"),
        (["--against", "tflite", "--model", "x.onnx"], "unknown runtime 'tflite'"),
        (["--board", "qemu-rpi4", "--against", "mnn"], "compare on this machine"),
    ],
)
def test_bad_arguments(call: Call, digits_bundle: Path, arguments: list[str], message: str) -> None:
    check_error(call("bench", digits_bundle, *arguments), 2, message)


def test_figures_have_no_exponent(call: Call, digits_bundle: Path) -> None:
    code, out, _ = call("bench", digits_bundle, "--seconds", "0.1", "--profile")
    assert code == 0
    assert "e+" not in out
    code, out, _ = call("bench", digits_bundle, "--seconds", "0.1", "--json")
    assert set(json.loads(out)["latency"]) == {str(digits_bundle)}


def test_help_names_the_rivals() -> None:
    assert tuple(RIVALS) == RIVAL_NAMES
