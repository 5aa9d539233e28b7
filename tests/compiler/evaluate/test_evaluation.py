"""Bundles side by side: accuracy that is known, sizes that are exact, and what cannot run here."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.cli_calls import Call, check_error
from support.labelled_digits import IMAGES, write_digits

from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.errors import BadInputError, UsageError
from edgec.compiler.evaluate.evaluation import EvaluationOptions, evaluate_bundles


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("data"))


def test_accuracy_and_sizes_are_those_of_the_bundle(digits_bundle: Path, data: Path) -> None:
    found = evaluate_bundles([digits_bundle], EvaluationOptions(data=data, seconds=0.01))
    (item,) = found.bundles
    bundle = Bundle.load(digits_bundle)
    arrays = np.load(data)
    session = bundle.open(1)
    right = [
        int(session.run({"image": arrays["image"][[n]]})["logits"].argmax() == label)
        for n, label in enumerate(arrays["labels"])
    ]
    assert item.accuracy == {"top1": sum(right) / IMAGES}
    assert 0.7 < item.accuracy["top1"] < 0.9
    assert item.library_bytes == (digits_bundle / "model.so").stat().st_size
    assert item.arena_bytes == bundle.manifest.execution.arena_bytes
    assert item.latency_source == "measured"
    assert item.latency is not None
    assert item.latency.low <= item.latency.value <= item.latency.high
    assert (found.samples, found.metric) == (IMAGES, "top1")


def test_without_labels_models_are_compared_with_one_another(
    digits_bundle: Path, digits: Path, data: Path
) -> None:
    bare = data.with_name("bare.npz")
    for model, bundles in ((None, 2), (digits, 1)):
        options = EvaluationOptions(data=bare, model=model, seconds=0.01, limit=10)
        found = evaluate_bundles([digits_bundle] * bundles, options)
        assert [item.accuracy for item in found.bundles] == [{"top1": 1.0}] * bundles
        assert found.samples == 10
        assert found.truth == f"answers of {model or digits_bundle}"
    with pytest.raises(UsageError, match=r"give --model ORIGINAL\.onnx"):
        evaluate_bundles([digits_bundle], EvaluationOptions(data=bare))
    with pytest.raises(UsageError, match=r"but .* has some"):
        evaluate_bundles([digits_bundle], EvaluationOptions(data=data, model=digits))


def foreign(bundle: Path, folder: Path) -> Path:
    """Return a copy that says it is for another machine."""
    copy = folder / "foreign.edgec"
    shutil.copytree(bundle, copy)
    loaded = Bundle.load(copy)
    from edgec.targets import load_target

    manifest = loaded.manifest.model_copy(update={"target": load_target("rpi4")})
    (copy / "manifest.json").write_bytes(manifest.to_bytes())
    return copy


def test_what_does_not_run_here_is_predicted(
    digits_bundle: Path, data: Path, tmp_path: Path
) -> None:
    other = foreign(digits_bundle, tmp_path)
    found = evaluate_bundles([digits_bundle, other], EvaluationOptions(data=data, seconds=0.01))
    item = found.bundles[1]
    assert (item.latency_source, item.accuracy) == ("predicted", {})
    assert item.why_no_accuracy == "rpi4 code does not run here"
    bare = data.with_name("bare.npz")
    with pytest.raises(BadInputError, match="does not run here; give --model"):
        evaluate_bundles([other, digits_bundle], EvaluationOptions(data=bare))


def test_the_command_line(digits_bundle: Path, data: Path, call: Call, tmp_path: Path) -> None:
    given = [digits_bundle, "--data", data, "--seconds", "0.01"]
    code, out, _ = call("compare", digits_bundle, *given, "--report", "c.csv")
    assert code == 0
    assert "60 samples against labels of" in out
    table = list(csv.DictReader((tmp_path / "c.csv").read_text().splitlines()))
    assert [row["known by"] for row in table] == ["measured", "measured"]
    assert table[0]["top1"] == table[1]["top1"]
    code, out, _ = call("evaluate", *given, "--metric", "top5", "--json")
    assert json.loads(out)["bundles"][0]["accuracy"]["top5"] > 0.85
    check_error(call("compare", *given, "--report", "c.txt"), 2, ".html, .json or .csv")
    check_error(call("evaluate", *given, "--metric", "top2"), 2, "unknown; did you mean top")
    check_error(call("evaluate", *given, "--metric", "map"), 4, "needs boxes as labels")
    check_error(call("evaluate", digits_bundle, "--data", "none"), 4, "does not exist")
    check_error(call("evaluate", "none.edgec"), 4, "does not exist")
    check_error(call("evaluate", digits_bundle, "--limit", "0"), 2, "at least 1 batch")


def test_reports_that_cannot_be_written_are_refused_before_the_work(
    digits_bundle: Path, digits: Path, call: Call
) -> None:
    for command in (("evaluate", digits_bundle), ("compare", digits_bundle)):
        check_error(call(*command, "--data", "none", "--report", "no/a.html"), 4, "no/a.html")
    arguments = ("inspect", digits, "--shape", "image=1,1,8,8", "-t", "rpi4")
    check_error(call(*arguments, "--db", "none", "--report", "no/a.html"), 4, "no/a.html")


def test_bundles_are_scored_by_processes(
    digits_bundle: Path, data: Path, call: Call, tmp_path: Path
) -> None:
    given = ["compare", digits_bundle, digits_bundle, "--data", data, "--seconds", "0.01"]
    found = [call(*given, *more, "--json") for more in ([], ["--workers", "1"])]
    accuracies = [[item["accuracy"] for item in json.loads(out)["bundles"]] for _, out, _ in found]
    assert accuracies[0] == accuracies[1]
    assert accuracies[0][0]["top1"] > 0.7
    check_error(call(*given, "--workers", "0"), 2, "--workers 0: expected 1 to 1024")
    check_error(call(*given, "--workers", "1", "--cluster", "tcp://a:1"), 2, "contradict")
    check_error(call(*given, "--board", "nowhere"), 4, "nowhere")
