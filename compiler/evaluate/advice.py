"""Rank models for a board by what they cost there, measured or predicted."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from edgec.compiler.bench.compare import bench_bundles
from edgec.compiler.errors import BadInputError, EdgecError, UsageError
from edgec.compiler.inspection import ModelReport, inspect_path
from edgec.compiler.options import CompileOptions
from edgec.compiler.pipeline import compile_model
from edgec.compiler.predict.model import predict_model
from edgec.compiler.predict.prediction import Energy, Estimate
from edgec.compiler.runtime.session import why_not_here
from edgec.compiler.support.files import scratch_folder
from edgec.compiler.support.html_report import (
    Cell,
    Column,
    Report,
    Subject,
    Table,
    number_cell,
)
from edgec.compiler.support.limits import check_threads
from edgec.compiler.support.progress import Progress, Silent
from edgec.targets import Target, load_target

Verdict = Literal["meets", "may meet", "misses", "unknown"]
"""Of the limits: certainly by the error bar, by the value alone, not, or nothing is known."""

_ORDER: Mapping[Verdict, int] = {"meets": 0, "may meet": 1, "misses": 2, "unknown": 3}


@dataclass(frozen=True)
class Candidate:
    """A candidate is a model that could be used.

    Attributes:
        name: what people call it.
        task: what it does; empty: not known.
        fetch: gives its file; called in an empty folder.
        options: shapes and frozen inputs.
        description: one line.
    """

    name: str
    task: str
    fetch: Callable[[Path], Path]
    options: CompileOptions = field(default_factory=CompileOptions)
    description: str = ""


@dataclass(frozen=True)
class AdviceLimits:
    """AdviceLimits say what can be afforded; None: any.

    Attributes:
        latency_ms: of one inference.
        memory_bytes: activations and weights together.
        size_bytes: of the library.
    """

    latency_ms: float | None = None
    memory_bytes: int | None = None
    size_bytes: int | None = None

    def verdict(self, item: "Advised") -> tuple[Verdict, str]:
        """Return whether a model meets the limits, and which one it misses."""
        if item.latency is None:
            return "unknown", ""
        missed = []
        if self.latency_ms is not None and item.latency.value > self.latency_ms:
            missed.append("latency")
        if self.memory_bytes is not None and item.memory_bytes > self.memory_bytes:
            missed.append("memory")
        if self.size_bytes is not None and item.library_bytes > self.size_bytes:
            missed.append("size")
        if missed:
            return "misses", ", ".join(missed)
        sure = self.latency_ms is None or item.latency.high <= self.latency_ms
        return ("meets", "") if sure else ("may meet", "")


@dataclass(frozen=True)
class Advised:
    """An advised model has these figures on the board.

    Attributes:
        name: the candidate.
        task: what it does.
        description: one line.
        macs: multiply-accumulates of an inference; None: not known.
        latency: [ms]; None where it cannot be known.
        measured: whether the latency was measured, here.
        memory_bytes: activations at their peak and weights, exact.
        library_bytes: of the library.
        size_exact: whether it was compiled.
        energy: of an inference.
        verdict: whether it meets the limits.
        why: the limits that it misses, or why nothing is known.
    """

    name: str
    task: str
    description: str = ""
    macs: int | None = None
    latency: Estimate | None = None
    measured: bool = False
    memory_bytes: int = 0
    library_bytes: int = 0
    size_exact: bool = False
    energy: Energy | None = None
    verdict: Verdict = "unknown"
    why: str = ""


def advise(
    candidates: Sequence[Candidate],
    target: str | Path | Target,
    limits: AdviceLimits,
    *,
    task: str | None = None,
    threads: int = 1,
    measure: bool = False,
    progress: Progress | None = None,
) -> list[Advised]:
    """Rank models for a target.

    First what meets the limits, then what may, then what misses them; among those the one of most
    arithmetic first where it meets them, and the fastest first where not: accuracy is not known
    here, and within one family more arithmetic usually means more of it.

    Args:
        candidates: the models.
        target: the board.
        limits: what can be afforded.
        task: only models for it.
        threads: the threads that share the kernels' tasks.
        measure: compile and time them here, if the target's code runs here.
        progress: reports each model.

    Raises:
        UsageError: no candidate is for this task, it cannot be measured here, or threads are a
            number that cannot be.
    """
    check_threads(threads)
    target = target if isinstance(target, Target) else load_target(target)
    chosen = [item for item in candidates if task is None or item.task == task]
    if not chosen:
        known = sorted({item.task for item in candidates if item.task})
        raise UsageError(f"--task {task}: no model does that. Known: {', '.join(known)}")
    why_not = why_not_here(target)
    if measure and why_not:
        raise UsageError(f"--measure times models here, where {target.name} code does not run")
    found = []
    with (progress or Silent()).parts("models", len(chosen)) as advance:
        for candidate in chosen:
            item = _looked_at(candidate, target, threads, measure)
            verdict, why = limits.verdict(item)
            found.append(replace(item, verdict=verdict, why=why or item.why))
            advance()
    return sorted(found, key=_rank)


def _rank(item: Advised) -> tuple[int, float, str]:
    if item.verdict in ("meets", "may meet"):
        return _ORDER[item.verdict], -(item.macs or 0), item.name
    return _ORDER[item.verdict], item.latency.value if item.latency else 0.0, item.name


def _looked_at(candidate: Candidate, target: Target, threads: int, measure: bool) -> Advised:
    """Return the figures of one model; what keeps it from having some is said, not raised."""
    blank = Advised(candidate.name, candidate.task, candidate.description)
    with scratch_folder() as folder:
        try:
            path = candidate.fetch(folder)
            found = predict_model(path, target, candidate.options, threads=threads)
            item = replace(
                blank,
                macs=_macs(path, candidate.options),
                latency=found.latency,
                memory_bytes=found.arena_bytes + found.weight_bytes,
                library_bytes=found.library_bytes,
                energy=found.energy,
            )
            return _measured(item, path, candidate, target, threads, folder) if measure else item
        except EdgecError as error:
            return replace(blank, why=str(error))


def _macs(path: Path, options: CompileOptions) -> int | None:
    report = inspect_path(path, options)
    return report.cost.macs if isinstance(report, ModelReport) else None


def _measured(
    item: Advised,
    path: Path,
    candidate: Candidate,
    target: Target,
    threads: int,
    folder: Path,
) -> Advised:
    bundle = compile_model(path, target, candidate.options, output=folder / "measured.edgec")
    (latency,) = bench_bundles([bundle], threads=threads, seconds=1.0).bundles
    times = sorted(latency.times_ms)
    size = next(r.size_bytes for n, r in bundle.manifest.files.items() if n.startswith("model.so"))
    return replace(
        item,
        latency=Estimate(latency.median_ms, times[len(times) // 10], times[-1 - len(times) // 10]),
        measured=True,
        library_bytes=size,
        size_exact=True,
    )


def folder_candidates(folder: Path, options: CompileOptions) -> list[Candidate]:
    """Return the ONNX files of a folder.

    Raises:
        BadInputError: there are none.
    """
    if not folder.is_dir():
        raise BadInputError(f"{folder} is no folder; advise takes a folder of ONNX files")
    files = sorted(folder.glob("*.onnx"))
    if not files:
        raise BadInputError(f"{folder} holds no .onnx file")

    def of(path: Path) -> Candidate:
        return Candidate(path.name, "", lambda _folder: path, options)

    return [of(path) for path in files]


HEAD = (
    "model",
    "task",
    "verdict",
    "latency [ms]",
    "from",
    "to",
    "known by",
    "memory [MB]",
    "library [MB]",
    "energy [mJ]",
    "MMAC",
    "why",
)


def rows(found: Sequence[Advised]) -> list[list[str]]:
    """Return a line of texts for each model."""
    lines = []
    for item in found:
        latency = item.latency
        if latency is None:
            figures = [""] * 8
        else:
            values = (f"{v:.4g}" for v in (latency.value, latency.low, latency.high))
            figures = [
                *values,
                "measured" if item.measured else "predicted",
                f"{item.memory_bytes / 1e6:.2f}",
                f"{item.library_bytes / 1e6:.2f}" + ("" if item.size_exact else " (estimated)"),
                f"{item.energy.millijoules:.3g}" if item.energy else "",
                f"{item.macs / 1e6:.1f}" if item.macs is not None else "",
            ]
        lines.append([item.name, item.task, item.verdict, *figures, item.why])
    return lines


def advice_fields(found: Sequence[Advised]) -> list[dict[str, Any]]:
    """Return the ranking for JSON."""
    return [asdict(item) for item in found]


def advice_page(found: Sequence[Advised], target: Target) -> Report:
    """Return the ranking as a page."""
    slowest = max((i.latency.value for i in found if i.latency), default=0.0) or 1.0

    def row(item: Advised) -> list[Cell]:
        latency = item.latency
        known = "measured" if item.measured else "predicted"
        return [
            Cell(item.name, note=item.description),
            Cell(item.task),
            Cell(item.verdict, tone="gain" if item.verdict == "meets" else "", note=item.why),
            Cell()
            if latency is None
            else Cell(
                f"{latency.value:.4g}",
                latency.value,
                note=f"{latency.low:.4g} to {latency.high:.4g}, {known}",
                bar=latency.value / slowest,
            ),
            number_cell(item.memory_bytes / 1e6 if latency else None, 2),
            number_cell(item.library_bytes / 1e6 if latency else None, 2),
            number_cell(item.macs / 1e6 if item.macs is not None else None, 1),
        ]

    return Report(
        kind="Advice",
        subject=Subject(f"{len(found)} models", target.name),
        facts={"Order": Cell(ORDER)},
        sections=[
            Table(
                "Models",
                [
                    Column("model"),
                    Column("task"),
                    Column("verdict"),
                    Column("latency [ms]", numbers=True),
                    Column("memory [MB]", numbers=True),
                    Column("library [MB]", numbers=True),
                    Column("MMAC", numbers=True),
                ],
                [row(item) for item in found],
            )
        ],
    )


ORDER = (
    "what meets the limits with its error bar first, then what may; of these the one of most "
    "arithmetic first, since accuracy is not known without data: edgec compare measures it"
)
