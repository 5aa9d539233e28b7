"""Provide linked stages: one session of the host with every stage of a plan.

It lasts until a stage is lost; then every request that waits is told which one and why, and the
caller opens another session or answers by other means.
"""

import secrets
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.distribute.connection import BEGINS, Connection, Frame, FrameType, LinkError
from edgec.compiler.distribute.routes import Feed, Routes
from edgec.compiler.distribute.stages import (
    Outputs,
    RelayedStage,
    StageAddress,
    StageLostError,
    StageTimes,
)
from edgec.compiler.ir.signature import TensorSpec

VERSION = 1
_HELLO = struct.Struct("<BBBBI16s")
_TIMES = struct.Struct("<QQQQ")
_DIGEST = slice(3, 35)
_ROLE_HOST = 0
# How long what stages say of an end may take to be read.
_LAST_WORDS_SECONDS = 0.5
MOST_ERROR_BYTES = 4096


@dataclass
class _Request:
    """A request waits for the values in `missing`."""

    number: int
    program: int
    begins: bool
    missing: set[str]
    submitted: int
    future: "Future[Outputs]" = field(default_factory=Future)
    results: Outputs = field(default_factory=dict)
    relayed: dict[int, Outputs] = field(default_factory=dict)


class LinkedStages:
    """Linked stages answer requests until one of them is lost.

    Any thread may submit requests; they are computed in the order of their numbers.

    Attributes:
        times: what stages said of the requests that they computed, the last ones.
        spans: number, submission and answer of each request on the monotonic clock [ns].
        failure: why no more requests are answered; None as long as they are.
    """

    def __init__(
        self,
        routes: Routes,
        outputs: Sequence[Sequence[str]],
        stages: Sequence[StageAddress],
        key: bytes | None,
        timeout: float,
    ) -> None:
        """Open a session with every stage.

        Args:
            routes: of the plan.
            outputs: names of the model's outputs, by program.
            stages: by number.
            key: that host and stages share; None on this machine only.
            timeout: seconds of silence after which a stage is lost.

        Raises:
            StageLostError: a stage does not answer, has another key, bundle or host.
        """
        self._routes = routes
        self._outputs = outputs
        self._stages = stages
        self._timeout = timeout
        self.times: list[StageTimes] = []
        self.spans: list[tuple[int, int, int]] = []
        self.failure: StageLostError | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._order = threading.Lock()
        self._requests: dict[int, _Request] = {}
        self._next = 0
        self._links: dict[int, Connection] = {}
        self._slots = [0] * len(stages)
        self._done = [0] * len(stages)
        self._clocks = [0] * len(stages)  # what to add to a stage's clock [ns]
        self._round_trips = [0] * len(stages)
        self._latest = [0] * len(stages)  # what each stage computed for last [ns]
        self._threads: list[threading.Thread] = []
        try:
            self._open(key)
        except BaseException:
            self.close()
            raise
        for number in self._links:
            self._start(self._read_all, number)
        for number, stage in enumerate(stages):
            if stage.relayed is not None:
                self._start(self._relay_all, number, stage.relayed)
        self._start(self._ping_all)

    def _start(self, target: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        thread.start()
        self._threads.append(thread)

    # ---- opening ----

    def _open(self, key: bytes | None) -> None:
        session = secrets.token_bytes(16)
        direct = [n for n, stage in enumerate(self._stages) if stage.relayed is None]
        for number in direct:
            self._at(number, lambda number=number: self._greet(number, key, session))
        addresses = [stage.address for stage in self._stages]
        # Consumers first: a stage connects with those that it sends to.
        for number in reversed(direct):
            payload = self._routes.payload(number, addresses)
            self._at(number, lambda number=number, payload=payload: self._route(number, payload))
        for number in direct:
            self._at(number, lambda number=number: self._ask_clock(number))

    def _at(self, number: int, do: Any) -> None:
        """Do something with a stage, whose name an error then has."""
        try:
            do()
        except LinkError as error:
            raise self._lost(number, error) from None

    def _lost(self, number: int, error: LinkError) -> StageLostError:
        """Return the error of a stage, or of the one that it blames."""
        other = error.culprit
        if other is None or other >= len(self._stages) or other == number:
            stage = self._stages[number]
            return StageLostError(stage.device, stage.address, str(error))
        stage, witness = self._stages[other], self._stages[number].device
        return StageLostError(stage.device, stage.address, f"is lost to device {witness}: {error}")

    def _greet(self, number: int, key: bytes | None, session: bytes) -> None:
        stage = self._stages[number]
        # A stage ends an older session first, for which it has a second.
        link = Connection(stage.address, key, max(self._timeout, 2.0))
        self._links[number] = link
        hello = _HELLO.pack(VERSION, 0, _ROLE_HOST, 0, round(self._timeout * 1e3), session)
        try:
            link.send(Frame(FrameType.HELLO, size=len(hello)), hello)
            answer = self._await(number, FrameType.HELLO)
        except LinkError as error:
            if key is not None or str(error).startswith("says"):
                raise
            raise LinkError(
                f"{error} before it answered: if it has a key, add --key FILE"
            ) from None
        if len(answer) != _DIGEST.stop or answer[0] != VERSION:
            raise LinkError("is of another version of edgec")
        if answer[_DIGEST] != stage.digest:
            raise LinkError(
                "serves another bundle than the plan's: take the plan's bundle there, or compile "
                "the plan again"
            )
        self._slots[number] = answer[1]
        link.set_timeout(self._timeout)

    def _route(self, number: int, payload: bytes) -> None:
        self._links[number].send(Frame(FrameType.ROUTES, size=len(payload)), payload)
        self._await(number, FrameType.READY)

    def _ask_clock(self, number: int) -> None:
        self._links[number].send(Frame(FrameType.PING, request=time.monotonic_ns()))

    def _await(self, number: int, kind: FrameType) -> bytes:
        """Return the payload of an answer; pings may come before it."""
        link = self._links[number]
        while True:
            frame = link.read_frame()
            if frame.size > MOST_ERROR_BYTES:
                raise LinkError("sent what a stage does not send")
            payload = link.read(frame.size)
            if frame.kind == kind:
                return payload
            if frame.kind == FrameType.ERROR:
                raise _said(frame, payload)
            if frame.kind != FrameType.PING:
                raise LinkError("sent what a stage does not send")

    # ---- requests ----

    def submit(
        self, program: int, inputs: Mapping[str, NDArray[Any]], begins: bool = False
    ) -> "Future[Outputs]":
        """Send a request, when stages have room for it.

        Args:
            program: number in the plan.
            inputs: checked, by name.
            begins: whether states are zeros for it.

        Returns:
            The outputs by name, when they are there; a StageLostError if a stage is lost.
        """
        with self._order:
            number, self._next = self._next, self._next + 1
            request = _Request(
                number, program, begins, set(self._outputs[program]), time.monotonic_ns()
            )
            with self._lock:
                if self.failure is not None:
                    request.future.set_exception(self.failure)
                    return request.future
                self._requests[number] = request
            for name, array in inputs.items():
                self._take(request, name, array)
        return request.future

    def _take(self, request: _Request, name: str, array: NDArray[Any]) -> None:
        """Do with a value what there is to do: send it, hand it to a relayed stage, answer."""
        routes = self._routes.programs[request.program]
        for feed in routes.feeds.get(name, ()):
            if not self._feed(request, feed, array):
                return
        with self._lock:
            for number, signature in routes.relayed.items():
                if any(spec.name == name for spec in signature.inputs):
                    request.relayed.setdefault(number, {})[name] = array
                    self._changed.notify_all()
            if name not in request.missing:
                return
            request.results[name] = array
            request.missing.remove(name)
            if request.missing:
                return
            # The end of the session answers those that it finds, and takes them away.
            if self._requests.pop(request.number, None) is None:
                return
            self.spans.append((request.number, request.submitted, time.monotonic_ns()))
        if request.future.set_running_or_notify_cancel():
            request.future.set_result(
                {name: request.results[name] for name in self._outputs[request.program]}
            )

    def _feed(self, request: _Request, feed: Feed, array: NDArray[Any]) -> bool:
        """Send a value to a stage; whether it was sent."""
        with self._changed:
            while (
                self.failure is None
                and request.number >= self._done[feed.stage] + self._slots[feed.stage]
            ):
                self._changed.wait()
            if self.failure is not None:
                return False
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        frame = Frame(
            FrameType.DATA,
            BEGINS if request.begins else 0,
            feed.program,
            feed.value,
            data.nbytes,
            request.number,
        )
        try:
            self._links[feed.stage].send(frame, data.data)
        except LinkError as error:
            self._lose_unless_said(feed.stage, error)
            return False
        return True

    # ---- what stages send ----

    def _read_all(self, number: int) -> None:
        link = self._links[number]
        try:
            while True:
                frame = link.read_frame()
                if frame.kind == FrameType.DATA:
                    self._read_value(link, frame)
                elif frame.kind == FrameType.DONE and frame.size == _TIMES.size:
                    self._note_done(number, frame.request, _TIMES.unpack(link.read(_TIMES.size)))
                elif frame.kind == FrameType.PONG and frame.size == 8:
                    self._note_clock(number, frame.request, link.read(8))
                elif frame.kind == FrameType.ERROR and frame.size <= MOST_ERROR_BYTES:
                    raise _said(frame, link.read(frame.size))
                elif frame.kind != FrameType.PING or frame.size:
                    raise LinkError("sent what a stage does not send")
        except LinkError as error:
            self._lose(number, error)

    def _read_value(self, link: Connection, frame: Frame) -> None:
        with self._lock:
            request = self._requests.get(frame.request)
        specs = () if request is None else self._routes.programs[request.program].received
        if request is None or frame.value >= len(specs):
            raise LinkError("sent a value that nobody asked for")
        array = _empty(specs[frame.value])
        if array.nbytes != frame.size:
            raise LinkError("sent a value of another size")
        if array.nbytes:
            link.read_into(array.reshape(-1).view(np.uint8).data)
        self._take(request, specs[frame.value].name, array)

    def _note_done(self, number: int, request: int, times: tuple[int, ...]) -> None:
        offset = self._clocks[number]
        with self._changed:
            self._done[number] = max(self._done[number], request + 1)
            self._latest[number] = times[2] - times[1]
            self.times.append(StageTimes(request, number, *(time + offset for time in times)))
            del self.times[:-MOST_TIMES], self.spans[:-MOST_TIMES]
            self._changed.notify_all()

    def _note_clock(self, number: int, asked: int, clock: bytes) -> None:
        """Take the middle between question and answer for the moment that the stage read.

        A clock that may be ours, as read between the two, is ours: stages of one machine share it.
        """
        now, read = time.monotonic_ns(), int.from_bytes(clock, "little")
        self._round_trips[number] = now - asked
        self._clocks[number] = 0 if asked <= read <= now else (now + asked) // 2 - read

    def _relay_all(self, number: int, stage: RelayedStage) -> None:
        """Call a relayed stage for one request after the other."""
        wanted = 0
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self.failure is not None or self._is_whole(number, wanted)  # noqa: B023
                )
                if self.failure is not None:
                    return
                request = self._requests[wanted]
            given = request.relayed[number]
            began = time.monotonic_ns()
            try:
                outputs = stage.run(given)
            except LinkError as error:
                self._lose(number, error)
                return
            ended = time.monotonic_ns()
            for name, array in outputs.items():
                self._take(request, name, array)
            # Its own time is put last: what comes before it is the network's.
            computing = max(began, ended - round(stage.server_seconds * 1e9))
            self._note_done(number, wanted, (began, computing, ended, time.monotonic_ns()))
            wanted += 1

    def _is_whole(self, number: int, wanted: int) -> bool:
        """Return whether all inputs of a relayed stage are here."""
        request = self._requests.get(wanted)
        if request is None:
            return False
        specs = self._routes.programs[request.program].relayed[number].inputs
        return len(request.relayed.get(number, {})) == len({spec.name for spec in specs})

    def _ping_all(self) -> None:
        within = self._timeout / 4
        while True:
            with self._changed:
                if self.failure is not None:
                    return
                self._changed.wait_for(lambda: self.failure is not None, within)
            for number, link in self._links.items():
                try:
                    link.ping(within)
                except LinkError as error:
                    self._lose_unless_said(number, error)

    # ---- the end ----

    def _lose(self, number: int, error: LinkError) -> None:
        """End the session, as a stage is lost."""
        self._end(self._lost(number, error))

    def _lose_unless_said(self, number: int, error: LinkError) -> None:
        """End the session, as a stage takes nothing more; what stages say of it comes first.

        A stage that loses another one says so and ends: sending may see the end before it is read.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.failure is not None, _LAST_WORDS_SECONDS)
        self._lose(number, error)

    def _end(self, failure: StageLostError) -> None:
        with self._changed:
            if self.failure is not None:
                return
            self.failure = failure
            waiting = list(self._requests.values())
            self._requests.clear()
            self._changed.notify_all()
        for link in self._links.values():
            link.close()
        for request in waiting:
            if request.future.set_running_or_notify_cancel():
                request.future.set_exception(failure)

    @property
    def request_count(self) -> int:
        """Return how many requests were submitted."""
        return self._next

    def records(self) -> tuple[list[StageTimes], list[tuple[int, int, int]]]:
        """Return copies of `times` and `spans`, when every answered request is in both."""
        with self._changed:
            self._changed.wait_for(
                lambda: self.failure is not None or min(self._done) >= self._next, self._timeout
            )
            return list(self.times), list(self.spans)

    def traffic(self) -> dict[int, tuple[int, int]]:
        """Return the bytes sent to and received from each stage by the host, by its number."""
        return {n: (link.sent_bytes, link.received_bytes) for n, link in self._links.items()}

    def compute_seconds(self) -> float:
        """Return how long all stages together computed for the last requests [s]."""
        return sum(self._latest) / 1e9

    def round_trip_ns(self, number: int) -> int:
        """Return the time of a ping and its answer; 0 before there was one."""
        return self._round_trips[number]

    def close(self) -> None:
        """End the session; requests that wait are lost."""
        self._end(StageLostError("host", "here", "closed the session"))
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(2 * self._timeout)
        for link in self._links.values():
            link.release()


MOST_TIMES = 100_000


def _said(frame: Frame, text: bytes) -> LinkError:
    """Return what a stage gave as the reason for the end."""
    return LinkError(f"says: {text.decode(errors='replace')}", frame.value)


def _empty(spec: TensorSpec) -> NDArray[Any]:
    return np.empty(tuple(extent or 0 for extent in spec.shape), np.dtype(spec.dtype))
