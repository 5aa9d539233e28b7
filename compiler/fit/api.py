"""Provide fit a model to limits in one call."""

import hashlib
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgec.compiler.boards.qemu import find_board
from edgec.compiler.bundle.bundle import Bundle, check_destination
from edgec.compiler.calibration.samples import check_source, load_callable
from edgec.compiler.errors import InterruptedRunError, LimitsNotMetError, UsageError
from edgec.compiler.evaluate.data import labels_of
from edgec.compiler.evaluate.metrics import make_metric
from edgec.compiler.fit.facts import Facts
from edgec.compiler.fit.finals import Finals
from edgec.compiler.fit.fit_report import FitReport, write_fit_report
from edgec.compiler.fit.input_sizes import with_smaller_images
from edgec.compiler.fit.limits import Quantity
from edgec.compiler.fit.options import FitOptions
from edgec.compiler.fit.records import Records
from edgec.compiler.fit.search import Search, Trial, Watcher
from edgec.compiler.fit.space import (
    DISTILL,
    INPUT_SIZE,
    MIXED,
    NO_RECIPE,
    QUANTIZATIONS,
    STEPS,
    Point,
    Space,
)
from edgec.compiler.fit.trial import Subject
from edgec.compiler.fit.why_not_met import why_not_met
from edgec.compiler.frontend.model_argument import as_path
from edgec.compiler.jobs.pool import Pool, open_pool
from edgec.compiler.jobs.shared_path import SharedPath
from edgec.compiler.lowering.tuning_records import Database
from edgec.compiler.options import CompileOptions
from edgec.compiler.support.files import check_output_file, check_output_folder
from edgec.compiler.support.progress import Progress, Silent
from edgec.compiler.support.versions import tool_versions
from edgec.targets import Target, load_target


def fit_model(
    model: str | Path,
    target: str | Path | Target = "native",
    options: FitOptions | None = None,
    compile_options: CompileOptions | None = None,
    *,
    output: str | Path | None = None,
    watch: Callable[[Search], Watcher] | None = None,
    progress: Progress | None = None,
) -> FitReport:
    """Search for the version of a model that keeps to limits, and compile it into a bundle.

    What is found out goes to files at once; the same call goes on after a stop.

    Args:
        model: the ONNX file.
        target: a target, its name, or the path of a target file.
        options: the limits, and how to search.
        compile_options: what shapes the model as it is: shapes, frozen inputs, samples. Of several
            programs one is chosen, for models of several input sizes.
        output: bundle folder, or a file that ends in `.tar`; by default `<model>-<target>.edgec`.
        watch: makes what is notified of each trial.
        progress: reports the compile of the candidates at the end.

    Raises:
        LimitsNotMetError: no version keeps the limits; says which one is the one.
        UsageError: the settings contradict each other.
        ClusterError: the cluster cannot be reached.
        InterruptedRunError: a signal came; what was found is kept.
        EdgecError: see `compile_model`.
    """
    options, base = options or FitOptions(), compile_options or CompileOptions()
    target = target if isinstance(target, Target) else load_target(target)
    path = as_path(model, "fit_model")
    output = Path(output) if output else Path(f"{path.stem}-{target.name}.edgec")
    folder = options.folder or output.with_suffix(".fit")
    _check(options, base, output, folder)
    knows_drop = base.samples.source is not None or options.data is not None
    if options.space is None and (not options.recipes or INPUT_SIZE in options.recipes):
        base = with_smaller_images(path, base)
    space = options.space or default_space(base, options.limits.drop, options.recipes)
    goal = options.limits.goal if knows_drop else _goal_without_drop(options)
    search = Search(space, options.limits, goal, options.trials, options.seed, knows_drop)

    def changed(point: Point) -> CompileOptions:
        return point.changed(base, options.limits.drop)

    watcher = watch(search) if watch is not None else _Nobody()
    try:
        with open_pool(options.jobs) as pool:
            facts = facts_of(path, target, replace(options, folder=folder), base, pool)
            search.run(facts, watcher)
            chosen = Finals(
                model=path,
                target=target,
                options=changed,
                output=output,
                board=options.board,
                measure=options.measure,
                records=facts.records,
                progress=progress or Silent(),
                pool=pool,
            ).choose(search)
    except KeyboardInterrupt:
        raise InterruptedRunError(
            f"interrupted; what was found is in {folder}, the same command goes on from there"
        ) from None
    report = FitReport(
        model=path.name,
        target=target.name,
        search=search,
        work={str(kind): count for kind, count in facts.done.items()},
        chosen=chosen[1] if chosen else None,
        bundle=chosen[0] if chosen else None,
        command=_command(path, target, options, base, chosen, output) if chosen else "",
    )
    if options.report is not None:
        write_fit_report(options.report, report)
    if chosen is None:
        raise LimitsNotMetError(why_not_met(search))
    return report


def facts_of(
    model: Path, target: Target, options: FitOptions, base: CompileOptions, pool: Pool
) -> Facts:
    """Return what finds out facts about versions of a model, and knows those of a folder.

    Args:
        model: the ONNX file.
        target: what it is compiled for.
        options: with the folder.
        base: compile options of the model as it is.
        pool: where work is done.

    Raises:
        BadInputError: a file there is no fact.
    """
    assert options.folder is not None
    records = Records(options.folder, _digest(model, target, options, base))
    return Facts(_subject(model, target, options, base, pool), pool, records)


class _Nobody:
    def tried(self, trial: Trial, search: Search) -> None:
        pass


def default_space(base: CompileOptions, drop: float | None, recipes: Sequence[str] = ()) -> Space:
    """Return everything that the samples and the limits allow, of some recipes or of all."""
    quantize, steps = list(QUANTIZATIONS), dict(STEPS)
    if base.samples.source is None:
        quantize = [name for name in quantize if name not in ("int8", MIXED)]
        del steps["layers"]
    elif drop is None:
        quantize.remove(MIXED)
    if recipes:
        quantize = [name for name in quantize if name in (NO_RECIPE, *recipes)]
        steps = {name: strengths for name, strengths in steps.items() if name in recipes}
    programs = [program.name for program in base.program_shapes]
    distill = DISTILL in recipes and base.samples.source is not None
    return Space(quantize, steps, programs, distill)


def _goal_without_drop(options: FitOptions) -> Quantity:
    """Return what is made small where accuracy cannot be measured."""
    free = [q for q in ("latency", "size", "memory") if q not in options.limits.given]
    found: Quantity = free[0] if free else "latency"  # type: ignore[assignment]
    return found


def _check(options: FitOptions, base: CompileOptions, output: Path, folder: Path) -> None:
    """Refuse what would fail after hours.

    Raises:
        UsageError: a setting contradicts another.
        CalibrationError: there are no such samples.
        BadInputError: there are no such records, or no such board.
        OutputError: something cannot be written.
    """
    if base.compression is not None or base.quantization is not None:
        raise UsageError("fit chooses compression and quantization itself; leave them away")
    if options.limits.drop is not None and base.samples.source is None and options.data is None:
        raise UsageError(
            "--drop is measured on samples: add --calibration DATA or --data DATA (.npy, .npz, a "
            "folder of images)"
        )
    for source in (base.samples.source, options.data):
        if isinstance(source, str):
            check_source(source)
    if base.samples.metric is not None:
        load_callable(base.samples.metric)
    if options.metric and options.data is None and base.samples.source is None:
        raise UsageError(f"--metric {options.metric} needs --data DATA, with labels or without")
    if DISTILL in options.recipes and base.samples.source is None:
        raise UsageError("distill trains on samples: add --calibration DATA")
    _check_labels(options, base)
    if base.records is not None:
        Database.read(base.records)
    if options.board and not options.jobs.cluster:
        find_board(options.board)
    check_destination(output)
    check_output_folder(folder)
    if options.report is not None:
        check_output_file(options.report, make_folders=True)


def _check_labels(options: FitOptions, base: CompileOptions) -> None:
    """Refuse labels that the metric knows nothing of.

    Raises:
        BadInputError: says what is expected.
    """
    if options.data is None or not Path(options.data).exists():
        return
    labels = labels_of(options.data)
    if labels is not None:
        make_metric(options.metric or base.samples.metric or "top1").check(labels)


def _subject(
    path: Path, target: Target, options: FitOptions, base: CompileOptions, pool: Pool
) -> Subject:
    def shared(source: Any) -> SharedPath | None:
        """Return a source that is a file or folder; others are found by their name."""
        return pool.share(Path(source)) if source and Path(source).exists() else None

    return Subject(
        model=pool.share(path),
        target=target,
        options=base,
        samples=shared(base.samples.source),
        data=shared(options.data) or options.data,
        drop=options.limits.drop,
        metric=options.metric,
    )


def _digest(path: Path, target: Target, options: FitOptions, base: CompileOptions) -> str:
    """Return what facts depend on beside the point: files, settings and versions."""
    parts: list[Any] = [target.model_dump(mode="json"), repr(base), options.limits.drop]
    parts += [tool_versions(), options.board, options.measure, options.metric]
    for source in (path, base.samples.source, options.data):
        parts.append(_file_digest(Path(source)) if isinstance(source, str | Path) else None)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    """Return a digest of a file, or of the files of a folder; of the name of anything else."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        named = {str(p.relative_to(path)): _file_digest(p) for p in files}
        return hashlib.sha256(json.dumps(named).encode()).hexdigest()
    if not path.is_file():
        return str(path)
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _command(
    path: Path,
    target: Target,
    options: FitOptions,
    base: CompileOptions,
    chosen: tuple[Bundle, Trial],
    output: Path,
) -> str:
    """Return the command that makes the same bundle."""
    point = chosen[1].point
    shapes = point.changed(base, options.limits.drop).shapes
    words = ["edgec", "compile", str(path), "-t", target.name]
    for name, extents in shapes.items():
        words += ["--shape", f"{name}={','.join(map(str, extents))}"]
    words += [*options.arguments, *point.arguments(options.limits.drop), "-o", str(output)]
    return shlex.join(words)
