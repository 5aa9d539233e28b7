"""Ask a server many things at once in random order, and compare with the answers one by one.

`python tests/benchmarks/random_requests.py BUNDLE --requests 1000 --streams 4 --threads 2` serves
the bundle of a language model, asks each question alone, then all of them in random order, several
at a time; some clients of the second round go away in the middle. It prints how many answers are
equal and tokens per second of both rounds, and fails if one differs.
"""

import argparse
import asyncio
import random
import time
from collections.abc import Sequence

from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.generation.sampling import Sampling
from edgec.compiler.serve.chat_model import ChatModel

THINGS = ("bread", "rivers", "glass", "winter", "trains", "salt", "horses", "paper", "stars", "tea")
# One client in so many goes away.
GOES_AWAY = 10


def question(number: int) -> str:
    """Return a text to go on with, another one for each number."""
    thing = THINGS[number % len(THINGS)]
    return f"Note {number}: a few words about {thing}, and why people like {thing}."


async def answer(model: ChatModel, number: int, tokens: int, leaves: bool) -> list[int]:
    """Return the tokens of an answer, or some of them if the client goes away."""
    sampling = Sampling(temperature=0.7 if number % 2 else 0.0, seed=number)
    found: list[int] = []
    pieces = model.pieces(question(number), tokens, sampling, ())
    async for _, piece in pieces:
        if piece is not None and piece.token is not None:
            found.append(piece.token)
        if leaves and len(found) > tokens // 3:
            break
    await pieces.aclose()  # type: ignore[attr-defined]
    return found


async def one_by_one(model: ChatModel, count: int, tokens: int) -> list[list[int]]:
    """Return all answers, each asked for when the one before is complete."""
    return [await answer(model, number, tokens, False) for number in range(count)]


async def at_once(
    model: ChatModel, order: Sequence[int], tokens: int, clients: int
) -> dict[int, list[int]]:
    """Return all answers, asked for in an order by several clients at once."""
    waiting = list(order)
    found: dict[int, list[int]] = {}

    async def client() -> None:
        while waiting:
            number = waiting.pop()
            leaves = number % GOES_AWAY == 0
            found[number] = await answer(model, number, tokens, leaves)

    await asyncio.gather(*(client() for _ in range(clients)))
    return found


async def compare(arguments: argparse.Namespace) -> bool:
    """Run both rounds, and print what they gave."""
    bundle = Bundle.load(arguments.bundle)
    model = ChatModel("model", bundle, arguments.threads, arguments.streams, arguments.requests)
    await model.start()
    count, tokens = arguments.requests, arguments.tokens
    began = time.perf_counter()
    alone = await one_by_one(model, count, tokens)
    between = time.perf_counter()
    order = random.Random(arguments.seed).sample(range(count), count)
    found = await at_once(model, order, tokens, 2 * arguments.streams)
    ended = time.perf_counter()
    await model.stop()
    equal = [found[number] == alone[number][: len(found[number])] for number in range(count)]
    rates = [
        sum(map(len, answers)) / seconds
        for answers, seconds in (
            (alone, between - began),
            (list(found.values()), ended - between),
        )
    ]
    print(f"{model.describe()}, {arguments.threads} threads")
    print(f"{sum(equal)} of {count} answers equal those one by one")
    print(f"{rates[0]:.1f} tokens/s one by one, {rates[1]:.1f} at once, prompts included")
    return all(equal)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    raise SystemExit(0 if asyncio.run(compare(parser.parse_args())) else 1)
