"""Measure private calibration of digits28: exactness with drop-outs, accuracy with noise, time.

    python tests/benchmarks/private_calibration.py [exact] [noise]

The images are those of scikit-learn, enlarged to 28x28. Clients are threads against the real HTTP
server; each computes its statistics by one model that all share, as if it had compiled it itself.
"""

import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sklearn.datasets import load_digits

from edgec.compiler.calibration.samples import SampleOptions, samples_from_tensors
from edgec.compiler.errors import EdgecError
from edgec.compiler.options import CompileOptions
from edgec.compiler.pipeline import compile_model
from edgec.compiler.private_calibration.calibrate import calibrate_over_clients, make_session
from edgec.compiler.private_calibration.join import Connection, join_session
from edgec.compiler.private_calibration.masks import words
from edgec.compiler.private_calibration.model_values import ClientModel, noisy_share
from edgec.compiler.private_calibration.result import make_ranges_file
from edgec.compiler.quantize.options import QuantizeOptions
from edgec.compiler.quantize.quantization_recipe import load_recipe
from edgec.compiler.serve.server import ServeOptions
from edgec.compiler.trust.keys import SigningKey
from edgec.models import load_model_recipe
from edgec.targets import load_target

BATCH = 4
TEST = 996
SHAPES = {"image": (BATCH, 1, 28, 28)}


class _LeftError(Exception):
    """A client drops out."""


def images() -> tuple[np.ndarray, np.ndarray]:
    data = load_digits()
    small = (data.images / 16).astype(np.float32)
    at = np.clip((np.arange(20) + 0.5) * 8 / 20 - 0.5, 0, 7)
    mix = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(8))).astype(np.float32)
    return np.pad(mix @ small @ mix.T, ((0, 0), (4, 4), (4, 4)))[:, None], data.target


def run(model, clients, threshold, leaving, noise, folder):
    """Return the ranges file, seconds and what was sent; `leaving` are stages by client."""
    session = make_session(
        model,
        load_recipe("int8"),
        load_target("native"),
        clients=clients,
        threshold=threshold,
        shapes=SHAPES,
        wait_seconds=14.0 if leaving else 60.0,
        noise=noise,
    )
    pixels, _ = images()
    counted = ClientModel(model, session)
    specs = counted._inputs
    units = []
    for index in range(clients):
        own = pixels[TEST + index * BATCH : TEST + (index + 1) * BATCH]
        samples = samples_from_tensors({"image": own}, specs)
        units.append(counted.extremes(samples) if noise else counted.histograms(samples))
    begin = time.perf_counter()
    urls: list[str] = []
    ready = threading.Event()

    def client(index: int) -> None:
        ready.wait()

        def reached(stage: str) -> None:
            if leaving.get(index) == stage:
                raise _LeftError

        vector = words(noisy_share(session, units[index]))
        key = SigningKey("once", Ed25519PrivateKey.generate())
        try:
            join_session(Connection(urls[0]), session, vector, key, reached=reached)
        except _LeftError:
            pass
        except EdgecError as error:
            print(f"client {index}: {error}", file=sys.stderr)

    threads = [threading.Thread(target=client, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()

    def listening(url: str) -> None:
        urls.append(url)
        ready.set()

    options = ServeOptions(port=0)
    file = calibrate_over_clients(
        session, model, folder / "ranges.json", options, listening=listening
    )
    seconds = time.perf_counter() - begin
    for thread in threads:
        thread.join()
    return session, file, seconds, units


def accuracy(model, quantize, samples=None) -> float:
    pixels, labels = images()
    options = CompileOptions(
        shapes=SHAPES, quantize=quantize, samples=SampleOptions(source=samples), parity=False
    )
    with tempfile.TemporaryDirectory() as folder:
        bundle = compile_model(model, "native", options, output=f"{folder}/m.edgec")
        session = bundle.open()
        found = [
            session.run({"image": pixels[i : i + BATCH]})["logits"].argmax(axis=1)
            for i in range(0, TEST, BATCH)
        ]
    return float(np.mean(np.concatenate(found) == labels[:TEST]))


def main() -> None:
    parts = sys.argv[1:] or ["exact", "noise"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = folder / "digits28.onnx"
        model.write_bytes(load_model_recipe("digits28").source.read())
        if "exact" in parts:
            stages = ("shares", "masked", "confirm", "unmask")
            leaving = {i: stages[i % 4] for i in range(20)}
            session, file, seconds, units = run(model, 100, 67, leaving, None, folder)
            summed = [u for i, u in enumerate(units) if leaving.get(i) not in ("shares", "masked")]
            pooled = make_ranges_file(session, words(sum(summed)), len(summed), "mse")
            print(f"100 clients, 20 leave: {file.source.summed} summed, {seconds:.1f} s; ", end="")
            print("ranges equal to the pooled data's" if pooled == file else "RANGES DIFFER")
        if "noise" in parts:
            noise = {"epsilon": 2, "delta": 1e-5, "added_by": "clients"}
            noise |= {"low_log2": -6, "high_log2": 6}
            _, file, seconds, _ = run(model, 200, 134, {}, noise, folder)
            print(f"200 clients, epsilon 2: {seconds:.1f} s")
            ranges = QuantizeOptions(recipe=load_recipe("int8"), ranges=folder / "ranges.json")
            pixels, _ = images()
            np.save(folder / "pooled.npy", pixels[TEST : TEST + 200 * BATCH])
            pooled = accuracy(model, "int8", str(folder / "pooled.npy"))
            for name, (low, high) in file.ranges.items():
                print(f"  {name}: {low:.3g} to {high:.3g}")
            print(f"int8: calibrated {pooled:.2%}, private {accuracy(model, ranges):.2%}")


main()
