"""Tuning real models: on this machine, killed and resumed, with kernels that are wrong."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgec.compiler import Bundle, CompileOptions, compile_model
from edgec.compiler.calibration.samples import SampleOptions
from edgec.compiler.cli.main import main
from edgec.compiler.cli.tune import parse_time, print_tuned
from edgec.compiler.errors import UsageError
from edgec.compiler.kernels import templates
from edgec.compiler.kernels.template import to_text
from edgec.compiler.lowering.tuning_records import Database, best_records
from edgec.compiler.quantize.options import QuantizeOptions
from edgec.compiler.tune.devices import Backoff, Host, MeasureFailed, Measurement
from edgec.compiler.tune.finals import Finals
from edgec.compiler.tune.measure import statistics_of
from edgec.compiler.tune.options import TuneOptions
from edgec.compiler.tune.report_data import TuneReport
from edgec.compiler.tune.rounds import KernelBuilder, Round
from edgec.compiler.tune.session import Tuner
from edgec.compiler.tune.tasks import TuningPlan, plan_tuning
from edgec.targets import load_target

SHAPE = ["--shape", "image=1,1,8,8"]
TARGET = load_target("native")


class Events:
    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []

    def event(self, kind: str, **fields: Any) -> None:
        self.seen.append((kind, fields))

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.seen if name == kind]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "digits.onnx"
    assert main(["models", "digits", "-o", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def plan(digits: Path) -> TuningPlan:
    return plan_tuning(digits, TARGET, CompileOptions(shapes={"image": (1, 1, 8, 8)}))


def tuned(
    plan: TuningPlan, folder: Path, events: Events, device: Any = None, **options: Any
) -> TuneReport:
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    tuner = Tuner(
        plan, plan.tasks, TARGET, folder / "db.jsonl", TuneOptions(**options), scratch, events
    )
    return tuner.run(lambda kernels: [device or Host(1, kernels)])


@pytest.fixture(scope="module")
def first(plan: TuningPlan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("tune")
    return folder, tuned(plan, folder, Events(), trials=16)


def test_every_trial_is_written_down(first: tuple[Path, TuneReport], plan: TuningPlan) -> None:
    folder, report = first
    database = Database.read(folder / "db.jsonl")
    trials = [r for r in database.records if not r.confirmed]
    assert report.trials == 16 == len(trials)
    assert len({(r.key, r.decision_text) for r in trials}) == 16
    assert {r.key for r in trials} == {task.key for task in plan.tasks}
    confirmed = best_records(database.records)
    assert all(confirmed[task.key].confirmed for task in plan.tasks)
    assert all(result.after <= result.before for result in report.tasks)
    assert report.history[-1][1] == 16


def test_a_finished_run_is_not_repeated(first: tuple[Path, TuneReport], plan: TuningPlan) -> None:
    folder, _ = first
    before = len(Database.read(folder / "db.jsonl").records)
    report = tuned(plan, folder, Events(), trials=16)
    assert report.trials == 0
    assert "16 trials are done" in report.reason
    after = len(Database.read(folder / "db.jsonl").records)
    assert after == before + len(plan.tasks)


def test_compile_uses_the_records_and_says_so(
    first: tuple[Path, TuneReport], digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, report = first
    bundle = tmp_path / "tuned.edgec"
    arguments = ["compile", str(digits), *SHAPE, "-o", str(bundle), "-q"]
    assert main([*arguments, "--records", str(folder / "db.jsonl")]) == 0
    assert "of the estimated time" in capsys.readouterr().out
    manifest = Bundle.load(bundle).manifest
    assert manifest.execution.tuned_share > 0.8
    assert manifest.parity.checked_on == "target"
    del report


def test_records_decide_the_code(digits: Path, tmp_path: Path, plan: TuningPlan) -> None:
    """A record of a decision that is not the default gives another library."""
    from edgec.compiler.lowering.tuning_records import append, make_record

    task = max(plan.tasks, key=lambda t: len(t.estimates))
    other = next(d for d in reversed(task.estimates) if d != task.default)
    libraries = []
    for number, decision in enumerate([task.default, other]):
        path = tmp_path / f"{number}.jsonl"
        append(path, [make_record(task.key, decision, TARGET, 1, 1e-6)])
        options = CompileOptions(shapes={"image": (1, 1, 8, 8)}, records=path)
        bundle = compile_model(digits, TARGET, options, output=tmp_path / f"{number}.edgec")
        libraries.append(bundle.library.read_bytes())
    assert libraries[0] != libraries[1]


def test_records_of_another_target_are_refused(
    first: tuple[Path, TuneReport], digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = first
    arguments = ["compile", str(digits), *SHAPE, "-t", "rpi4", "-o", str(tmp_path / "x.edgec")]
    assert main([*arguments, "--records", str(folder / "db.jsonl")]) == 4
    assert "not for rpi4" in capsys.readouterr().err
    assert not (tmp_path / "x.edgec").exists()


def test_a_wrong_kernel_is_rejected(
    plan: TuningPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every decision but the defaults gets other weights: none of them may be chosen."""
    defaults = {task.default for task in plan.tasks}
    template = templates.TEMPLATES["edgec.conv"]

    def pack(workload: Any, decision: Any, target: Any, position: int, array: Any) -> Any:
        packed = template.pack(workload, decision, target, position, array)
        wrong = position == 1 and to_text(decision) not in defaults
        return packed * np.float32(1.001) if wrong else packed

    monkeypatch.setitem(templates.TEMPLATES, "edgec.conv", replace(template, pack=pack))
    medians = Finals.medians

    def tempting(self: Finals) -> dict[int, dict[str, float]]:
        """As if everything but the defaults were ten times as fast."""
        return {
            number: {d: s if d in defaults else s / 10 for d, s in found.items()}
            for number, found in medians(self).items()
        }

    monkeypatch.setattr(Finals, "medians", tempting)
    events = Events()
    report = tuned(plan, tmp_path, events, trials=12, strategy="random")
    assert events.of("rejected")
    for result in report.tasks:
        if result.task.key.operator == "edgec.conv":
            assert result.decision == result.task.default
    failures = [r for r in Database.read(tmp_path / "db.jsonl").records if r.failure]
    assert any("of the largest value" in record.failure for record in failures)


class Breaking(Host):
    """A machine on which one kernel always crashes."""

    def __init__(self, kernels: KernelBuilder, task: int, bad: set[str]) -> None:
        super().__init__(1, kernels)
        self.task, self.bad, self.crashes = task, bad, 0

    def time(self, *rounds: Round) -> Any:
        if any(built.decisions.get(self.task) in self.bad for built in rounds):
            self.crashes += 1
            raise MeasureFailed("crashed with SIGSEGV", reached=True)
        return super().time(*rounds)


def test_one_crashing_kernel_does_not_spoil_the_others(
    plan: TuningPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgec.compiler.tune.devices.BACKOFF_SECONDS", (0.01,))
    task = plan.tasks[0]
    bad = {d for d in task.estimates if d != task.default}
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    events = Events()
    options = TuneOptions(trials=14, strategy="exhaustive")
    database = tmp_path / "db.jsonl"
    tuner = Tuner(plan, plan.tasks, TARGET, database, options, scratch, events)
    report = tuner.run(lambda kernels: [Breaking(kernels, task.number, bad)])
    records = Database.read(database).records
    failed = [r for r in records if r.seconds is None]
    assert failed
    assert {r.key for r in failed} == {task.key}
    assert {r.failure for r in failed} == {"crashed with SIGSEGV"}
    assert {r.key for r in records if r.seconds is not None} == {t.key for t in plan.tasks}
    chosen = {r.task.number: r.decision for r in report.tasks}
    assert chosen[task.number] == task.default


class Noisy(Host):
    """A machine that makes every decision but the defaults look fast, until they are confirmed.

    In the first comparisons of two it says what `whims` says of the second one's time: those are
    the ones that confirm. Later ones are as at the end of the list.
    """

    def __init__(self, kernels: KernelBuilder, plan: TuningPlan, whims: list[float]) -> None:
        super().__init__(1, kernels)
        self.plan, self.whims, self.comparisons, self.steps = plan, whims, 0, 0

    def time(self, *rounds: Round) -> Any:
        if not self.steps:
            self.steps = len(super().time(*rounds)[0].seconds)
        whole = [1.0] * self.steps
        if len(rounds) == 2:
            whim = self.whims[min(self.comparisons, len(self.whims) - 1)]
            self.comparisons += 1
            return [Measurement(tuple(whole), 0.1), Measurement(tuple(whim for _ in whole), 0.1)]
        told = []
        for built in rounds:
            seconds = list(whole)
            for task in self.plan.tasks:
                if built.decisions.get(task.number, task.default) != task.default:
                    for step in task.steps:
                        seconds[step] = 1 / 53
            told.append(Measurement(tuple(seconds), 0.1))
        return told


@pytest.mark.parametrize(
    ("whims", "comparisons", "gain", "noisy"),
    [
        ([0.8], 3, 1.25, False),
        # One process of the first comparison says otherwise: it is measured again.
        ([0.8, 1.4, 0.8, 0.8], 6, 1.25, True),
        # Each time another one does, and that kernels lose.
        ([0.8, 0.8, 1.4], 9, 1, True),
        ([1.4], 3, 1, True),
    ],
)
def test_a_loss_is_neither_recorded_nor_recommended(
    plan: TuningPlan,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    whims: list[float],
    comparisons: int,
    gain: float,
    noisy: bool,
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    events = Events()
    database = tmp_path / "db.jsonl"
    options = TuneOptions(trials=16, strategy="random")
    tuner = Tuner(plan, plan.tasks, TARGET, database, options, scratch, events)
    devices: list[Noisy] = []

    def make(kernels: KernelBuilder) -> list[Noisy]:
        whims_of_many = whims if comparisons < 9 else whims * 3
        devices.append(Noisy(kernels, plan, whims_of_many))
        return devices

    report = tuner.run(make)
    assert devices[0].comparisons == comparisons
    assert report.before / report.after == pytest.approx(gain)
    assert all(result.after <= result.before for result in report.tasks)
    assert (report.gained, report.noisy) == (gain > 1, noisy)
    warnings = [event["text"] for event in events.of("warning")]
    assert any("too noisy" in text for text in warnings) == noisy
    confirmed = [r for r in Database.read(database).records if r.confirmed]
    defaults = {task.key: task.default for task in plan.tasks}
    changed = [r for r in confirmed if r.decision_text != defaults[r.key]]
    assert bool(changed) == (gain > 1)
    print_tuned(report, database)
    printed = capsys.readouterr().out
    assert ("compile with: --records" in printed) == (gain > 1)
    assert ("too noisy to tell" in printed) == (gain == 1)


def test_integer_kernels_are_tuned_and_checked_bit_by_bit(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One kernel that is off by one in a weight is rejected, others are taken and change no bit."""
    generator = np.random.default_rng(0)
    samples = tmp_path / "samples.npy"
    np.save(samples, generator.random((4, 1, 8, 8), np.float32))
    ranges = tmp_path / "ranges.json"
    settings: dict[str, Any] = {
        "shapes": {"image": (1, 1, 8, 8)},
        "samples": SampleOptions(source=str(samples)),
        "quantize": QuantizeOptions(recipe="int8", repair=False, cache=ranges),
    }
    plan = plan_tuning(digits, TARGET, CompileOptions(**settings))
    defaults = {task.key: task.default for task in plan.tasks}
    template = templates.TEMPLATES["edgec.integer_matmul"]

    def pack(workload: Any, decision: Any, target: Any, position: int, array: Any) -> Any:
        packed = template.pack(workload, decision, target, position, array)
        wrong = position == 1 and to_text(decision) not in defaults.values()
        return packed + np.int32(1) if wrong else packed

    with monkeypatch.context() as patch:
        changed = replace(template, pack=pack)
        patch.setitem(templates.TEMPLATES, "edgec.integer_matmul", changed)
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        events, database = Events(), tmp_path / "db.jsonl"
        options = TuneOptions(trials=8, strategy="random")
        tuner = Tuner(plan, plan.tasks, TARGET, database, options, scratch, events)
        tuner.run(lambda kernels: [Noisy(kernels, plan, [0.8])])
    rejected = {event["why"].split(" ", 1)[1] for event in events.of("rejected")}
    assert rejected == {"differs in 10 of 10 values"}
    best = best_records(Database.read(database).records)
    assert set(best) == set(defaults)
    changed_kernels = {k.operator for k, r in best.items() if r.decision_text != defaults[k]}
    assert changed_kernels == {"edgec.integer_conv"}
    image = {"image": generator.random((1, 1, 8, 8), np.float32)}
    outputs = []
    for number, records in enumerate([None, database]):
        options_with = CompileOptions(**settings, records=records, parity=False)
        bundle = compile_model(digits, TARGET, options_with, output=tmp_path / f"{number}.edgec")
        outputs.append(bundle.open().run(image))
        assert (bundle.manifest.execution.tuned_share > 0.8) == (number == 1)
    np.testing.assert_array_equal(*(found["logits"] for found in outputs))


def test_killed_three_times_it_completes(digits: Path, tmp_path: Path) -> None:
    database = tmp_path / "db.jsonl"
    call = "import sys; from edgec.compiler.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", call, "tune", str(digits), *SHAPE]
    command += ["--db", str(database), "--trials", "32", "-q", "--strategy", "random"]
    killed: set[int] = set()
    seen = 0
    while len(killed) < 3:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        # Each run gets a little further than the one before, wherever that is.
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if database.exists() and len(database.read_bytes()) > seen:
                break
            time.sleep(0.02)
        assert process.poll() is None, "it ended before it was killed"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        killed.add(process.pid)
        known = Database.read(database)
        assert len(known.dropped) <= len(killed)
        seen = len(database.read_bytes())
    before = Database.read(database)
    assert _processes(str(tmp_path), *(f"edgec-tune-{pid}-" for pid in killed)) == []
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    after = Database.read(database)
    assert after.records[: len(before.records)] == before.records
    trials = {(r.key, r.decision_text) for r in after.records if not r.confirmed}
    assert len(trials) == 32
    assert any(record.confirmed for record in after.records)
    assert "32 trials are done" in done.stdout
    # What the killed ones left behind is gone.
    left = [path.name.split("-")[2] for path in Path(tempfile.gettempdir()).glob("edgec-tune-*")]
    assert not killed & {int(pid) for pid in left}


def _processes(*texts: str) -> list[int]:
    """Processes that still have to do with a folder, after a moment to end.

    A worker's command names the scratch folder of the run that it belongs to.
    """
    time.sleep(0.5)
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                command = (path / "cmdline").read_bytes().decode(errors="replace")
                if any(text in command for text in texts):
                    found.append(int(path.name))
            except OSError:
                continue
    return found


def test_the_command_line_lists_reports_and_says_what_is_missing(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tune = ["tune", str(digits), *SHAPE]
    assert main([*tune, "--dry-run", "--json"]) == 0
    tasks = json.loads(capsys.readouterr().out)
    assert [task["number"] for task in tasks] == list(range(len(tasks)))
    assert 0.5 < sum(task["share"] for task in tasks) <= 1.001
    for arguments, code, message in (
        ([], 2, "--db FILE"),
        (["--db", "x"], 2, "--time 8h or --trials"),
        (["--db", "x", "--time", "soon"], 2, "write 8h"),
        (["--db", "x", "--trials", "5", "--tasks", "99"], 2, "fits none"),
        (["--db", "x", "--trials", "5", "-t", "rpi4"], 2, "--board"),
        (["--db", "/dev/full", "--trials", "5"], 4, "/dev/full is no file"),
    ):
        assert main([*tune, *arguments]) == code
        assert message in capsys.readouterr().err
    report = tmp_path / "report.html"
    log = tmp_path / "log" / "tune.log"
    arguments = ["--db", str(tmp_path / "db"), "--trials", "8", "--tasks", "0"]
    arguments += ["--report", str(report), "--log", str(log), "--json"]
    assert main([*tune, *arguments]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[-1]["event"] == "end"
    assert events[-1]["before_ms"] > 0
    assert [event["trials"] for event in events if event["event"] == "round"][-1] == 8
    assert len({r.key for r in Database.read(tmp_path / "db").records}) == 1
    page = report.read_text()
    assert "<h1>Tuning of digits.onnx for native</h1>" in page
    assert "<svg" in page
    assert "GFLOP/s" in page
    assert len(log.read_text().splitlines()) == len(events)


@pytest.mark.parametrize(
    ("text", "seconds"), [("8h", 28800), ("90m", 5400), ("1h30m", 5400), ("45s", 45), ("600", 600)]
)
def test_times(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "8 hours", "-5s", "0s"])
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        parse_time(text)


def test_disturbed_runs_do_not_count() -> None:
    runs = np.full((20, 3), 1.0)
    runs[3] = runs[11] = 50.0
    found = statistics_of(runs)
    assert found["seconds"] == [1.0, 1.0, 1.0]
    assert found["runs"] == 18


def test_a_device_rests_longer_each_time() -> None:
    backoff = Backoff()
    pauses = [backoff.failed() for _ in range(9)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == pauses[-2]
    assert backoff.seconds > 0
    assert backoff.succeeded()
    assert backoff.failures == 0
