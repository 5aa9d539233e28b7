"""Measure what a board downloads when one layer of a model changed, against the layer's bytes.

    python tests/benchmarks/benchmark_delta.py [MODEL]

Some layers, from the largest to small ones, get other weights one at a time; each model is
compiled, released as the second of a channel, and put together on a board that has the first.
"""

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.releases import QUICK, Releases

from edgec.compiler import Bundle, CompileOptions, compile_model
from edgec.compiler.options import parse_shapes
from edgec.compiler.update.client import Mirror, UpdateClient
from edgec.compiler.update.install import build_bundle
from edgec.compiler.update.release import Release
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

        first = compile_model(model, "native", options, output=folder / "1.edgec")

        def release(channel: str, bundle: Bundle, known: Sequence[Release]) -> int:
            """Return what a board that has some releases of a bundle downloads [bytes]."""
            releases.open().publish(channel, bundle)
            before = client.received_bytes
            found = client.find(channel, "pi", known)
            assert found is not None
            old = (known[0], first.path) if known else None
            build_bundle(found, folder / f"{channel}-{found.number}", client.chunk, old)
            return client.received_bytes - before

        whole = release("whole", first, ())
        size = releases.open().release("whole", 1).size_bytes
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
            channel = f"layer-{number}"
            known = [releases.open().publish(channel, first)]
            second = compile_model(model, "native", options, output=folder / f"{number}.edgec")
            delta = release(channel, second, known)
            layer.ParseFromString(original)
            print(
                f"  {layer.name[:40]:40} {weights.nbytes:>9,} bytes: {delta:>9,} downloaded, "
                f"{delta / weights.nbytes:.2f} of the layer",
                flush=True,
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
