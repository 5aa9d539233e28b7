"""What int8 saves on Arm boards, in instructions that an inference executes under QEMU.

    python tests/benchmarks/benchmark_instructions.py --boards rpi5,rpi4

Builds each model with recipe int8 and in floats, for each board, from the same photographs as
`benchmark_quantize.py`, and counts. A busy machine changes nothing of it. Prints one line per model
and board: instructions, their ratio, and the kernel templates of int8 that execute most of them.
"""

import argparse
import statistics
import tempfile
from collections import Counter
from pathlib import Path

from benchmark_quantize import PREPARATION, builds, write_crops

from edgec.compiler.boards.instructions import count_instructions
from edgec.compiler.calibration.samples import open_samples
from edgec.models import load_model_recipe
from edgec.targets import load_target

SHOWN = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=list(PREPARATION))
    parser.add_argument("--boards", default="rpi5,rpi4", help="targets, by comma")
    arguments = parser.parse_args()
    print("| board | model | int8 | floats | ratio | where int8 executes them |")
    print("|---|---|---|---|---|---|", flush=True)
    for board in arguments.boards.split(","):
        target, ratios = load_target(board), []
        for name in arguments.models:
            with tempfile.TemporaryDirectory() as text:
                folder, recipe = Path(text), load_model_recipe(name)
                model = recipe.write(folder / f"{name}.onnx")
                write_crops(folder / "images")
                counts = []
                for bundle in builds(model, dict(recipe.shapes), board, folder / "images"):
                    signature = bundle.manifest.signature
                    samples = open_samples(
                        str(folder / "images"), signature.inputs, PREPARATION[name]
                    )
                    given = next(iter(samples))
                    inputs = [given[spec.name] for spec in signature.inputs]
                    counts.append(count_instructions(bundle.library, target, inputs))
            int8, floats = counts
            ratios.append(int8.total / floats.total)
            shares: Counter[str] = Counter()
            for step in int8.steps:
                shares[step.template] += step.instructions
            where = ", ".join(
                f"{template} {share / int8.total:.0%}"
                for template, share in shares.most_common(SHOWN)
            )
            cells = (
                board,
                name,
                f"{int8.total:,}",
                f"{floats.total:,}",
                f"{ratios[-1]:.2f}",
                where,
            )
            print(f"| {' | '.join(cells)} |", flush=True)
        mean = statistics.geometric_mean(ratios)
        print(f"| {board} | geometric mean | | | {mean:.2f} | |", flush=True)


if __name__ == "__main__":
    main()
