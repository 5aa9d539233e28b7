"""Provide the settings of a tuning run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from edgec.compiler.errors import UsageError
from edgec.compiler.support.html_report import check_report_name
from edgec.compiler.support.limits import check_count, check_positive, check_seed, check_threads

Strategy = Literal["evolutionary", "random", "exhaustive"]
STRATEGIES: tuple[str, ...] = get_args(Strategy)
_MOST_TRIALS = 1 << 40


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """Tune options describe how long, where and how to search, and what is written.

    Attributes:
        seconds: time to spend; None for no limit.
        trials: decisions to measure, those in the database included; None for no limit.
        threads: to tune for; 0 is one for each core.
        boards: names of boards to measure on; none is this machine.
        tasks: numbers, ranges or parts of labels, as `0,2-5,conv`; empty for all.
        strategy: see `search.py`.
        seed: the seed of everything random.
        cluster: address of a Dask scheduler whose workers compile kernels; empty: processes here.
        report: .html or .json file.
        log: file that every event is appended to.
    """

    seconds: float | None = None
    trials: int | None = None
    threads: int = 1
    boards: tuple[str, ...] = ()
    tasks: str = ""
    strategy: Strategy = "evolutionary"
    seed: int = 0
    cluster: str = ""
    report: Path | None = None
    log: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            UsageError: says which setting.
        """
        check_count("--trials", self.trials, 1, _MOST_TRIALS)
        check_positive("--time", self.seconds)
        check_threads(self.threads)
        check_seed(self.seed)
        boards: object = self.boards
        names = (boards,) if isinstance(boards, str) else tuple(self.boards)
        object.__setattr__(self, "boards", names)
        if self.strategy not in STRATEGIES:
            raise UsageError(f"--strategy {self.strategy}: known are {', '.join(STRATEGIES)}")
        for name in ("report", "log"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else Path(value))
        check_report_name(self.report, "--report")
