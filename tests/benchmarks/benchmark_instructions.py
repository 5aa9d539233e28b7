"""What int8 saves on Arm boards, in instructions that an inference executes under QEMU.

    python tests/benchmarks/benchmark_instructions.py --boards rpi5,rpi4 \\
        --against onnxruntime,ncnn --ncnn-tools FOLDER

Builds each model with recipe int8 and in floats, for each board, from the same photographs as
`benchmark_quantize.py`, and counts. A busy machine changes nothing of it. Prints one line per model
and board: instructions, their ratio, and the kernel templates of int8 that execute most of them.

`--against` counts one inference of other runtimes' packages for arm64, too: in int8 of the file of
their own quantizer that executes least, in floats, and, of ncnn, in floats of 16 bits, which it
takes by itself where a processor has them. ncnn's int8 needs its tools ncnn2table and ncnn2int8,
which its package does not hold.
"""

import argparse
import itertools
import statistics
import tempfile
from collections import Counter
from pathlib import Path

import onnx
from benchmark_quantize import PREPARATION, builds, write_crops
from rival_instructions import FORMS, Asked, Found, count_rival

from edgec.compiler.boards.instructions import InstructionCount, count_instructions
from edgec.compiler.calibration.samples import open_samples
from edgec.compiler.frontend.specialize import specialize
from edgec.models import load_model_recipe
from edgec.targets import load_target

SHOWN = 3
# Int8's to the rivals' least in int8.
BAR = 0.8
KINDS = {"onnxruntime": ("int8", "floats"), "ncnn": ("int8", "floats", "halves")}


def where(int8: InstructionCount) -> str:
    """Return the templates that execute most, with their shares."""
    shares: Counter[str] = Counter()
    for step in int8.steps:
        shares[step.template] += step.instructions
    return ", ".join(
        f"{template} {share / int8.total:.0%}" for template, share in shares.most_common(SHOWN)
    )


def cells_of(int8: int, found: dict[str, Found]) -> tuple[list[str], float | None]:
    """Return what the rivals execute, and int8's ratio to the least that one does in int8."""
    cells = [
        f"{said.instructions[kind]:,}" if kind in said.instructions else "cannot"
        for rival, said in found.items()
        for kind in KINDS[rival]
    ]
    theirs = [said.instructions["int8"] for said in found.values() if "int8" in said.instructions]
    ratio = int8 / min(theirs) if theirs else None
    return [*cells, "" if ratio is None else f"{ratio:.2f}"], ratio


def row(cells: list[str]) -> None:
    print(f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |"), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=list(PREPARATION))
    parser.add_argument("--boards", default="rpi5,rpi4", help="targets, by comma")
    parser.add_argument("--against", default="", help=f"of {', '.join(FORMS)}, by comma")
    parser.add_argument("--ncnn-tools", type=Path, help="folder of ncnn2table and ncnn2int8")
    arguments = parser.parse_args()
    rivals = [name for name in arguments.against.split(",") if name]
    targets = {board: load_target(board) for board in arguments.boards.split(",")}
    columns = [f"{rival} {kind}" for rival in rivals for kind in KINDS[rival]]
    head = ["board", "model", "int8", "floats", "ratio", "where int8 executes them", *columns]
    head += ["int8 to the least int8"] * bool(rivals)
    row(head)
    print(f"|{'---|' * len(head)}", flush=True)
    ratios: dict[str, list[float]] = {board: [] for board in targets}
    to_rivals: dict[str, list[float]] = {board: [] for board in targets}
    with tempfile.TemporaryDirectory() as text:
        asked, counts = {}, {}
        for name in arguments.models:
            folder, recipe = Path(text) / name, load_model_recipe(name)
            folder.mkdir()
            model, static = recipe.write(folder / f"{name}.onnx"), folder / "static.onnx"
            onnx.save(specialize(onnx.load(model), recipe.shapes, {}).proto, static)
            write_crops(folder / "images", name)
            for board, target in targets.items():
                for bundle in builds(model, dict(recipe.shapes), board, folder / "images"):
                    signature = bundle.manifest.signature
                    images = str(folder / "images")
                    samples = open_samples(images, signature.inputs, PREPARATION[name])
                    given = next(iter(samples))
                    inputs = [given[spec.name] for spec in signature.inputs]
                    kind = bundle.path.stem
                    counts[name, board, kind] = count_instructions(bundle.library, target, inputs)
                    asked[name] = Asked(static, signature, samples, arguments.ncnn_tools)
        found = {rival: count_rival(rival, asked, targets) for rival in rivals}
        for board, name in itertools.product(targets, arguments.models):
            int8, floats = counts[name, board, "int8"], counts[name, board, "float"]
            ratio = int8.total / floats.total
            ratios[board].append(ratio)
            cells = [board, name, f"{int8.total:,}", f"{floats.total:,}", f"{ratio:.2f}"]
            theirs = {rival: on[name, board] for rival, on in found.items()}
            more, to_best = cells_of(int8.total, theirs)
            if to_best is not None:
                to_rivals[board].append(to_best)
            row([*cells, where(int8), *(more if rivals else [])])
            for rival, said in theirs.items():
                for why in said.cannot:
                    print(f"    {rival} cannot: {why}", flush=True)
    for board in targets:
        mean = statistics.geometric_mean(ratios[board])
        cells = [board, "geometric mean", "", "", f"{mean:.2f}", ""]
        if to_rivals[board]:
            mean = statistics.geometric_mean(to_rivals[board])
            cells += ["" for _ in columns] + [f"{mean:.2f} (bar: {BAR} on each)"]
        row(cells)


if __name__ == "__main__":
    main()
