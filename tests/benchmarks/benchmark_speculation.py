"""Measure what guessing tokens does to the time of replies: on text that repeats, and on others.

    python tests/benchmarks/benchmark_speculation.py smollm2.edgec [--rounds 7] [--tokens 128]

The same replies with guesses ("auto") and without ("off"), in turns, in one process on one thread,
whose CPU time is taken. What counts is the median of the rounds' ratios. Exits with 1 if tokens
differ, or if text that does not repeat is more than 3 % slower. The context of the bundle has to
hold the prompts: 768 tokens do.
"""

import argparse
import statistics
import sys
import time

from edgec.compiler import Generator, Sampling

CODE = '''def load(path):
    """Read a table of numbers, separated by commas."""
    rows = []
    with open(path) as stream:
        for line in stream:
            fields = line.strip().split(",")
            rows.append([float(field) for field in fields])
    return rows


def mean_of_columns(rows):
    """Return the mean of each column."""
    sums = [0.0] * len(rows[0])
    for row in rows:
        for place, value in enumerate(row):
            sums[place] += value
    return [total / len(rows) for total in sums]
'''
REPEATS = {
    "code, once more": (
        f"Here is a file:\n\n{CODE}\nHere is the same file with one name changed:\n\n"
    ),
    "a summary with quotes": (
        "The meeting began at nine. Anna said: we must finish the report on the bridge before the "
        "end of the month. Paul said: the measurements of the bridge are not complete. They "
        "agreed to measure the bridge again on Monday, and to finish the report before the end of "
        "the month.\n\nSummary with quotes:\n\nAnna said: we must finish the report"
    ),
}
OTHER = {
    "a story": "Once upon a time, far away from every town,",
    "an explanation": "Why is the sky blue? Explain it to a child.\n\n",
}
# Drawn, so that a small model does not fall into repeating itself.
DRAWN = Sampling(temperature=1.0, top_p=0.95, seed=11)
MOST_SLOWER = 1.03


def reply(
    generator: Generator, prompt: str, count: int, sampling: Sampling
) -> tuple[list[int], float]:
    """Return tokens, and CPU seconds from the first to the last."""
    generator.read([1])
    found = generator.generate(prompt, max_tokens=count, sampling=sampling)
    next(found)
    began = time.process_time()
    found.complete()
    return found.tokens, time.process_time() - began


def main() -> int:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=128)
    asked = parser.parse_args()
    off, auto = (Generator(asked.bundle, threads=1, speculate=how) for how in ("off", "auto"))
    failed = False
    print(f"{'text':24} {'tokens/s':>9} {'guessing':>9} {'ratio':>6}  guesses right")
    for kind, texts in (("repeats", REPEATS), ("other", OTHER)):
        for name, prompt in texts.items():
            sampling = Sampling() if kind == "repeats" else DRAWN
            ratios, rates = [], []
            before = auto.guesses
            for number in range(asked.rounds + 1):
                order = (off, auto) if number % 2 else (auto, off)
                found = {g is auto: reply(g, prompt, asked.tokens, sampling) for g in order}
                if found[True][0] != found[False][0]:
                    print(f"{name}: tokens differ")
                    failed = True
                if number:
                    ratios.append(found[False][1] / found[True][1])
                    steps = len(found[True][0]) - 1
                    rates.append([steps / found[guessing][1] for guessing in (False, True)])
            after = auto.guesses
            right, all_ = after.right - before.right, after.guessed - before.guessed
            plain, guessing = (statistics.median(column) for column in zip(*rates, strict=True))
            ratio = statistics.median(ratios)
            print(f"{name:24} {plain:9.1f} {guessing:9.1f} {ratio:6.2f}  {right} of {all_}")
            failed |= kind == "other" and 1 / ratio > MOST_SLOWER
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
