"""A plan whose first stage runs under QEMU, and a plan that computes something else there."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.onnx_graphs import make_model, node, random, save

from edgec.compiler.boards.qemu import find_board, stop_board
from edgec.compiler.errors import ParityError
from edgec.compiler.parity.expected import Expected
from edgec.compiler.parity.stream import Step
from edgec.compiler.split import split_model as splitting
from edgec.compiler.split.devices import parse_devices
from edgec.compiler.split.emulation import check_emulated
from edgec.compiler.support.progress import Silent


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    yield
    stop_board("qemu-rpi4")


def test_the_stages_of_boards_run_under_qemu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("MatMul", ["a", "w"], ["y"])]
    path = save(make_model(nodes, {"x": [1, 4]}, ["y"], {"w": random(4, 4)}), tmp_path)
    seen: list[Expected] = []

    def noted(folder: Path, plan: object, expected: dict[str, Expected], progress: Silent) -> None:
        check_emulated(folder, plan, expected, progress)  # type: ignore[arg-type]
        seen.append(expected[""])

    monkeypatch.setattr(splitting, "check_emulated", noted)
    output = tmp_path / "net.plan"
    plan = splitting.split_model(path, parse_devices("a=rpi4,b=native"), output=output)
    (expected,) = seen
    (step,) = expected.steps
    wrong = replace(expected, steps=(Step(step.inputs, {"y": step.outputs["y"] + 0.1}),))
    with pytest.raises(ParityError, match="the stages under QEMU do not compute the model: y"):
        check_emulated(output, plan, {"": wrong}, Silent())
    # What was started for it is gone.
    assert find_board("qemu-rpi4").link is None
