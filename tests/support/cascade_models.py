"""Two linear classifiers of the same inputs, of which the small one does not see all, and data."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from support.onnx_graphs import make_model, node

from edgec.compiler import Bundle, CompileOptions, compile_model
from edgec.compiler.cascade.cascade import Cascade
from edgec.compiler.evaluate.make_cascade import make_cascade

FEATURES, CLASSES, SAMPLES = 16, 4, 2000
DROP = 0.02


@dataclass(frozen=True)
class CascadeModels:
    """Cascade models are two bundles, what they are tried on, and the cascade made of them.

    Attributes:
        small: the bundle that is asked first.
        large: the bundle whose answers count.
        inputs: [batches, batch, features].
        data: file of these, with labels: the answers of the large one.
        folder: of the cascade.
        cascade: what it says.
    """

    small: Bundle
    large: Bundle
    inputs: np.ndarray
    data: Path
    folder: Path
    cascade: Cascade


def write_cascade_models(folder: Path, batch: int = 1) -> CascadeModels:
    """Compile both, and make a cascade of them."""
    random = np.random.default_rng(0)
    weights = 2 * random.standard_normal((FEATURES, CLASSES)).astype(np.float32)
    half = weights * (np.arange(FEATURES) < FEATURES - 1)[:, None]
    inputs = random.standard_normal((SAMPLES, FEATURES)).astype(np.float32)
    data = folder / "data.npz"
    np.savez(data, x=inputs, labels=(inputs @ weights).argmax(axis=1))
    bundles = []
    for name, values, nodes in (
        ("small", half, [node("MatMul", ["x", "w"], ["scores"])]),
        ("large", weights, [node("MatMul", ["x", "w"], ["s"]), node("Softmax", ["s"], ["p"])]),
    ):
        model = make_model(nodes, {"x": [batch, FEATURES]}, [nodes[-1].output[0]], {"w": values})
        onnx.save(model, folder / f"{name}.onnx")
        output = folder / f"{name}.edgec"
        bundles.append(
            compile_model(folder / f"{name}.onnx", options=CompileOptions(), output=output)
        )
    made = make_cascade(*bundles, data, drop=DROP, output=folder / "both.cascade")
    return CascadeModels(
        *bundles, inputs.reshape(-1, batch, FEATURES), data, folder / "both.cascade", made
    )
