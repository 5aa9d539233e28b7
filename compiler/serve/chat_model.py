"""Run the language model of a bundle for several clients at once.

There is a generator for each stream, with a cache of its own. A request gets the free one whose
cache begins with the most of its prompt: what they share is not computed again. One thread computes
for all: prompts chunk by chunk, one after the other, and between their chunks a token for each
stream that replies, in one run where the bundle has programs for that (`--streams`).
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.errors import BadInputError, UsageError
from edgec.compiler.generation.generator import Generator, Speculation, Tokens
from edgec.compiler.generation.reply import Guide, Piece, Reply, read_together
from edgec.compiler.generation.sampling import Sampling
from edgec.compiler.serve.request_error import RequestError

Prompt = str | Sequence[Mapping[str, str]]
# Tokens of a prompt that are read before the others get their next token.
CHUNK = 64


@dataclass(eq=False)
class _Work:
    """Work is a request that has a generator.

    Attributes:
        generator: its own until it is done.
        tokens: the prompt.
        most_tokens: of the reply; None is as many as the context holds.
        sampling: how tokens are chosen.
        stops: texts before which the reply ends.
        grammar: of the reply; None lets it be anything.
        likeliest: of how many tokens pieces say how likely they are; None is of none.
        loop: of those who wait for it.
        queue: where they wait: for the reply with each piece, an error, or None at its end.
        gone: nobody waits any more.
        done: it has been left alone.
        reply: once the prompt is read.
    """

    generator: Generator
    tokens: Tokens
    most_tokens: int | None
    sampling: Sampling
    stops: Sequence[str]
    grammar: str | None
    likeliest: int | None
    loop: asyncio.AbstractEventLoop
    queue: "asyncio.Queue[tuple[Reply, Piece | None] | Exception | None]"
    gone: bool = False
    done: asyncio.Event = field(default_factory=asyncio.Event)
    reply: Reply | None = None

    def put(self, item: tuple[Reply, Piece | None] | Exception | None) -> None:
        """Tell those who wait."""
        self.loop.call_soon_threadsafe(self.queue.put_nowait, item)

    def advance(self) -> bool:
        """Read a part of the prompt, or give the next piece; return whether more may come."""
        try:
            if not self.gone and (self._read() if self.reply is None else self._step(self.reply)):
                return True
            self.put(None)
        except Exception as error:
            self.put(error)
        self.loop.call_soon_threadsafe(self.done.set)
        return False

    def _read(self) -> bool:
        ids = list(self.tokens.ids)
        known = _shared(self.generator.cached, ids)
        if len(ids) <= self.generator.context and known + CHUNK < len(ids):
            self.generator.read(ids[: known + CHUNK])
            return True
        most = self.generator.context if self.most_tokens is None else self.most_tokens
        self.reply = self.generator.generate(
            self.tokens,
            max_tokens=most,
            sampling=self.sampling,
            stop=self.stops,
            guide=self._guide(),
            logprobs=self.likeliest,
        )
        self.put((self.reply, None))
        return True

    def _guide(self) -> Guide | None:
        if self.grammar is None:
            return None
        from edgec.compiler.generation.guide import TextGuide

        return TextGuide(self.generator.guide_tokenizer, self.grammar)

    def _step(self, reply: Reply) -> bool:
        piece = next(reply, None)
        if piece is not None:
            self.put((reply, piece))
        return reply.reason is None


class ChatModel:
    """A chat model is a language model under a name, with a generator for each stream.

    Attributes:
        name: what clients call it.
        bundle: the bundle.
    """

    def __init__(
        self,
        name: str,
        bundle: Bundle,
        threads: int,
        streams: int,
        most_waiting: int,
        speculate: Speculation | str = "auto",
    ) -> None:
        """Load a model.

        Args:
            name: what clients call it.
            bundle: the bundle.
            threads: threads to compute on.
            streams: requests that are answered at the same time; at least as many as the bundle has
                texts in one run.
            most_waiting: others that may wait for them.
            speculate: how many tokens are guessed at once while one stream alone replies.
        """
        self.name = name
        self.bundle = bundle
        self._generators = _open(bundle, threads, streams, speculate)
        self._free = list(self._generators)
        self._freed = asyncio.Condition()
        self._waiting = 0
        self._most_waiting = most_waiting
        self._arrived: deque[_Work] = deque()
        self._wanted = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._compute, name="edgec-serve", daemon=True)

    async def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    async def stop(self) -> None:
        """Answer no more."""
        with self._wanted:
            self._stopping = True
            self._wanted.notify()
        await asyncio.to_thread(self._thread.join)

    def describe(self) -> str:
        """Return in words how requests are run."""
        first = self._generators[0]
        together = f", {first.texts} of them in one run" if first.texts > 1 else ""
        return f"{len(self._generators)} streams of up to {first.context} tokens{together}"

    async def pieces(
        self,
        prompt: Prompt,
        most_tokens: int | None,
        sampling: Sampling,
        stops: Sequence[str],
        grammar: str | None = None,
        likeliest: int | None = None,
    ) -> AsyncIterator[tuple[Reply, Piece | None]]:
        """Yield the reply with each of its pieces; first with none, when the prompt is read.

        Whoever stops to iterate frees the stream.

        Raises:
            RequestError: 400, the prompt does not fit; 503, too many requests wait.
        """
        try:
            ids = await asyncio.to_thread(self._generators[0].prompt_tokens, prompt)
        except BadInputError as error:
            raise RequestError(400, str(error)) from None
        generator = await self._take(ids)
        tokens = Tokens(ids, isinstance(prompt, str))
        loop = asyncio.get_running_loop()
        asked = (tokens, most_tokens, sampling, stops, grammar, likeliest)
        work = _Work(generator, *asked, loop, asyncio.Queue())
        with self._wanted:
            self._arrived.append(work)
            self._wanted.notify()
        try:
            while (item := await work.queue.get()) is not None:
                if isinstance(item, BadInputError | UsageError):
                    raise RequestError(400, str(item))
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            work.gone = True
            # The step that is under way ends first; nobody may use the generator before.
            await asyncio.shield(self._give_back(work))

    def text_of(self, token: int) -> bytes:
        """Return what a token stands for; the text of a special one."""
        tokenizer = self._generators[0].tokenizer
        text = tokenizer.bytes_of(token)
        if text is not None:
            return text
        return tokenizer.decode([token], special=True, continues=True).encode()

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

    async def _give_back(self, work: _Work) -> None:
        await work.done.wait()
        async with self._freed:
            self._free.append(work.generator)
            self._freed.notify()

    def _compute(self) -> None:
        """Compute for all requests, until the server stops: on a thread of its own."""
        reading: list[_Work] = []
        replying: list[_Work] = []
        while True:
            with self._wanted:
                while not (self._arrived or reading or replying or self._stopping):
                    self._wanted.wait()
                if self._stopping:
                    break
                reading += self._arrived
                self._arrived.clear()
            if reading:
                # Shorter ones do not wait for the end of longer ones.
                work = reading.pop(0)
                if work.advance():
                    (reading if work.reply is None else replying).append(work)
            read_together([work.reply for work in replying if work.reply and not work.gone])
            replying = [work for work in replying if work.advance()]
        for work in (*self._arrived, *reading, *replying):
            work.gone = True
            work.advance()


def _open(
    bundle: Bundle, threads: int, streams: int, speculate: Speculation | str
) -> list[Generator]:
    """Return generators, as many as possible of one session."""
    generators: list[Generator] = []
    while len(generators) < streams:
        first = Generator(bundle, threads, speculate=speculate)
        generators.append(first)
        generators += (
            Generator(bundle, threads, beside=first, text=text, speculate=speculate)
            for text in range(1, first.texts)
        )
    return generators


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two texts share from their beginning."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
