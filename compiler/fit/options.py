"""Provide the settings of a search."""

from dataclasses import dataclass, field
from pathlib import Path

from edgec.compiler.errors import UsageError, did_you_mean
from edgec.compiler.evaluate.metrics import make_metric
from edgec.compiler.fit.limits import Limits
from edgec.compiler.fit.space import DISTILL, INPUT_SIZE, QUANTIZATIONS, STEPS, Space
from edgec.compiler.jobs.pool import JobOptions
from edgec.compiler.support.html_report import check_report_name
from edgec.compiler.support.limits import check_count, check_seed

MAX_TRIALS = 100_000


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """Fit options describe what can be afforded, and how a version that keeps to it is searched.

    Attributes:
        limits: what can be afforded.
        trials: versions to compile, at most.
        data: what accuracy is measured on, a source as of calibration samples; None: on those.
        board: where the last candidates are measured; empty: here, if they run here.
        measure: whether they are measured at all.
        folder: what is found out is kept there; None: beside the output, ending in `.fit`.
        report: .html or .json file.
        seed: the seed of everything random.
        jobs: where work is done.
        arguments: options of `edgec compile` that say the same as the compile options of a call;
            they become part of the command that is shown at the end.
        recipes: quantizations and compression steps that may be used, `distill` and
            `input-size`; empty: all but `distill`, which takes long.
        metric: name of a metric of `edgec evaluate`, that accuracy is measured by; empty: `top1`
            where the data have labels, else the share of answers that are the original's.
        space: what is searched; None: all that the recipes, the model and the samples allow.
    """

    limits: Limits = field(default_factory=Limits)
    trials: int = 20
    data: str | None = None
    board: str = ""
    measure: bool = True
    folder: Path | None = None
    report: Path | None = None
    seed: int = 0
    jobs: JobOptions = field(default_factory=JobOptions)
    arguments: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    space: Space | None = None
    metric: str = ""

    def __post_init__(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            UsageError: says which setting.
        """
        check_count("--trials", self.trials, 1, MAX_TRIALS)
        check_seed(self.seed)
        if self.board and not self.measure:
            raise UsageError("--board and --no-measure contradict each other")
        for name in ("folder", "report"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else Path(value))
        check_report_name(self.report, "--report")
        steps = self.space.steps if self.space is not None else ()
        if self.metric:
            make_metric(self.metric)
        for name in (*steps, *self.recipes):
            known = (*QUANTIZATIONS, *STEPS, DISTILL, INPUT_SIZE)
            if name not in known:
                raise UsageError(
                    f"--recipes {name}: known are {', '.join(known)}{did_you_mean(name, known)}"
                )
