"""Measure what a board downloads when one layer of a model changed, against the layer's bytes.

    python tests/benchmarks/benchmark_delta.py [MODEL]

Some layers, from the largest to small ones, get other weights one at a time; each model is
compiled, released, and put together on a board that has the first.
"""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.releases import CHANNEL, QUICK, Releases

from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.options import parse_shapes
from edgec.compiler.update.client import Mirror, UpdateClient
from edgec.compiler.update.install import build_bundle
from edgec.models import load_model_recipe

RANKS = (0.0, 0.1, 0.25, 0.5, 0.75)


def main(name: str = "efficientnet-lite0", *shapes: str) -> None:
    """Print a line for each layer."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["XDG_CONFIG_HOME"] = scratch
        model = onnx.load(load_model_recipe(name).write(folder / "model.onnx"))
        given, programs = parse_shapes(shapes)
        options = CompileOptions(shapes=given, programs=programs, parity=False)
        releases = Releases.new(folder / "repository")
        (folder / "client").mkdir()
        client = UpdateClient(
            folder / "client", releases.root, [Mirror.of(str(releases.folder))], QUICK
        )

        def release(number: int) -> tuple[int, int]:
            """Return the bytes of the bundle, and those that a board with the first downloads."""
            bundle = compile_model(model, "native", options, output=folder / f"{number}.edgec")
            releases.open().publish(CHANNEL, bundle)
            before = client.received_bytes
            found = client.find(CHANNEL, "pi")
            assert found is not None
            old = (releases.open().release(CHANNEL, 1), folder / "1.edgec") if number > 1 else None
            build_bundle(found, folder / f"built-{number}", client.chunk, old)
            return found.size_bytes, client.received_bytes - before

        size, whole = release(1)
        print(f"{name}: a bundle of {size:,} bytes, {whole:,} downloaded by a new board")
        layers = sorted(
            (t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT),
            key=lambda t: -np.prod(t.dims),
        )
        layers = [layer for layer in layers if len(layer.dims) > 1]
        for number, rank in enumerate(RANKS, 2):
            layer = layers[int(rank * len(layers))]
            original = layer.SerializeToString()
            weights = numpy_helper.to_array(layer)
            noise = np.random.default_rng(number).normal(size=weights.shape) * weights.std() * 0.1
            changed = (weights + noise).astype(np.float32)
            layer.CopyFrom(numpy_helper.from_array(changed, layer.name))
            _, delta = release(number)
            layer.ParseFromString(original)
            print(
                f"  {layer.name[:40]:40} {weights.nbytes:>9,} bytes: {delta:>9,} downloaded, "
                f"{delta / weights.nbytes:.2f} of the layer",
                flush=True,
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
