"""Print the SHA-256 of `model.so` for every target, two models and three recipes.

A change that moves code without changing what it does leaves all of them as they are:

    python tests/benchmarks/library_digests.py --write before.json    # on the old commit
    python tests/benchmarks/library_digests.py --check before.json    # on the new one
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from edgec.targets import target_names

SHAPES = {"digits": "image=1,1,8,8", "pp-ocr-cls": "x=1,3,48,192"}
RECIPES: dict[str, tuple[str, ...]] = {
    "float": (),
    "int8": ("--quantize", "int8"),
    "channels-50": ("--compress", "channels-50"),
}
SAMPLES = 16


def main() -> int:
    """Compile all combinations; compare with a file of digests or write one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, metavar="FILE")
    parser.add_argument("--check", type=Path, metavar="FILE")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="part of the name of a combination")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        digests = digest_all(Path(folder), arguments.jobs, arguments.only)
    if arguments.write:
        arguments.write.write_text(json.dumps(digests, indent=1) + "\n")
    if not arguments.check:
        return 0
    before = json.loads(arguments.check.read_text())
    changed = [name for name, digest in digests.items() if before.get(name) != digest]
    print(f"{len(digests) - len(changed)} of {len(digests)} as in {arguments.check}")
    for name in changed:
        print(f"changed: {name}")
    return 1 if changed else 0


def digest_all(folder: Path, jobs: int, only: str) -> dict[str, str]:
    """Return the digest of each library by `model/recipe/target`."""
    for model, shape in SHAPES.items():
        run_edgec("models", model, "-o", str(folder / f"{model}.onnx"))
        dimensions = [int(d) for d in shape.partition("=")[2].split(",")]
        random = np.random.default_rng(0)
        values = random.standard_normal((SAMPLES, *dimensions[1:])).astype(np.float32)
        np.save(folder / f"{model}.npy", values)
    combinations = [
        (model, recipe, target)
        for model in SHAPES
        for recipe in RECIPES
        for target in sorted({"native", *target_names()})
        if only in f"{model}/{recipe}/{target}"
    ]
    with ThreadPoolExecutor(jobs) as pool:
        found = pool.map(lambda combination: digest(folder, *combination), combinations)
        return {"/".join(c): d for c, d in zip(combinations, found, strict=True)}


def digest(folder: Path, model: str, recipe: str, target: str) -> str:
    """Compile one combination without the parity check, which does not shape the library."""
    bundle = folder / f"{model}-{recipe}-{target}.edgec"
    options = list(RECIPES[recipe])
    if options:
        options += ["--calibration", str(folder / f"{model}.npy")]
    run_edgec(
        "compile",
        str(folder / f"{model}.onnx"),
        *("-t", target, "-o", str(bundle), "--shape", SHAPES[model], "--no-parity", "-q"),
        *options,
    )
    found = hashlib.sha256((bundle / "model.so").read_bytes()).hexdigest()
    print(f"{model}/{recipe}/{target}  {found}", flush=True)
    return found


def run_edgec(*arguments: str) -> None:
    """Run the command line; its messages are shown if it fails."""
    command = [sys.executable, "-m", "edgec.compiler", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stderr}")


if __name__ == "__main__":
    sys.exit(main())
