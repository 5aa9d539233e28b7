"""The official ONNX backend cases through edgec: what passes, what is refused, what is wrong.

    python tests/conformance/run.py [--filter REGEX] [--jobs 2] [--timeout 60]
        [--check] [--update] [--json FILE] [--onnxruntime]

Each case is a model with inputs and expected outputs. It goes through edgec's own read, simplify,
import, lowering and code generation for this machine and runs there; its outputs are compared as
ONNX's own test runner does. A worker process serves one case after another; if it dies or takes
too long, that case alone is lost.

A case is `pass`, `refused` (a clear error of edgec's before any code is generated), `wrong`
(values, shape or dtype), `crash` (any other exception, or the worker died) or `timeout`.
"""

import argparse
import re
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # As a program it lies in the folder that is searched, and not beside it.
    sys.path[0] = str(Path(__file__).parent.parent)

from conformance.attempt import run_edgec
from conformance.cases import load_cases
from conformance.known import KNOWN, check_known, read_known, update_known, write_known
from conformance.rival import run_onnxruntime
from conformance.tables import Ticker, tables, write_json
from conformance.worker import Workers


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cases; exit code 1 if `--check` finds that the list of failures does not hold."""
    parser = argparse.ArgumentParser(description="official ONNX backend cases through edgec")
    parser.add_argument("--filter", default="", help="only cases whose name matches this regex")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes")
    parser.add_argument("--timeout", type=float, default=60, help="seconds for one case")
    parser.add_argument("--check", action="store_true", help="compare with the known failures")
    parser.add_argument("--update", action="store_true", help="rewrite the known failures")
    parser.add_argument("--json", type=Path, help="write every outcome here")
    parser.add_argument("--onnxruntime", action="store_true", help="show ONNX Runtime beside it")
    options = parser.parse_args(argv)

    start = time.monotonic()
    with Workers(run_edgec, options.jobs) as workers:
        every = load_cases()
        cases = [case for case in every if re.search(options.filter, case.name)]
        if not cases:
            parser.error(f"no case matches {options.filter!r}")
        outcomes = workers.run(cases, options.timeout, Ticker("edgec", len(cases)))
    rival = None
    if options.onnxruntime:
        with Workers(run_onnxruntime, options.jobs) as workers:
            rival = workers.run(cases, options.timeout, Ticker("ONNX Runtime", len(cases)))
    print(tables(cases, outcomes, rival))
    if len(cases) <= 40:
        for case in cases:
            outcome = outcomes[case.name]
            print(f"{outcome.status:<8}{outcome.seconds:6.2f} s  {case.name}  {outcome.message}")
    if options.json:
        write_json(options.json, cases, outcomes, rival)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{time.monotonic() - start:.0f} s with {options.jobs} workers, which computed for "
        f"{used.ru_utime + used.ru_stime:.0f} s"
    )

    known = read_known(KNOWN)
    if options.update:
        exist = {case.name for case in every}
        known = {name: item for name, item in known.items() if name in exist}
        write_known(KNOWN, update_known(known, cases, outcomes))
    problems = check_known(known, outcomes) if options.check and not options.update else []
    if options.check and not options.filter:
        exist = {case.name for case in cases}
        problems += [f"{name} is listed but is no case" for name in known if name not in exist]
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
