"""A digits classifier with two exits, from the file to the runner in C."""

import json
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from support.onnx_graphs import make_model, node

from edgec.compiler import Bundle, CompileOptions, compile_model, verify_bundle
from edgec.compiler.calibration.samples import SampleOptions, samples_from_tensors
from edgec.compiler.errors import CalibrationError, UnsupportedModelError, UsageError
from edgec.compiler.exits.options import ExitOptions
from edgec.compiler.ir.signature import TensorSpec
from edgec.compiler.runtime.static_session import StaticSession

IMAGES = (load_digits().images / 16).astype(np.float32)[:, None]
SPEC = TensorSpec("image", (1, 1, 8, 8), "float32")
SAMPLES = SampleOptions(source=samples_from_tensors({"image": IMAGES}, [SPEC]), limit=2000)
DROP = 0.003


@pytest.fixture(scope="module")
def bundle(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return the bundle: with so small a drop that a part of the images goes on."""
    return compile_model(
        digits,
        "native",
        CompileOptions(
            shapes={"image": SPEC.shape},
            exits=ExitOptions(depths=(0.01,), drop=DROP),
            samples=SAMPLES,
            runner=True,
        ),
        output=tmp_path_factory.mktemp("exits") / "digits.edgec",
    )


def test_exit_answers_most_images_as_the_whole_model(bundle: Bundle, digits_bundle: Path) -> None:
    session, whole = bundle.open(1), Bundle.load(digits_bundle).open(1)
    count, same = Counter[int](), 0
    for image in IMAGES[:, None]:
        outputs = session.run({"image": image})
        expected = whole.run({"image": image})["logits"]
        by = int(outputs["early_exit"][0])
        count[by] += 1
        same += int(outputs["logits"].argmax() == expected.argmax())
        if not by:
            np.testing.assert_allclose(outputs["logits"], expected, rtol=1e-4, atol=1e-4)
    record = bundle.manifest.exits
    assert record is not None
    assert 0 < count[0] < count[1]
    assert same / len(IMAGES) >= 1 - 2 * DROP
    assert abs(record.exits[0].share - count[1] / len(IMAGES)) < 0.05
    assert record.work < 0.5


def test_steps_behind_an_exit_do_not_run(bundle: Bundle) -> None:
    session = bundle.open(2)
    assert isinstance(session, StaticSession)
    labels = [step.label for step in session.steps()]
    decided = labels.index("early_exit_1")
    seen = set()
    for image in IMAGES[:, None]:
        by = int(session.run({"image": image})["early_exit"][0])
        if by not in seen:
            seen.add(by)
            times = session.run_timed(session.prepare({"image": image}))
            ran = [label for label, time in zip(labels, times, strict=True) if time]
            later = labels[decided + 1 : labels.index("logits") + 1]
            assert [label for label in later if label in ran] == ([] if by else later)
    assert seen == {0, 1}


def test_runner_says_which_exit_answered(bundle: Bundle, tmp_path: Path) -> None:
    session = bundle.open(1)
    for wanted in (0, 1):
        image = next(
            i for i in IMAGES[:, None] if session.run({"image": i})["early_exit"][0] == wanted
        )
        np.save(tmp_path / "image.npy", image)
        command = [bundle.path / "run", "--input", tmp_path / "image.npy", "--threads", "2"]
        command += ["--output", f"logits={tmp_path / 'logits.npy'}"]
        told = subprocess.run(command, check=True, capture_output=True, text=True)
        assert json.loads(told.stdout)["early_exit"] == wanted
        expected = session.run({"image": image})["logits"]
        np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), expected)


def test_bundle_passes_its_vectors_and_the_original(bundle: Bundle, digits: Path) -> None:
    assert verify_bundle(bundle, model=digits).passed


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"exits": ExitOptions(depths=(0.5,))}, UsageError, "add --calibration"),
        (
            {"exits": ExitOptions(depths=(0.4, 0.6)), "samples": SAMPLES},
            UsageError,
            r"two of the exits .* place at 0.015, 0.51",
        ),
        (
            {"exits": ExitOptions(depths=(0.5,), drop=1e-4), "samples": SAMPLES},
            CalibrationError,
            "9999 are needed",
        ),
    ],
)
def test_exits_that_cannot_be_are_one_line(
    digits: Path, tmp_path: Path, options: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        compile_model(
            digits,
            "native",
            CompileOptions(shapes={"image": SPEC.shape}, **options),
            output=tmp_path / "no.edgec",
        )
    assert not (tmp_path / "no.edgec").exists()


def test_models_that_are_no_classifiers_are_refused() -> None:
    from edgec.compiler.exits.add_exits import _check_classifier
    from edgec.compiler.ir.signature import Signature

    with pytest.raises(UnsupportedModelError, match="is for classifiers"):
        _check_classifier(Signature((SPEC,), (SPEC,)))


def test_a_model_that_ends_with_a_softmax_in_batches(tmp_path: Path) -> None:
    """Exits give probabilities too, and answer for a batch where they are sure of all of it."""
    random = np.random.default_rng(0)
    weights = {n: random.standard_normal((8, 8)).astype(np.float32) for n in "uvw"}
    nodes = [
        node("MatMul", ["x", "u"], ["a"]),
        node("Relu", ["a"], ["b"]),
        node("MatMul", ["b", "v"], ["c"]),
        node("Relu", ["c"], ["d"]),
        node("MatMul", ["d", "w"], ["e"]),
        node("Softmax", ["e"], ["p"]),
    ]
    samples = 2 * random.standard_normal((1600, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", samples)
    bundle = compile_model(
        make_model(nodes, {"x": [2, 8]}, ["p"], weights),
        options=CompileOptions(
            exits=ExitOptions(depths=(0.6,), drop=0.02),
            samples=SampleOptions(source=str(tmp_path / "x.npy"), limit=2000),
        ),
        output=tmp_path / "m.edgec",
    )
    session, count = bundle.open(1), Counter[int]()
    for batch in samples.reshape(-1, 2, 8):
        outputs = session.run({"x": batch})
        count[int(outputs["early_exit"][0])] += 1
        np.testing.assert_allclose(outputs["p"].sum(axis=1), 1, rtol=1e-4)
    assert min(count[0], count[1]) > 20
    record = bundle.manifest.exits
    assert record is not None
    # How often it answers is said of batches, of which it answers fewer than of single samples.
    assert abs(record.exits[0].share - count[1] / count.total()) < 0.05
    # A row that is not a number is not sure, whatever row comes behind it.
    for row in (0, 1):
        sure = next(b for b in samples.reshape(-1, 2, 8) if session.run({"x": b})["early_exit"][0])
        broken = sure.copy()
        broken[row] = np.nan
        assert session.run({"x": broken})["early_exit"][0] == 0


@pytest.mark.parametrize("probabilities", [False, True])
def test_threshold_between_two_floats_parts_them_where_it_is_computed(probabilities: bool) -> None:
    from edgec.compiler.exits.add_exits import _as_computed, _bound

    sure = 1 - np.arange(1, 40) * 3e-8
    seen = _as_computed(sure, probabilities)
    computed = (sure if probabilities else 1 / sure).astype(np.float32)
    for value in np.unique(seen)[:-1]:
        threshold = (value + seen[seen > value].min()) / 2
        bound = np.float32(_bound(threshold, probabilities))
        taken = computed >= bound if probabilities else computed <= bound
        np.testing.assert_array_equal(taken, seen >= threshold)


def test_exits_are_where_values_have_a_row_for_each_sample(tmp_path: Path) -> None:
    """A value of samples and steps in one axis has no row for each sample."""
    random = np.random.default_rng(0)
    weights: dict = {n: random.standard_normal((4, 4)).astype(np.float32) for n in "uv"}
    weights["w"] = random.standard_normal((12, 4)).astype(np.float32)
    weights |= {"flat": np.array([6, 4]), "back": np.array([2, 12])}
    nodes = [
        node("Reshape", ["x", "flat"], ["a"]),
        node("MatMul", ["a", "u"], ["b"]),
        node("Relu", ["b"], ["c"]),
        node("MatMul", ["c", "v"], ["d"]),
        node("Reshape", ["d", "back"], ["e"]),
        node("MatMul", ["e", "w"], ["f"]),
    ]
    np.save(tmp_path / "x.npy", random.standard_normal((800, 3, 4)).astype(np.float32))
    bundle = compile_model(
        make_model(nodes, {"x": [2, 3, 4]}, ["f"], weights),
        options=CompileOptions(
            exits=ExitOptions(depths=(0.1,), drop=0.4),
            samples=SampleOptions(source=str(tmp_path / "x.npy"), limit=400),
        ),
        output=tmp_path / "m.edgec",
    )
    assert bundle.manifest.exits is not None
    assert bundle.manifest.exits.exits[0].work > 0.5
