"""`edgec targets`."""

from support.cli_calls import Call


def test_targets(call: Call) -> None:
    code, out, _ = call("targets", "rpi5")
    assert code == 0
    assert "sdot" in out
    assert "cortex-a76" in out
