"""`edgec board`; boards themselves are in `tests/compiler/boards`."""

import json

from support.cli_calls import Call, check_error


def test_lists_and_shows_the_emulated_ones(call: Call) -> None:
    _, out, _ = call("board", "list", "--json")
    assert "qemu-rpi4" in {item["name"] for item in json.loads(out)}
    code, out, _ = call("board", "show", "qemu-rpi4")
    assert code == 0
    assert "emulated: its times mean nothing" in out
    check_error(call("board", "show", "qemu-rpi44"), 4, "qemu-rpi44")


def test_ports_that_cannot_be(call: Call) -> None:
    for port in ("-1", "0", "70000"):
        check_error(call("board", "add", "mine", "-t", "rpi4", "--port", port), 4, "port")
