"""Cascades: which model answers, what that is worth, and what happens without the large one."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from support.cascade_models import DROP, SAMPLES, CascadeModels, write_cascade_models
from support.cli_calls import Call
from support.serving import Serving

from edgec.compiler import evaluate_bundles
from edgec.compiler.cascade.cascade import CASCADE, LARGE, Cascade
from edgec.compiler.cascade.session import CascadeSession, class_output
from edgec.compiler.distribute.cascade_link import open_cascade
from edgec.compiler.errors import (
    BadInputError,
    BundleError,
    CalibrationError,
    UnsupportedModelError,
    UsageError,
)
from edgec.compiler.evaluate.evaluation import EvaluationOptions
from edgec.compiler.evaluate.make_cascade import make_cascade
from edgec.compiler.exits.heads import parts
from edgec.compiler.ir.signature import Signature, TensorSpec


def test_threshold_keeps_the_drop_and_zero_does_not(models: CascadeModels) -> None:
    cascade = models.cascade
    assert cascade.samples == SAMPLES // 2
    assert cascade.agreement >= 1 - 1.5 * DROP
    assert 0.1 < cascade.escalated < 0.7
    assert cascade.accuracy["large"] == 1
    assert cascade.accuracy["cascade"] == cascade.agreement
    # Who always believes the small model loses far more than that.
    assert cascade.accuracy["small"] < 1 - 3 * DROP
    session = CascadeSession.open(models.folder, threads=1)
    large = models.large.open(1)
    same = 0
    for inputs in models.inputs:
        found = session.run(inputs)
        # The small model gives scores, the large one probabilities.
        np.testing.assert_allclose(found["p"].sum(axis=1), 1, rtol=1e-5)
        same += int(found["p"].argmax() == large.run(inputs)["p"].argmax())
    assert abs(session.answers["large"] / SAMPLES - cascade.escalated) < 0.03
    assert same / SAMPLES >= 1 - 1.5 * DROP


@pytest.mark.parametrize("batch", [1, 4])
def test_figures_are_those_of_the_session(
    models: CascadeModels, tmp_path: Path, batch: int
) -> None:
    """A batch is answered as a whole: by the large model where one sample of it is not sure."""
    if batch > 1:
        models = write_cascade_models(tmp_path, batch)
    session, large = CascadeSession.open(models.folder, threads=1), models.large.open(1)
    test = models.inputs[parts(len(models.inputs), 2) != 0]
    given = np.concatenate([session.run(x)["p"].argmax(axis=1) for x in test])
    wanted = np.concatenate([large.run(x)["p"].argmax(axis=1) for x in test])
    cascade = models.cascade
    assert cascade.samples == len(given)
    assert cascade.escalated == round(session.answers["large"] / len(test), 6)
    assert cascade.agreement == round(float(np.mean(given == wanted)), 6)
    # Labels are the answers of the large model in floats of another order.
    assert cascade.accuracy["cascade"] == pytest.approx(cascade.agreement, abs=0.002)


def test_labels_that_are_no_class_are_refused(models: CascadeModels, tmp_path: Path) -> None:
    with np.load(models.data) as data:
        np.savez(tmp_path / "wrong.npz", x=data["x"], labels=data["labels"] + 1)
    with pytest.raises(BadInputError, match="a label is 4, and the model has 4 classes"):
        make_cascade(
            models.small, models.large, tmp_path / "wrong.npz", output=tmp_path / "c.cascade"
        )
    for wrong in ({"limit": 0}, {"threads": -1}):
        with pytest.raises(UsageError, match=r"expected|needed"):
            make_cascade(models.small, models.large, models.data, **wrong)
    assert not (tmp_path / "c.cascade").exists()


def test_output_beside_the_classes_is_refused_but_for_the_number_of_an_exit() -> None:
    classes = TensorSpec("y", (1, 4), "float32")
    told = TensorSpec("early_exit", (1,), "int32")
    assert class_output(Signature((), (classes, told))) == classes
    with pytest.raises(UnsupportedModelError, match="with one output"):
        class_output(Signature((), (classes, TensorSpec("label", (1,), "int64"))))


def test_cascade_is_evaluated_beside_its_models(models: CascadeModels) -> None:
    rows = evaluate_bundles(
        [models.large, models.small, models.folder],
        EvaluationOptions(data=models.data, seconds=0.01, limit=300),
    ).bundles
    large, small, both = (row.accuracy["top1"] for row in rows)
    assert large == 1 > both > small
    assert rows[2].library_bytes == rows[0].library_bytes + rows[1].library_bytes
    assert rows[2].latency is not None
    assert rows[2].latency_source == "measured"
    assert [row.latency_is_mean for row in rows] == [False, False, True]


def test_small_model_answers_where_the_large_one_would_be_late(models: CascadeModels) -> None:
    unsure = _unsure(models)

    def slow(inputs: object) -> dict:
        time.sleep(0.2)
        return {"p": np.ones((1, 4), np.float32)}

    with CascadeSession.open(models.folder, slow, 1) as session:
        began = time.monotonic()
        found = session.run(unsure, deadline=0.03)
        assert time.monotonic() - began < 0.15
        np.testing.assert_array_equal(found["p"], session.ask_first({"x": unsure}).outputs["p"])
        # The large one is busy with the request before; later it is known to be slow.
        session.run(unsure, deadline=0.03)
        assert session.answers == {"late": 2}
        session.run(unsure, deadline=2.0)
        assert session.answers["large"] + session.answers["late"] == 3


def test_small_model_answers_without_a_link(models: CascadeModels) -> None:
    unsure = _unsure(models)
    asked = []

    def gone(inputs: object) -> None:
        asked.append(inputs)

    with CascadeSession.open(models.folder, gone, 1) as session:
        for _ in range(3):
            session.run(unsure)
        assert (session.answers, len(asked)) == ({"lost": 3}, 1)


def test_large_model_may_be_on_a_server(models: CascadeModels, tmp_path: Path) -> None:
    unsure = _unsure(models)
    with (
        Serving([str(models.folder / LARGE), "--threads", "1"], tmp_path / "log") as url,
        open_cascade(models.folder, {"large": url}, threads=1) as session,
    ):
        expected = models.large.open(1).run(unsure)["p"]
        np.testing.assert_array_equal(session.run(unsure)["p"], expected)
        assert session.answers == {"large": 1}
    with open_cascade(models.folder, {"large": url}, threads=1) as session:
        session.run(unsure)
        assert session.answers == {"lost": 1}
    with pytest.raises(UsageError, match="write large=https://HOST:PORT"):
        open_cascade(models.folder, {"small": url})


def test_commands_know_cascades(models: CascadeModels, call: Call) -> None:
    code, out, err = call(
        "cascade", models.small.path, models.large.path, "--data", models.data, "-o", "c.cascade"
    )
    assert (code, "of the answers are its own" in out) == (0, True), err
    code, out, _ = call("run", "--plan", "c.cascade", "--json")
    assert (code, json.loads(out)["outputs"][0]["name"]) == (0, "p")
    code, out, _ = call("bench", "--plan", "c.cascade", "--seconds", "0.01", "--json")
    fields = json.loads(out)
    expected = fields["first_ms"] + fields["escalated"] * fields["large_ms"]
    assert (code, fields["expected_ms"]) == (0, pytest.approx(expected))
    gone = ("--device", "large=http://127.0.0.1:9")
    code, out, err = call("bench", "--plan", "c.cascade", "--seconds", "0.01", *gone)
    assert (code, out, "cannot be reached" in err) == (6, "", True)


def test_what_makes_no_cascade_is_refused(
    models: CascadeModels, digits_bundle: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="take the same inputs"):
        make_cascade(models.small, digits_bundle, models.data, output=tmp_path / "c.cascade")
    with pytest.raises(CalibrationError, match="9999 are needed"):
        make_cascade(
            models.small, models.large, models.data, drop=1e-4, output=tmp_path / "c.cascade"
        )
    assert not list(tmp_path.iterdir())
    with pytest.raises(BundleError, match=r"is no cascade"):
        Cascade.load(tmp_path)
    shutil.copytree(models.folder, tmp_path / "broken")
    (tmp_path / "broken" / CASCADE).write_text("{}")
    with pytest.raises(BundleError, match=r"damaged"):
        CascadeSession.open(tmp_path / "broken")


def _unsure(models: CascadeModels) -> np.ndarray:
    """Return an input that the small model is not sure of."""
    session = CascadeSession.open(models.folder, threads=1)
    for inputs in models.inputs:
        session.run(inputs)
        if session.answers["large"]:
            return inputs
    raise AssertionError
