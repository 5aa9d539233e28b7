"""A split model that keeps state, of two programs, in stages that are processes here."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from support.onnx_graphs import random
from support.split_model import write_decoder_plan

from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.cli.main import main
from edgec.compiler.distribute.plan_session import PlanSession
from edgec.compiler.distribute.verify_plan import verify_plan
from edgec.compiler.errors import BoardError
from edgec.compiler.ir.signature import Tensors

PATIENT = 20.0  # seconds; the machine of the tests may be busy
STEPS = (4, 1, 1, 4, 1)  # tokens: prefill takes 4, decode 1


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder_plan(tmp_path_factory.mktemp("plans") / "decoder.plan")


def text(seed: int) -> list[Tensors]:
    return [
        {"x": random(1, count, 3, seed=seed + place), "last": np.array([count])}
        for place, count in enumerate(STEPS)
    ]


@pytest.fixture(scope="module")
def expected(decoder: Path) -> list[list[Tensors]]:
    """Return what the whole model makes of two texts, each from the beginning."""
    whole = Bundle.load(decoder / "whole.edgec").open(1)
    found = []
    for seed in (0, 10):
        whole.reset()
        found.append([whole.run(inputs) for inputs in text(seed)])
    return found


def check(expected: Tensors, found: Tensors) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_state_stays_over_steps_and_programs(decoder: Path, expected: list[list[Tensors]]) -> None:
    with PlanSession(decoder, timeout=PATIENT) as session:
        for seed, answers in ((0, expected[0]), (10, expected[1]), (0, expected[0])):
            session.reset()
            for inputs, answer in zip(text(seed), answers, strict=True):
                check(answer, session.run(inputs))
        # All steps of a text are sent before the first is answered.
        session.reset()
        futures = [session.submit(inputs) for inputs in text(10)]
        for future, answer in zip(futures, expected[1], strict=True):
            check(answer, future.result(PATIENT))
        # Without the state that came before the answer is another.
        session.reset()
        session.run(text(0)[1])
        with pytest.raises(AssertionError):
            check(expected[0][2], session.run(text(0)[2]))
        assert session.answers == {"plan": 4 * len(STEPS) + 2}
        assert verify_plan(session).passed


def test_a_lost_stage_takes_the_state_with_it(decoder: Path, expected: list[list[Tensors]]) -> None:
    with PlanSession(decoder, timeout=PATIENT) as session:
        first, second, *_ = text(0)
        session.run(first)
        os.kill(session.pids["b.edgec"], signal.SIGKILL)
        with pytest.raises(BoardError, match=r"device b .*begin anew, with reset\(\)"):
            session.run(second)
        with pytest.raises(BoardError, match="begin anew"):
            session.run(second)
        # By the whole model, or by the stages if they are back; a stream stays where it began.
        for _ in range(2):
            session.reset()
            for inputs, answer in zip(text(10), expected[1], strict=True):
                check(answer, session.run(inputs))
            until = time.monotonic() + PATIENT
            while session.linked is None and time.monotonic() < until:
                time.sleep(0.02)
        assert session.answers["plan"] > len(STEPS)


def test_commands(decoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--plan", str(decoder), "--program", "decode", "--json"]) == 0
    assert "1.out" in capsys.readouterr().out
    assert main(["bench", "--plan", str(decoder), "--program", "decode", "--seconds", "0.1"]) == 0
