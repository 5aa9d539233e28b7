#!/usr/bin/env python3
"""Damage files by the thousand and see that nothing crashes, hangs or takes all memory.

    python tests/benchmarks/fuzz_files.py --models 5000 --bundles 5000

Each file is looked into (a model: `inspect_path`; a bundle: `Bundle.load` and its vectors) by a
worker process with a bound of memory; a worker that dies or hangs is reported with the seed, and
another takes its place. A hang is `SECONDS` of processor time, or `LONGEST` where it only waits, as
the machine may be busy. Exit code 1 if any file fell short.
"""

import argparse
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

SECONDS = 10.0
LONGEST = 120.0
BYTES = 2 * 2**30
# Address space is more than memory: libraries are mapped, threads reserve stacks.
ADDRESS_SPACE = 8 * 2**30

Job = tuple[str, int]


def work(jobs: "Connection[Any, Any]", bundle: Path | None) -> None:
    """Look into one damaged file after the other; answers with what fell short, or nothing."""
    from support.fuzz import base_models, damage_bytes, damage_model

    from edgec.compiler.bundle.bundle import Bundle
    from edgec.compiler.errors import EdgecError
    from edgec.compiler.inspection import inspect_path
    from edgec.compiler.runtime.inputs import read_tensors

    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    models = base_models()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # What the first of its kind loads is not the time of a damaged file.
        for model in models if bundle is None else []:
            path = folder / "model.onnx"
            path.write_bytes(model.SerializeToString())
            inspect_path(path)
        jobs.send("ready")
        while (job := jobs.recv()) is not None:
            kind, seed = job
            said = ""
            try:
                if kind == "model":
                    path = folder / "model.onnx"
                    path.write_bytes(damage_model(models[seed % len(models)], seed))
                    inspect_path(path)
                elif bundle is not None:
                    copy = folder / "copy.edgec"
                    shutil.rmtree(copy, ignore_errors=True)
                    shutil.copytree(bundle, copy)
                    files = sorted(item for item in copy.rglob("*") if item.is_file())
                    file = files[seed % len(files)]
                    file.write_bytes(damage_bytes(file.read_bytes(), seed))
                    if file.suffix == ".npy":
                        read_tensors([f"x={file}"])
                    Bundle.load(copy).vectors()
            except EdgecError as error:
                if "\n" in str(error) or error.exit_code not in (1, 3, 4):
                    said = f"exit code {error.exit_code}: {error}"
            except BaseException:
                said = traceback.format_exc(limit=-2)
            used = _most_memory()
            jobs.send(said or (f"{used >> 20} MB" if used > BYTES else ""))


def _most_memory() -> int:
    """Return the most memory that this process has held [bytes].

    `getrusage` counts what its parent held when it started.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def fuzz(kind: str, count: int, bundle: Path | None, first: int = 0) -> list[str]:
    """Return a line for each damaged file that fell short."""
    context = multiprocessing.get_context("spawn")
    found: list[str] = []
    worker = None
    start = time.monotonic()
    for answered, seed in enumerate(range(first, first + count), 1):
        if worker is None:
            ours, theirs = context.Pipe()
            worker = context.Process(target=work, args=(theirs, bundle), daemon=True)
            worker.start()
            theirs.close()
            ours.recv()
        said = "hangs"
        try:
            ours.send((kind, seed))
            if _answers(ours, worker.pid):
                said = ours.recv()
        except (EOFError, OSError):
            worker.join()
            said = f"crashes (exit code {worker.exitcode})"
        if said:
            found.append(f"{kind} {seed}: {said}")
            print(found[-1], flush=True)
            worker.kill()
            worker = None
        if answered % 500 == 0:
            rate = answered / (time.monotonic() - start)
            print(f"{kind}: {answered} of {count}, {rate:.0f} per second", flush=True)
    if worker is not None:
        ours.send(None)
        worker.join()
    return found


def _answers(pipe: "Connection[Any, Any]", pid: int) -> bool:
    """Return whether a worker says something before it counts as hanging."""
    begin, before = time.monotonic(), _processor_seconds(pid)
    while not pipe.poll(1.0):
        if _processor_seconds(pid) - before > SECONDS or time.monotonic() - begin > LONGEST:
            return False
    return True


def _processor_seconds(pid: int) -> float:
    """Return what all threads of a process have used; 0 if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Run both kinds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=5000)
    parser.add_argument("--bundles", type=int, default=5000)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    given = parser.parse_args()
    found: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        bundle = None
        if given.bundles:
            import onnx
            from support.fuzz import base_models

            from edgec.compiler import compile_model

            path = Path(name) / "model.onnx"
            onnx.save(base_models()[0], path)
            bundle = compile_model(path, output=Path(name) / "model.edgec").path
        found += fuzz("model", given.models, None, given.first)
        found += fuzz("bundle", given.bundles, bundle, given.first)
    print(f"{len(found)} of {given.models + given.bundles} fall short")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
