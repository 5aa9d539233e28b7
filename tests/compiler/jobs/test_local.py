"""Processes that run calls: what they give, what kills them, what takes too long."""

import os
import signal
import time

import pytest

from edgec.compiler.errors import JobLostError, UsageError
from edgec.compiler.jobs.local import LocalExecutor
from edgec.compiler.jobs.pool import Failure, JobOptions, open_pool, outcome


def test_a_worker_that_dies_loses_its_own_call_alone() -> None:
    core = min(os.sched_getaffinity(0))
    with LocalExecutor([core], seconds=60) as executor:
        first = executor.submit(os.getpid)
        process = first.result()
        assert process != os.getpid()
        assert executor.submit(os.sched_getaffinity, 0).result() == {core}
        dies, lives = executor.submit(os._exit, 3), executor.submit(os.getpid)
        with pytest.raises(JobLostError, match="died"):
            dies.result()
        assert lives.result() not in (process, os.getpid())
        assert outcome(executor.submit(int, "x")) == Failure(
            "invalid literal for int() with base 10: 'x'"
        )
        executor.workers[0].signal(signal.SIGKILL)
        assert outcome(executor.submit(os.getpid)) == Failure("the process that ran it died", True)


def test_what_takes_too_long_is_given_up() -> None:
    with LocalExecutor([None], seconds=0.2) as executor:
        assert outcome(executor.submit(time.sleep, 60)) == Failure("it took over 0.2 s", lost=True)


def test_processes_end_with_the_pool_even_if_they_are_at_work() -> None:
    begin = time.monotonic()
    with open_pool(JobOptions(workers=1)) as pool:
        process = pool.executor().submit(os.getpid).result()
        pool.executor().submit(time.sleep, 60)
    assert time.monotonic() - begin < 30
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_options_are_checked() -> None:
    with pytest.raises(UsageError, match="--workers -1"):
        JobOptions(workers=-1)
