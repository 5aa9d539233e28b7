"""What a version is judged by: labels, where there are some, by the metric that was asked for."""

from pathlib import Path

import numpy as np
import pytest
from support.cli_calls import Call, check_error
from support.labelled_digits import write_digits

from edgec.compiler.fit import trial
from edgec.compiler.fit.space import Point
from edgec.compiler.fit.trial import Subject
from edgec.compiler.ir.signature import Tensors
from edgec.compiler.jobs.shared_path import SharedPath
from edgec.compiler.options import CompileOptions
from edgec.compiler.support.silent_onnxruntime import onnxruntime
from edgec.targets import load_target

SHAPES = {"image": (1, 1, 8, 8)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("data"))


class Rolled:
    """Takes every class for the next one."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        return {"logits": np.roll(self.session.run(["logits"], dict(inputs))[0], 1, axis=1)}


def test_labels_say_what_accuracy_is(digits: Path, data: Path) -> None:
    session = onnxruntime.InferenceSession(str(digits))
    arrays = np.load(data)
    classes = [session.run(None, {"image": i[None]})[0].argmax() for i in arrays["image"]]
    right = np.mean(classes == arrays["labels"])
    rolled = np.mean((np.array(classes) + 1) % 10 == arrays["labels"])

    def subject(source: Path, metric: str = "") -> Subject:
        return Subject(
            model=SharedPath(digits),
            target=load_target("native"),
            options=CompileOptions(shapes=SHAPES),
            samples=None,
            data=SharedPath(source),
            drop=None,
            metric=metric,
        )

    labelled = subject(data)
    front = trial._front(labelled, Point())
    assert front.accuracy == pytest.approx(right)
    assert trial._drop(Rolled(session), front, labelled) == pytest.approx(right - rolled)
    # Without labels the original's answers stand in for them.
    bare = subject(data.with_name("bare.npz"), "f1")
    front = trial._front(bare, Point())
    assert front.accuracy == 1
    assert trial._drop(Rolled(session), front, bare) > 0.9
    plain = subject(data.with_name("bare.npz"))
    assert trial._drop(Rolled(session), trial._front(plain, Point()), plain) == 1


def test_what_cannot_be_is_refused_before_the_work(digits: Path, data: Path, call: Call) -> None:
    given = ["fit", digits, "--shape", "image=1,1,8,8", "--drop", "1%"]
    check_error(call(*given, "--data", data, "--metric", "map"), 4, "needs boxes as labels")
    check_error(call(*given, "--data", data, "--metric", "top2"), 2, "unknown; did you mean top")
    check_error(call(*given, "--data", data, "--recipes", "distill"), 2, "distill trains on")
    check_error(call(*given, "--data", data, "--workers", "0"), 2, "expected 1 to 1024")
    limits = [*given[:-2], "--latency", "1ms", "--metric", "top1"]
    check_error(call(*limits), 2, "--metric top1 needs --data")
