"""A plan whose exit is on this machine: it answers alone where it is sure, or has to."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from edgec.compiler import CompileOptions
from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.calibration.samples import SampleOptions, samples_from_tensors
from edgec.compiler.distribute.cascade_link import open_cascade
from edgec.compiler.distribute.edge_session import has_exits, open_edge
from edgec.compiler.distribute.plan_session import PlanSession
from edgec.compiler.errors import UsageError
from edgec.compiler.exits.options import ExitOptions
from edgec.compiler.ir.signature import Tensors, TensorSpec
from edgec.compiler.split.devices import parse_devices
from edgec.compiler.split.exit_cuts import cut_behind_exits
from edgec.compiler.split.plan import Plan
from edgec.compiler.split.split_model import split_model

IMAGES = (load_digits().images / 16).astype(np.float32)[:, None]
SPEC = TensorSpec("image", (1, 1, 8, 8), "float32")


@pytest.fixture(scope="module")
def exit_plan(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the plan: what goes on is rounded to int8."""
    output = tmp_path_factory.mktemp("edge") / "digits.plan"
    split_model(
        digits,
        parse_devices("board=native,server=native"),
        CompileOptions(
            shapes={"image": SPEC.shape},
            exits=ExitOptions(depths=(0.01,), drop=0.003),
            samples=SampleOptions(
                source=samples_from_tensors({"image": IMAGES}, [SPEC]), limit=2000
            ),
            runner=True,
        ),
        output=output,
        encoding="int8",
    )
    return output


def test_the_board_answers_alone_where_its_exit_is_sure(exit_plan: Path) -> None:
    (planned,) = Plan.load(exit_plan).programs[0].exits
    board = Bundle.load(exit_plan / "board.edgec").open(1)
    server = Bundle.load(exit_plan / "server.edgec").open(1)
    asked: list[Tensors] = []

    def ask(handed: Tensors) -> dict[str, np.ndarray]:
        asked.append(handed)
        return server.run(handed)

    with open_edge(exit_plan, ask, 1) as session:
        for image in IMAGES[:, None]:
            before = len(asked)
            found = session.run({"image": image})
            half = board.run({"image": image})
            # The server comes to the same answer, as the exit is a part of the model.
            handed = {k: v for k, v in half.items() if k != planned.answer}
            np.testing.assert_allclose(
                server.run(handed)["logits"], found["logits"], rtol=0.05, atol=0.3
            )
            assert (len(asked) == before) == bool(half[planned.decided][0])
            assert int(found["early_exit"][0]) == int(len(asked) == before)
        assert 0 < len(asked) < len(IMAGES) / 4
        assert session.answers == {"first": len(IMAGES) - len(asked), "large": len(asked)}
        assert session.escalated == pytest.approx(len(asked) / len(IMAGES), abs=0.05)


def test_the_board_answers_when_the_link_is_gone(exit_plan: Path) -> None:
    with open_cascade(exit_plan, {"server": "http://127.0.0.1:9"}, threads=1) as session:
        for image in IMAGES[:, None]:
            found = session.run({"image": image})
            assert found["early_exit"][0] == 1
        assert session.answers["lost"] > 0
        assert session.answers["large"] == 0
    with pytest.raises(UsageError, match="write server=https://HOST:PORT"):
        open_cascade(exit_plan, {"board": "http://127.0.0.1:9"})


def test_stages_elsewhere_run_it_as_any_plan(exit_plan: Path, folder: Path) -> None:
    assert has_exits(exit_plan)
    assert not has_exits(folder)
    with PlanSession(exit_plan) as stages, open_edge(exit_plan, None, 1) as edge:
        for image in IMAGES[:3, None]:
            found, expected = stages.run({"image": image}), edge.run({"image": image})
            assert found["early_exit"] == expected["early_exit"]
            np.testing.assert_allclose(found["logits"], expected["logits"], rtol=0.05, atol=0.3)


def test_exits_are_for_two_devices() -> None:
    with pytest.raises(UsageError, match="for two devices"):
        cut_behind_exits(None, 3)  # type: ignore[arg-type]
