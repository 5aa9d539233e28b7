"""Answer requests together: rows of several requests in one run of a program of a larger batch.

A bundle that was compiled with `--shape x={1,4,16},3,224,224` has a program for each of these
numbers of rows. Requests that came while a run was under way are answered by the program of their
sum, filled up with zeros to the next larger one. So a lone request waits for nobody.
"""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.errors import TensorInputError
from edgec.compiler.ir.signature import Signature
from edgec.compiler.runtime.inputs import generate_inputs
from edgec.compiler.runtime.session import Session
from edgec.compiler.serve.request_error import RequestError

Arrays = Mapping[str, NDArray[Any]]
# What a session of one request sees, against one row of a batch, in units of the largest value.
SAME = 1e-3


@dataclass(eq=False)
class _Job:
    inputs: Arrays
    rows: int  # 0: it fits a program by itself, and runs by itself
    answer: asyncio.Future[Arrays]


class Batcher:
    """A batcher runs a bundle without state for many callers.

    Attributes:
        batches: numbers of rows that there are programs for; empty if requests run one by one.
        why_single: why they do; empty if they do not.
    """

    def __init__(
        self, bundle: Bundle, threads: int, sessions: int, wait_seconds: float, most_waiting: int
    ) -> None:
        self._signatures = tuple(bundle.manifest.signatures.values())
        self._sessions = [bundle.open(threads) for _ in range(sessions)]
        self._wait_seconds = wait_seconds
        self._queue: asyncio.Queue[_Job] = asyncio.Queue(most_waiting)
        self._held: list[_Job | None] = [None] * sessions
        self._executor = ThreadPoolExecutor(sessions, thread_name_prefix="edgec-serve")
        self._tasks: list[asyncio.Task[None]] = []
        self.batches, self.why_single = batch_sizes(self._signatures)
        bounds = bundle.manifest.settings.index_bounds
        if self.batches and not rows_are_independent(self._sessions[0], self._signatures, bounds):
            self.why_single = "its rows depend on one another"
            self.batches = ()

    async def start(self) -> None:
        """Begin to answer."""
        self._tasks = [asyncio.create_task(self._serve(n)) for n in range(len(self._sessions))]

    async def stop(self) -> None:
        """Answer no more; requests that wait are refused."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while not self._queue.empty():
            job = self._queue.get_nowait()
            if not job.answer.done():
                job.answer.set_exception(RequestError(503, "the server is stopping"))
        self._executor.shutdown(wait=True)

    async def run(self, inputs: Arrays) -> Arrays:
        """Return outputs by name.

        Raises:
            RequestError: 400, no program takes the inputs; 503, too many requests wait.
        """
        job = _Job(inputs, self._rows(inputs), asyncio.get_running_loop().create_future())
        try:
            self._queue.put_nowait(job)
        except asyncio.QueueFull:
            raise RequestError(
                503, f"{self._queue.maxsize} requests wait already; try again later"
            ) from None
        return await job.answer

    def describe(self) -> str:
        """Return in words how requests are run."""
        if self.batches:
            return f"requests share runs of up to {self.batches[-1]} rows"
        return f"requests run one by one: {self.why_single}"

    def _rows(self, inputs: Arrays) -> int:
        """Return the rows of a request that can share a run."""
        if not self.batches or not all(array.ndim for array in inputs.values()):
            return 0
        rows = {array.shape[0] for array in inputs.values()}
        spec = {s.name: s for s in self._signatures[0].inputs}
        fits = set(inputs) == set(spec) and all(
            array.shape[1:] == spec[name].shape[1:] and str(array.dtype) == spec[name].dtype
            for name, array in inputs.items()
        )
        if not fits or len(rows) != 1:
            return 0
        (count,) = rows
        return count if 0 < count <= self.batches[-1] else 0

    async def _serve(self, number: int) -> None:
        session = self._sessions[number]
        while True:
            jobs = await self._gather(number)
            # Clients that went away are not waited for.
            jobs = [job for job in jobs if not job.answer.cancelled()]
            if jobs:
                await self._answer(session, jobs)

    async def _gather(self, number: int) -> list[_Job]:
        """Wait for a request, and a moment for more that fit into the same run."""
        first = self._held[number] or await self._queue.get()
        self._held[number] = None
        jobs, rows = [first], first.rows
        if first.rows and self._wait_seconds:
            await asyncio.sleep(self._wait_seconds)
        while first.rows and rows < self.batches[-1] and not self._queue.empty():
            job = self._queue.get_nowait()
            if job.rows and rows + job.rows <= self.batches[-1]:
                jobs.append(job)
                rows += job.rows
            else:
                self._held[number] = job
                break
        return jobs

    async def _answer(self, session: Session, jobs: Sequence[_Job]) -> None:
        loop = asyncio.get_running_loop()
        try:
            answers = await loop.run_in_executor(self._executor, self._run, session, jobs)
        except Exception as error:
            await self._refuse(session, jobs, error)
            return
        for job, answer in zip(jobs, answers, strict=True):
            if not job.answer.done():
                job.answer.set_result(answer)

    async def _refuse(self, session: Session, jobs: Sequence[_Job], error: Exception) -> None:
        """Find whose request it was that failed: others must not suffer for it."""
        if len(jobs) > 1:
            for job in jobs:
                await self._answer(session, [job])
            return
        if isinstance(error, TensorInputError):
            error = RequestError(400, str(error))
        if not jobs[0].answer.done():
            jobs[0].answer.set_exception(error)

    def _run(self, session: Session, jobs: Sequence[_Job]) -> list[Arrays]:
        if not jobs[0].rows:
            return [session.run(jobs[0].inputs)]
        rows = sum(job.rows for job in jobs)
        size = next(batch for batch in self.batches if batch >= rows)
        outputs = session.run(_stack([job.inputs for job in jobs], size))
        answers: list[Arrays] = []
        at = 0
        for job in jobs:
            answers.append({name: array[at : at + job.rows] for name, array in outputs.items()})
            at += job.rows
        return answers


def batch_sizes(signatures: Sequence[Signature]) -> tuple[tuple[int, ...], str]:
    """Return numbers of rows that there are programs for, in order; or none, and why.

    The programs may differ in the first axis only, which all inputs and outputs must share.
    """
    if len(signatures) < 2:
        return (), "it has one program"
    sizes = []
    shapes = set()
    for signature in signatures:
        specs = [*signature.inputs, *signature.outputs]
        rows = {spec.shape[0] if spec.shape else None for spec in specs}
        if len(rows) != 1 or None in rows:
            return (), "its inputs and outputs do not share their first axis"
        sizes += [rows.pop() or 0]
        shapes.add(tuple((spec.name, spec.shape[1:], spec.dtype) for spec in specs))
    if len(shapes) > 1:
        return (), "its programs differ in more than the first axis"
    return tuple(sorted(sizes)), ""


def rows_are_independent(
    session: Session, signatures: Sequence[Signature], index_bounds: Mapping[str, int]
) -> bool:
    """Return whether each row of the largest program's outputs depends on its own row alone.

    Measured: rows of random values are run together, and in another order.
    """
    largest = max(signatures, key=lambda s: s.inputs[0].shape[0] or 0)
    inputs = generate_inputs(largest.inputs, 0, index_bounds)
    rows = largest.inputs[0].shape[0] or 1
    order = np.roll(np.arange(rows), 1)
    straight = session.run(inputs)
    turned = session.run({name: array[order] for name, array in inputs.items()})
    others = generate_inputs(largest.inputs, 1, index_bounds)
    changed = session.run(
        {name: np.concatenate([array[:1], others[name][1:]]) for name, array in inputs.items()}
    )
    return all(
        _same(straight[name][order], turned[name]) and _same(straight[name][:1], changed[name][:1])
        for name in straight
    )


def _same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    if one.dtype.kind not in "fV":
        return bool(np.mean(one == other) > 1 - SAME)
    a, b = one.astype(np.float64), other.astype(np.float64)
    scale = float(np.max(np.abs(a), initial=0.0)) or 1.0
    return bool(np.max(np.abs(a - b), initial=0.0) <= SAME * scale)


def _stack(requests: Sequence[Arrays], size: int) -> dict[str, NDArray[Any]]:
    stacked = {}
    for name in requests[0]:
        arrays = [request[name] for request in requests]
        missing = size - sum(array.shape[0] for array in arrays)
        if missing:
            arrays.append(np.zeros((missing, *arrays[0].shape[1:]), arrays[0].dtype))
        stacked[name] = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return stacked
