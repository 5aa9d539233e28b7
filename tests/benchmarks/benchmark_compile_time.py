"""How long a compile takes, phase by phase, with an empty cache of kernels and with a full one.

    python tests/benchmarks/benchmark_compile_time.py digits pp-ocr-cls light_resnet50

Each compile is a process of its own, imports included. CPU time is that of the process and of the
linker; on a busy machine it says more than the time on the clock.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Slower phases are worth a column [s].
SHOWN_SECONDS = 0.05


def cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def compile_once(model: str, folder: Path) -> None:
    from edgec.compiler import CompileOptions, compile_model
    from edgec.compiler.support.progress import Silent
    from edgec.models import load_model_recipe

    phases: dict[str, tuple[float, float]] = {}

    class Timed(Silent):
        @contextmanager
        def step(self, number: int, total: int, title: str) -> Iterator[None]:
            start, cpu = time.monotonic(), cpu_seconds()
            yield
            phases[title] = time.monotonic() - start, cpu_seconds() - cpu

    recipe = load_model_recipe(model)
    path = folder / f"{model}.onnx"
    if not path.exists():
        recipe.write(path)
    output = folder / f"{time.monotonic_ns()}.edgec"
    options = CompileOptions(shapes=recipe.shapes)
    compile_model(path, "native", options, output=output, progress=Timed())
    total = tuple(map(sum, zip(*phases.values(), strict=True)))
    shown = {title: times for title, times in phases.items() if max(times) > SHOWN_SECONDS}
    for title, (wall, cpu) in {**shown, "all phases": total}.items():
        print(f"  {title:14} {wall:6.2f} s, CPU {cpu:6.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--in", dest="folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder is not None:
        compile_once(arguments.models[0], arguments.folder)
        return
    with tempfile.TemporaryDirectory(prefix="edgec-compile-time-") as folder:
        # Zig's stubs of the C library are made once for a machine.
        zig = os.environ.get("ZIG_GLOBAL_CACHE_DIR", str(Path.home() / ".cache" / "zig"))
        places = {"XDG_CACHE_HOME": f"{folder}/cache", "ZIG_GLOBAL_CACHE_DIR": zig}
        for model in arguments.models:
            for cache in ("empty", "full"):
                print(f"{model}, {cache} cache", flush=True)
                start = time.monotonic()
                command = [sys.executable, __file__, model, "--in", folder]
                subprocess.run(command, env={**os.environ, **places}, check=True)
                print(f"  process        {time.monotonic() - start:6.2f} s")


if __name__ == "__main__":
    main()
