"""Run the language model of a bundle for several clients at once.

There is a generator for each stream, with a cache of its own. A request gets the free one whose
cache begins with the most of its prompt: what they share is not computed again.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile

from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.errors import BadInputError
from edgec.compiler.generation.generator import Generator
from edgec.compiler.generation.reply import Piece, Reply
from edgec.compiler.generation.sampling import Sampling
from edgec.compiler.serve.request_error import RequestError

Prompt = str | Sequence[Mapping[str, str]]


class ChatModel:
    """A chat model is a language model under a name, with a generator for each stream.

    Attributes:
        name: what clients call it.
        bundle: the bundle.
    """

    def __init__(
        self, name: str, bundle: Bundle, threads: int, streams: int, most_waiting: int
    ) -> None:
        self.name = name
        self.bundle = bundle
        self._generators = [Generator(bundle, threads) for _ in range(streams)]
        self._free = list(self._generators)
        self._freed = asyncio.Condition()
        self._waiting = 0
        self._most_waiting = most_waiting
        self._executor = ThreadPoolExecutor(streams, thread_name_prefix="edgec-serve")

    async def start(self) -> None:
        """Begin to answer."""

    async def stop(self) -> None:
        """Answer no more."""
        self._executor.shutdown(wait=True)

    def describe(self) -> str:
        """Return in words how requests are run."""
        context = self._generators[0].context
        return f"{len(self._generators)} streams of up to {context} tokens"

    async def pieces(
        self, prompt: Prompt, most_tokens: int | None, sampling: Sampling, stops: Sequence[str]
    ) -> AsyncIterator[tuple[Reply, Piece | None]]:
        """Yield the reply with each of its pieces; first with none, when the prompt is read.

        Whoever stops to iterate frees the stream.

        Raises:
            RequestError: 400, the prompt does not fit; 503, too many requests wait.
        """
        tokens = self._tokens(prompt)
        generator = await self._take(tokens)
        gone = threading.Event()
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[Reply, Piece | None] | Exception | None] = asyncio.Queue()

        def put(item: tuple[Reply, Piece | None] | Exception | None) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, item)

        def work() -> None:
            try:
                reply = generator.generate(
                    prompt,
                    max_tokens=generator.context if most_tokens is None else most_tokens,
                    sampling=sampling,
                    stop=stops,
                )
                put((reply, None))
                for piece in reply:
                    put((reply, piece))
                    if gone.is_set():
                        break
                put(None)
            except Exception as error:
                put(error)

        done = loop.run_in_executor(self._executor, work)
        try:
            while (item := await queue.get()) is not None:
                if isinstance(item, BadInputError):
                    raise RequestError(400, str(item))
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            gone.set()
            # The step that is under way ends first; nobody may use the generator before.
            await asyncio.shield(self._give_back(done, generator))

    def _tokens(self, prompt: Prompt) -> list[int]:
        try:
            return self._generators[0].prompt_tokens(prompt)
        except BadInputError as error:
            raise RequestError(400, str(error)) from None

    async def _take(self, tokens: Sequence[int]) -> Generator:
        async with self._freed:
            if not self._free and self._waiting >= self._most_waiting:
                raise RequestError(503, f"{self._waiting} requests wait already; try again later")
            self._waiting += 1
            try:
                await self._freed.wait_for(lambda: self._free)
            finally:
                self._waiting -= 1
            best = max(self._free, key=lambda g: _shared(g.cached, tokens))
            self._free.remove(best)
            return best

    async def _give_back(self, done: "asyncio.Future[None]", generator: Generator) -> None:
        await done
        async with self._freed:
            self._free.append(generator)
            self._freed.notify()


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two texts share from their beginning."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
