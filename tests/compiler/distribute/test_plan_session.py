"""Stages of a small model as processes of this machine: right answers, and trouble."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.split_model import FEATURES

from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.cli.main import main
from edgec.compiler.distribute.bench_plan import bench_plan
from edgec.compiler.distribute.connection import new_key
from edgec.compiler.distribute.plan_report import plan_page
from edgec.compiler.distribute.plan_session import PlanSession
from edgec.compiler.distribute.plan_set import PlanSet
from edgec.compiler.distribute.stage_places import StageOptions
from edgec.compiler.distribute.stage_process import StageProcess
from edgec.compiler.distribute.verify_plan import verify_plan
from edgec.compiler.errors import BoardError, TensorInputError, UsageError
from edgec.compiler.split.plan import Plan
from edgec.compiler.support.html_report import render

PATIENT = 20.0  # seconds; the machine of the tests may be busy


@pytest.fixture
def alone(folder: Path, tmp_path: Path) -> Path:
    """Return the plan without its whole model."""
    plan = Plan.load(folder).model_copy(update={"whole": None})
    for name in plan.bundles:
        (tmp_path / name).symlink_to(folder / name)
    plan.write(tmp_path)
    return tmp_path


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(new_key())
    return path


@pytest.fixture(scope="module")
def cases(folder: Path) -> list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Return inputs and what the whole model makes of them."""
    whole = Bundle.load(folder / "whole.edgec").open(1)
    random = np.random.default_rng(1)
    inputs = [
        {name: random.standard_normal((1, FEATURES)).astype(np.float32) for name in ("x", "y")}
        for _ in range(40)
    ]
    return [(given, whole.run(given)) for given in inputs]


def check(expected: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def gone(pid: int) -> bool:
    """Return whether a process ends within some seconds."""
    until = time.monotonic() + PATIENT
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def stop(pid: int) -> None:
    """Stop a process; its threads may go on for a moment, which is waited for."""
    os.kill(pid, signal.SIGSTOP)
    until = time.monotonic() + PATIENT
    threads = list(Path(f"/proc/{pid}/task").glob("*/stat"))
    while any(file.read_text().rpartition(")")[2].split()[0] != "T" for file in threads):
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture(params=["plain", "encrypted"])
def options(request: pytest.FixtureRequest, key_file: Path) -> StageOptions:
    return StageOptions(key_file=key_file if request.param == "encrypted" else None)


def test_many_requests_under_way_are_answered_as_by_the_whole_model(
    folder: Path, options: StageOptions, cases: list[tuple[dict, dict]]
) -> None:
    with PlanSession(folder, options=options, timeout=PATIENT) as session:
        pids = list(session.pids.values())
        futures = [session.submit(inputs) for inputs, _ in cases]
        for (_, expected), future in zip(cases, futures, strict=True):
            check(expected, future.result(PATIENT))
        assert session.answers == {"plan": len(cases)}
        with pytest.raises(TensorInputError, match=r"y .* is missing"):
            session.submit({"x": cases[0][0]["x"]})
        assert verify_plan(session).passed
        found = bench_plan(session, seconds=0.05)
        assert [(link.source, link.target, link.size_bytes) for link in found.links] == [
            ("host", "a", 96),
            ("host", "b", 96),
            ("a", "b", 96),
            ("a", "host", 96),
            ("b", "host", 96),
        ]
        assert found.hops == 3
        if options.key_file is None:
            assert "Stages during" in render(plan_page(session, found))
    assert all(map(gone, pids))


def test_a_killed_stage_is_replaced_by_the_whole_model_and_then_starts_again(
    folder: Path, cases: list[tuple[dict, dict]]
) -> None:
    with PlanSession(folder, timeout=PATIENT) as session:
        futures = [session.submit(inputs) for inputs, _ in cases[:20]]
        os.kill(session.pids["b.edgec"], signal.SIGKILL)
        futures += [session.submit(inputs) for inputs, _ in cases[20:]]
        for (_, expected), future in zip(cases, futures, strict=True):
            check(expected, future.result(PATIENT))
        assert session.answers.total() == len(cases)
        assert "device b" in session.losses[0]
        until = time.monotonic() + PATIENT
        while session.linked is None and time.monotonic() < until:
            time.sleep(0.02)
        before = session.answers["plan"]
        check(cases[0][1], session.run(cases[0][0]))
        assert session.answers["plan"] == before + 1


def test_a_stage_that_stalls_is_lost_within_the_timeout(
    alone: Path, cases: list[tuple[dict, dict]]
) -> None:
    with PlanSession(alone, timeout=0.4) as session:
        stalled = session.pids["a.edgec"]
        stop(stalled)
        # It was started here, so it is started again, and answers.
        check(cases[0][1], session.run(cases[0][0]))
        assert "device a" in session.losses[0]
        assert gone(stalled)


def test_a_deadline_is_kept_by_the_whole_model(
    folder: Path, alone: Path, cases: list[tuple[dict, dict]]
) -> None:
    with PlanSession(folder, timeout=PATIENT) as session:
        session.run(cases[0][0], deadline=PATIENT)
        stop(session.pids["b.edgec"])
        check(cases[1][1], session.run(cases[1][0], deadline=0.1))
        assert session.answers["late"] == 1
        os.kill(session.pids["b.edgec"], signal.SIGKILL)
    with PlanSession(alone) as session, pytest.raises(UsageError, match="no whole model"):
        session.run(cases[0][0], deadline=1)


@pytest.fixture
def served(folder: Path, key_file: Path) -> Iterator[dict[str, StageProcess]]:
    stages = {
        name: StageProcess(Bundle.load(folder / f"{name}.edgec"), key_file=key_file)
        for name in ("a", "b")
    }
    yield stages
    for stage in stages.values():
        stage.close()


def test_stages_elsewhere_with_a_spare_and_other_keys(
    alone: Path,
    served: dict[str, StageProcess],
    key_file: Path,
    tmp_path: Path,
    cases: list[tuple[dict, dict]],
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{silent.getsockname()[1]}"
        # The first address of b does not answer.
        devices = {"a": served["a"].address, "b": f"{nobody},{served['b'].address}"}
        with PlanSession(alone, devices, options=StageOptions(key_file=key_file)) as session:
            check(cases[0][1], session.run(cases[0][0]))
            with pytest.raises(BoardError, match="another host uses this stage"):
                PlanSession(alone, devices, options=StageOptions(key_file=key_file))
    wrong = tmp_path / "wrong"
    wrong.write_text(new_key())
    devices = {name: stage.address for name, stage in served.items()}
    with pytest.raises(BoardError, match="does not know the key"):
        PlanSession(alone, devices, options=StageOptions(key_file=wrong))
    assert "has another key" in served["a"].last_words()
    with pytest.raises(BoardError, match=r"device a .* if it has a key, add --key FILE"):
        PlanSession(alone, devices)
    assert "it has no key" in served["a"].last_words()
    swapped = {"a": served["b"].address, "b": served["a"].address}
    with pytest.raises(BoardError, match="serves another bundle"):
        PlanSession(alone, swapped, options=StageOptions(key_file=key_file))
    os.kill(served["a"].pid, signal.SIGKILL)
    with pytest.raises(BoardError, match=r"device a .* cannot be reached"):
        PlanSession(alone, devices, options=StageOptions(key_file=key_file))


def test_no_stage_listens_beyond_this_machine_without_a_key(folder: Path) -> None:
    with pytest.raises(BoardError, match=r"beyond this machine.*add --key FILE"):
        StageProcess(Bundle.load(folder / "a.edgec"), listen="0.0.0.0:0")


def test_commands(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--plan", str(folder), "--json"]) == 0
    assert '"name": "z"' in capsys.readouterr().out
    assert main(["verify", "--plan", str(folder)]) == 0
    assert main(["run", "--plan", str(folder), "--device", "c=127.0.0.1:9"]) == 2
    assert "the plan has no device c; it has a, b" in capsys.readouterr().err
    assert main(["run", "--plan", str(folder), "--device", "a=127.0.0.1:9"]) == 6
    assert "device a (127.0.0.1:9) cannot be reached" in capsys.readouterr().err
    assert main(["bench", "--plan", str(folder), "--board", "qemu-rpi4"]) == 2
    assert main(["run"]) == 2


def test_a_request_that_is_late_is_answered_here_as_well(
    folder: Path, cases: list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]
) -> None:
    with PlanSession(folder, timeout=PATIENT) as session:
        plans = PlanSet([session])
        for _ in range(20):
            # So slow here that every request goes to the stages.
            plans.chooser.note(1, 10.0, 0.0)
        inputs, expected = cases[0]
        check(expected, plans.run(inputs))
        assert (plans.chosen, plans.late) == ({folder.name: 1}, 0)
        stalled = session.pids["a.edgec"]
        os.kill(stalled, signal.SIGSTOP)
        began = time.monotonic()
        check(expected, plans.run(inputs))
        assert plans.late == 1
        assert time.monotonic() - began < PATIENT / 2
        os.kill(stalled, signal.SIGCONT)
