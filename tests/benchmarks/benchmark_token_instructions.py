"""Count instructions that a language model executes for a token on Arm boards, beside llama.cpp's.

    edgec models smollm2-135m -o smollm2.gguf
    python tests/benchmarks/benchmark_token_instructions.py smollm2.gguf --llama-source FOLDER

`FOLDER` holds the source of llama.cpp, as the package llama-cpp-python has it in
`vendor/llama.cpp`. It is compiled for each board's processor by the compiler that edgec links with,
and reads the same file; `--llama rpi5=PROGRAM` takes a program that was built so before. Both
programs are run whole, on one thread under QEMU: a prompt is read and the likeliest tokens are
given. What a token costs is the difference of two runs, in which loading drops out: of prompts of
64 and 128 tokens, and of 1 and 17 tokens that follow one of 64.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from emulated import EXIT_GROUP, count

from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.boards.artifacts import emulation
from edgec.compiler.codegen.link import driver
from edgec.compiler.errors import ToolchainError
from edgec.compiler.support.processes import run_program
from edgec.compiler.support.progress import Silent
from edgec.targets import load_target
from edgec.targets.target import Target

RECIPE = Path(__file__).parent / "llama"
BUILD_SECONDS = 3600
CONTEXT = 1024
PROMPTS = (64, 128)
REPLIES = (1, 17)
# Of ours to llama.cpp's.
BAR = 0.8

# Instructions of a run: tokens of the prompt, and tokens that follow it.
Total = Callable[[int, int], int]


def build_llama(source: Path, target: Target, folder: Path) -> Path:
    """Return llama_tokens, compiled for the processor of a target.

    Raises:
        ToolchainError: CMake is missing, or a step of it fails.
    """
    zig, _, *where = driver(target)
    select = f"{' '.join(where)} -mcpu={target.cpu.replace('-', '_')}"
    for tool, command in (("cc", f"cc {select}"), ("c++", f"c++ {select}"), ("ar", "ar")):
        wrapper = folder / tool
        wrapper.write_text(f'#!/bin/sh\nexec "{zig}" {command} "$@"\n')
        wrapper.chmod(0o755)
    settings = {
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": "aarch64",
        "CMAKE_C_COMPILER": folder / "cc",
        "CMAKE_CXX_COMPILER": folder / "c++",
        "CMAKE_AR": folder / "ar",
        "CMAKE_RANLIB": "/bin/true",
        "LLAMA_SOURCE": source.resolve(),
    }
    options = [f"-D{name}={value}" for name, value in settings.items()]
    build = folder / "build"
    for step in (
        ["cmake", "-S", str(RECIPE), "-B", str(build), *options],
        ["cmake", "--build", str(build), "--parallel", str(os.cpu_count())],
    ):
        run_program(step, f"llama.cpp does not build ({step[1]})", BUILD_SECONDS)
    return build / "llama_tokens"


def llama(program: Path, model: Path, target: Target) -> Total:
    """Return what counts llama.cpp's instructions."""

    def total(prompt: int, reply: int) -> int:
        command = [str(program), str(model), str(prompt), str(reply)]
        counted = count(target, command, EXIT_GROUP)
        if len(counted.output.split()) != reply:
            raise ToolchainError(f"llama.cpp gave {counted.output.split()}, not {reply} tokens")
        return counted.marks[-1]

    return total


def edgec(bundle: Path, target: Target) -> Total:
    """Return what counts the instructions of the bundle's program `run`."""
    libraries = emulation(target, Silent()).libraries

    def total(prompt: int, reply: int) -> int:
        text = "the" + " the" * (prompt - 1)
        command = [str(bundle / "run"), "--prompt", text, "--max-tokens", str(reply)]
        # Each token takes a run of its own.
        command += ["--speculate", "off"]
        counted = count(
            target,
            [*command, "--threads", "1", "--json"],
            EXIT_GROUP,
            LD_LIBRARY_PATH=str(libraries),
        )
        said = json.loads(counted.output)
        if (said["prompt_tokens"], len(said["tokens"])) != (prompt, reply):
            raise ToolchainError(f"edgec read {said['prompt_tokens']} and gave {said['tokens']}")
        return counted.marks[-1]

    return total


def for_a_token(total: Total) -> tuple[float, float]:
    """Return instructions of a decoded and of a prefilled token."""
    short = total(PROMPTS[0], REPLIES[0])
    decoded = (total(PROMPTS[0], REPLIES[1]) - short) / (REPLIES[1] - REPLIES[0])
    return decoded, (total(PROMPTS[1], REPLIES[0]) - short) / (PROMPTS[1] - PROMPTS[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("--boards", default="rpi5,rpi4", help="targets, by comma")
    parser.add_argument("--llama-source", type=Path, help="folder of llama.cpp's CMakeLists.txt")
    parser.add_argument("--llama", action="append", default=[], metavar="BOARD=PROGRAM")
    arguments = parser.parse_args()
    built = dict(item.split("=", 1) for item in arguments.llama)
    print("| board | token | edgec | llama.cpp | edgec to llama.cpp |")
    print("|---|---|---|---|---|", flush=True)
    for board in arguments.boards.split(","):
        target = load_target(board)
        with tempfile.TemporaryDirectory(prefix="edgec-tokens-") as name:
            folder = Path(name)
            options = CompileOptions(context=CONTEXT, runner=True)
            compile_model(arguments.model, board, options, output=folder / "model.edgec")
            ours = for_a_token(edgec(folder / "model.edgec", target))
            theirs, why = None, "no --llama-source"
            try:
                program = built.get(board)
                if program is None and arguments.llama_source is not None:
                    program = build_llama(arguments.llama_source, target, folder)
                if program is not None:
                    theirs = for_a_token(llama(Path(program), arguments.model, target))
            except ToolchainError as error:
                why = str(error)
        for number, token in enumerate(("decoded", "prefilled")):
            cells = [board, token, f"{ours[number] / 1e6:.1f} M", "cannot", ""]
            if theirs is not None:
                cells[3:] = f"{theirs[number] / 1e6:.1f} M", f"{ours[number] / theirs[number]:.2f}"
            print(f"| {' | '.join(cells)} |".replace("|  |", "| |"), flush=True)
        if theirs is None:
            print(f"    llama.cpp cannot: {why}", flush=True)
    print(f"\nbar: {BAR} of llama.cpp's on each")


if __name__ == "__main__":
    main()
