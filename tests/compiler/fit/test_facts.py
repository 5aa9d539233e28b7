"""Facts: kept when they are known, found again, and found out anew where a worker died."""

import json
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, cast

import pytest

from edgec.compiler.errors import BadInputError, JobLostError, UnsupportedModelError
from edgec.compiler.fit.facts import Facts
from edgec.compiler.fit.records import Records
from edgec.compiler.fit.space import Point
from edgec.compiler.fit.trial import Subject
from edgec.compiler.jobs.shared_path import SharedPath

COSTS = {"latency": 1.0, "drop": None, "size": 2, "memory": 3, "latency_low": 0.5}


class Deaf(Executor):
    """Gives what it was told to give, call by call."""

    def __init__(self, replies: list[Any]) -> None:
        self.replies = replies
        self.calls = 0

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        reply = self.replies[self.calls]
        self.calls += 1
        if isinstance(reply, Exception):
            future.set_exception(reply)
        else:
            future.set_result(reply)
        return future

    def executor(self, place: str = "") -> Executor:
        return self

    def offers(self, place: str) -> bool:
        return False

    def share(self, path: Path) -> SharedPath:
        return SharedPath(path)


def test_facts_survive_and_lost_work_is_done_again(tmp_path: Path) -> None:
    lost = JobLostError("died")
    pool = Deaf([lost, UnsupportedModelError("no channels"), COSTS])
    subject = cast(Subject, None)
    points = [Point("int8"), Point("none", (("channels", 10),))]
    facts = Facts(subject, pool, Records(tmp_path, "one"))
    first = facts.predict(points)
    assert first[1] == "no channels"
    assert not isinstance(first[0], str)
    assert (first[0].size, pool.calls) == (2, 3)

    again = Deaf([lost, lost, lost])
    facts = Facts(subject, again, Records(tmp_path, "one"))
    assert repr(facts.predict(points)) == repr(first)
    assert again.calls == 0
    # Of another subject nothing is known; what dies again and again is given up.
    assert Facts(subject, again, Records(tmp_path, "two")).predict(points[:1]) == ["died"]
    assert again.calls == 3


def test_a_damaged_fact_is_named(tmp_path: Path) -> None:
    Records(tmp_path, "one").keep("evaluated", Point(), COSTS)
    (path,) = tmp_path.glob("evaluated-*.json")
    assert json.loads(path.read_text())["point"] == "as it is"
    path.write_text(path.read_text()[:20])
    with pytest.raises(BadInputError, match="delete it, and that trial is repeated"):
        Records(tmp_path, "one")
