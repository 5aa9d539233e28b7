"""Serve a bundle with state: each client's stream has a session of its own.

A request names its stream by the parameters of Triton's sequence extension: `sequence_id`, with
`sequence_start` in its first request and `sequence_end` in its last. A request without them is a
stream of one run.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.errors import TensorInputError
from edgec.compiler.runtime.session import Session
from edgec.compiler.serve.request_error import RequestError

Arrays = Mapping[str, NDArray[Any]]
Parameters = Mapping[str, bool | int | float | str]
# A stream that nobody has asked for this long may give its place to another.
IDLE_SECONDS = 60.0


@dataclass
class _Stream:
    session: Session
    used: float
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Streams:
    """Streams run a bundle with state for many callers, each with a state of its own."""

    def __init__(self, bundle: Bundle, threads: int, most: int) -> None:
        self._bundle = bundle
        self._threads = threads
        self._most = most
        self._streams: OrderedDict[str, _Stream] = OrderedDict()
        self._free: list[Session] = []
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="edgec-serve")

    async def start(self) -> None:
        """Begin to answer."""

    def describe(self) -> str:
        """Return in words how requests are run."""
        return "each sequence keeps its state"

    async def stop(self) -> None:
        """Answer no more."""
        self._executor.shutdown(wait=True)

    async def run(self, inputs: Arrays, parameters: Parameters) -> Arrays:
        """Return outputs by name.

        Raises:
            RequestError: 400, the inputs do not fit, or the stream is not known; 503, there are
                too many streams.
        """
        name = str(parameters.get("sequence_id", "") or "")
        begins = bool(parameters.get("sequence_start", not name))
        stream = self._stream(name, begins=begins)
        try:
            async with stream.lock:
                if begins:
                    stream.session.reset()
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._executor, stream.session.run, inputs)
        except TensorInputError as error:
            raise RequestError(400, str(error)) from None
        finally:
            stream.used = time.monotonic()
            if not name:
                self._free.append(stream.session)
            elif parameters.get("sequence_end") and self._streams.get(name) is stream:
                del self._streams[name]
                self._free.append(stream.session)

    def _stream(self, name: str, *, begins: bool) -> _Stream:
        found = self._streams.get(name)
        if found is not None:
            return found
        if not begins:
            raise RequestError(
                400, f"there is no sequence {name[:64]!r}; its first request has sequence_start"
            )
        stream = _Stream(self._session(), time.monotonic())
        if name:
            self._streams[name] = stream
        return stream

    def _session(self) -> Session:
        if self._free:
            return self._free.pop()
        if len(self._streams) < self._most:
            return self._bundle.open(self._threads)
        oldest = min(self._streams, key=lambda name: self._streams[name].used)
        stream = self._streams[oldest]
        if stream.lock.locked() or time.monotonic() - stream.used < IDLE_SECONDS:
            raise RequestError(
                503, f"{self._most} sequences are under way already; try again later"
            )
        del self._streams[oldest]
        return stream.session
