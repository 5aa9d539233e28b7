"""Measure a runtime of language models in a process of its own, one test at a time.

`python -m edgec.compiler.bench.token_worker NAME MODEL THREADS CONTEXT` reads tests as lines of
JSON and answers each by a line: `{"seconds": …}`, `{"touched_bytes": …}` or `{"cannot": why}`. The
first line, `{}`, says that the model is loaded. What libraries print is in nobody's way.
"""

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgec.compiler.bench.rivals import reason_of
from edgec.compiler.bench.token_runtimes import TOKEN_RIVALS, TokenRuntime, TokenTest

_REFERENCED = re.compile(r"^Referenced: +(\d+) kB$", re.MULTILINE)


def touched_bytes() -> int:
    """Return the size of all pages that this process used since `forget_touched`."""
    text = Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace")
    return 1024 * sum(int(size) for size in _REFERENCED.findall(text))


def forget_touched() -> None:
    """Begin to watch which pages are used (Linux: Documentation/filesystems/proc.rst)."""
    Path("/proc/self/clear_refs").write_text("1", encoding="ascii")


def answer(runtime: TokenRuntime, asked: dict[str, Any]) -> dict[str, Any]:
    """Return how long a test took, or how much memory it used."""
    watched = asked.pop("touched")
    test = TokenTest(**asked)
    if not watched:
        return {"seconds": runtime.seconds(test)}
    runtime.seconds(test, forget_touched)
    return {"touched_bytes": touched_bytes()}


def main() -> None:
    """Load, and answer until the input ends."""
    name, model, threads, context = sys.argv[1:]
    # Lines of the libraries go to standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(work: Callable[..., dict[str, Any]], *arguments: Any) -> None:
        try:
            said = work(*arguments)
        except Exception as error:
            said = {"cannot": reason_of(error)}
        answers.write(f"{json.dumps(said)}\n")
        answers.flush()

    loaded: list[TokenRuntime] = []

    def load() -> dict[str, Any]:
        loaded.append(TOKEN_RIVALS[name].load(Path(model), int(threads), int(context)))
        return {}

    say(load)
    for line in sys.stdin:
        say(answer, loaded[0], json.loads(line))


if __name__ == "__main__":
    main()
