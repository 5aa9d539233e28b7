"""`edgec deploy`: what is refused before a board is asked."""

from pathlib import Path

from support.cli_calls import Call, check_error


def test_bad_arguments(call: Call, digits_bundle: Path) -> None:
    check_error(call("deploy", "no.edgec", "--board", "qemu-rpi4"), 4, "does not exist")
    check_error(call("deploy", digits_bundle, "--board", "nowhere"), 4, "nowhere")
    arguments = ["--board", "qemu-rpi4", "--threads", "-1"]
    check_error(call("deploy", digits_bundle, *arguments), 2, "--threads -1: expected 0 to")
