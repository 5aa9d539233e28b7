"""Measure how fast language models read prompts and give tokens, beside other runtimes.

Each runtime has a process of its own, because their libraries disturb each other in one; only one
of them computes at a time. They take turns: in each round each one does every test, and what counts
is the median of the rounds' ratios (see `bench/compare.py`). The first round warms up.
"""

import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgec.compiler.bench.compare import PAUSE_SECONDS
from edgec.compiler.bench.token_runtimes import TOKEN_RIVALS, TokenTest
from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.bundle.generation_files import LANGUAGE
from edgec.compiler.errors import BundleError, ToolchainError, UsageError, did_you_mean
from edgec.compiler.language.language_model import LanguageModel
from edgec.compiler.support.cores import usable_cores
from edgec.compiler.support.limits import check_positive, check_threads

LEAST_ROUNDS = 3
# Far more than any cache of processors holds.
READ_BYTES = 1 << 28
_TEST = re.compile(r"(pp|tg)([1-9][0-9]{0,5})")
_ONE_TOKEN = "tg"


@dataclass(frozen=True)
class TokenSpeed:
    """A token speed describes one runtime at one test.

    Attributes:
        runtime: name and version.
        test: what was timed.
        per_second: tokens, in each round.
        touched_bytes: memory that one token reads or writes, as the pages that it uses; None where
            it cannot be told, and for prompts.
    """

    runtime: str
    test: TokenTest
    per_second: tuple[float, ...]
    touched_bytes: int | None = None

    @property
    def median(self) -> float:
        """Return the median of the rounds."""
        return statistics.median(self.per_second)


@dataclass(frozen=True)
class TokenReport:
    """A token report describes what a benchmark of tokens found.

    Attributes:
        threads: of every runtime.
        read_bandwidth: bytes per second that so many threads read from memory here.
        speeds: by test, in each the bundle first.
        ratios: how many times as fast as a rival the bundle is, by runtime and test.
        cannot: why others cannot run the model or a test.
    """

    threads: int
    read_bandwidth: float
    speeds: tuple[TokenSpeed, ...]
    ratios: dict[tuple[str, TokenTest], float] = field(default_factory=dict)
    cannot: dict[str, str] = field(default_factory=dict)

    def bandwidth_share(self, speed: TokenSpeed) -> float | None:
        """Return memory that a runtime uses in a second, as a share of what can be read."""
        if speed.touched_bytes is None:
            return None
        return speed.touched_bytes * speed.median / self.read_bandwidth


def parse_tests(tokens: str, depths: str) -> list[TokenTest]:
    """Return the tests of `--tokens pp512,tg128` at each of `--context-depth 0,2048`.

    Raises:
        UsageError: one of them is written otherwise.

    >>> [str(test) for test in parse_tests("pp512,tg128", "0,64")]
    ['pp512', 'tg128', 'pp512 at 64', 'tg128 at 64']
    """
    kinds = []
    for text in tokens.split(","):
        match = _TEST.fullmatch(text)
        if match is None:
            raise UsageError(
                f"--tokens {text!r}: pp and a number of tokens of a prompt, or tg and a number of "
                "tokens to give, are expected, as in pp512,tg128"
            )
        kinds.append((match[1], int(match[2])))
    if not all(depth.isdecimal() and len(depth) <= 6 for depth in depths.split(",")):
        raise UsageError(f"--context-depth {depths}: numbers of tokens are expected, as in 0,2048")
    return [TokenTest(kind, n, int(d)) for d in depths.split(",") for kind, n in kinds]


def bench_tokens(
    bundle: Bundle | str | Path,
    tests: Sequence[TokenTest],
    *,
    threads: int = 1,
    seconds: float = 3.0,
    against: Sequence[str] = (),
    model: str | Path | None = None,
) -> TokenReport:
    """Measure the bundle of a language model, and other runtimes on the file that it comes from.

    Args:
        bundle: of a language model, or its path.
        tests: what is timed.
        threads: for each runtime; 0 is one for each core.
        seconds: measuring time for each runtime and test.
        against: names in `edgec.compiler.bench.token_runtimes.TOKEN_RIVALS`.
        model: the GGUF file or folder; needed for rivals.

    Raises:
        UsageError: rivals without a model, an unknown one, or more tokens than the context.
        BundleError: the bundle is of no language model, or cannot run here.
        ToolchainError: a rival's package is missing.
    """
    check_threads(threads)
    check_positive("--seconds", seconds)
    bundle = Bundle.of(bundle)
    context = _check(bundle, tests, against, model)
    versions = {name: TOKEN_RIVALS[name].version() for name in against}
    actual = threads or usable_cores()
    bandwidth = read_bandwidth(actual)
    with ExitStack() as stack:
        ours = stack.enter_context(_Worker("edgec", bundle.path, actual, context))
        if "cannot" in ours.said:
            raise BundleError(f"{bundle.path}: {ours.said['cannot']}")
        workers, cannot = {str(bundle.path): ours}, {}
        for name, version in versions.items():
            worker = stack.enter_context(_Worker(name, Path(str(model)), actual, context))
            if "cannot" in worker.said:
                cannot[version] = worker.said["cannot"]
            else:
                workers[version] = worker
        return _measured(workers, tests, seconds, TokenReport(actual, bandwidth, (), {}, cannot))


def _check(
    bundle: Bundle, tests: Sequence[TokenTest], against: Sequence[str], model: str | Path | None
) -> int:
    """Return the tokens that the cache of a bundle holds."""
    rivals = [name for name in TOKEN_RIVALS if name != "edgec"]
    for name in against:
        if name not in rivals:
            hint = did_you_mean(name, rivals)
            raise UsageError(f"unknown runtime {name!r}{hint} Known: {', '.join(rivals)}")
    if against and model is None:
        raise UsageError("--against needs --model, the GGUF file or folder that the others run")
    if LANGUAGE not in bundle.manifest.files:
        raise BundleError(f"{bundle.path} is not of a language model; --tokens measures those")
    context = LanguageModel.model_validate_json(bundle.file(LANGUAGE).read_bytes()).context
    for test in tests:
        # A generator has a token to go on from.
        if max(1, test.depth) + test.tokens > context:
            raise UsageError(f"{test}: the context of {bundle.path} is {context} tokens")
    return context


def _measured(
    workers: "dict[str, _Worker]", tests: Sequence[TokenTest], seconds: float, report: TokenReport
) -> TokenReport:
    speeds, ratios, cannot = [], {}, dict(report.cannot)
    for test in tests:
        taking_part = dict(workers)
        for name, worker in workers.items():
            warm = worker.ask(test)
            if "cannot" in warm:
                cannot[f"{name}, {test},"] = warm["cannot"]
                del taking_part[name]
        rounds: dict[str, list[float]] = {name: [] for name in taking_part}
        deadline = time.perf_counter() + seconds * len(taking_part)
        while time.perf_counter() < deadline or any(
            len(found) < LEAST_ROUNDS for found in rounds.values()
        ):
            for name, worker in taking_part.items():
                time.sleep(PAUSE_SECONDS)
                rounds[name].append(test.tokens / worker.seconds(test))
        for name, worker in taking_part.items():
            touched = None
            if test.kind == _ONE_TOKEN:
                touched = worker.ask(TokenTest("tg", 1, test.depth), touched=True)
            bytes_used = None if touched is None else touched.get("touched_bytes")
            speeds.append(TokenSpeed(name, test, tuple(rounds[name]), bytes_used))
        ours, *_ = rounds.values()
        for name, theirs in list(rounds.items())[1:]:
            pairs = zip(ours, theirs, strict=True)
            ratios[name, test] = statistics.median(us / them for us, them in pairs)
    return TokenReport(report.threads, report.read_bandwidth, tuple(speeds), ratios, cannot)


class _Worker:
    """A process with one runtime in it; see `bench/token_worker.py`."""

    def __init__(self, name: str, model: Path, threads: int, context: int) -> None:
        # -P: files of the current folder must not hide modules.
        command = [sys.executable, "-P", "-m", "edgec.compiler.bench.token_worker"]
        self._process = subprocess.Popen(
            [*command, name, str(model), str(threads), str(context)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.said = self._answer()

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, test: TokenTest, touched: bool = False) -> dict[str, Any]:
        """Return what the process says of a test."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({**vars(test), "touched": touched}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def seconds(self, test: TokenTest) -> float:
        """Return how long a test took that worked before.

        Raises:
            ToolchainError: it did not this time.
        """
        said = self.ask(test)
        if "cannot" in said:
            raise ToolchainError(f"{test}: {said['cannot']}")
        return float(said["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            return {"cannot": f"its process ended by itself ({code})"}
        said: dict[str, Any] = json.loads(line)
        return said


def read_bandwidth(threads: int) -> float:
    """Return bytes per second that threads read from memory together, each a part of its own."""
    parts = [np.ones(READ_BYTES // 8, np.uint64) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as executor:
        list(executor.map(np.bitwise_or.reduce, parts))
        times = []
        for _ in range(5):
            began = time.perf_counter()
            list(executor.map(np.bitwise_or.reduce, parts))
            times.append(time.perf_counter() - began)
    return READ_BYTES * threads / min(times)
