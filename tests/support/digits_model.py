"""The digits classifier as tests of quantization and compression need it: canonical, with data."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from tvm import IRModule

from edgec.compiler.calibration.host_model import HostModel
from edgec.compiler.calibration.samples import Samples, samples_from_tensors
from edgec.compiler.frontend.import_graph import ImportedModel, import_model
from edgec.compiler.frontend.onnx_file import read_model
from edgec.compiler.frontend.simplify import simplify
from edgec.compiler.frontend.specialize import specialize
from edgec.compiler.passes import CANONICALIZE
from edgec.compiler.passes.base import apply_passes

BATCH = 50
TEST_IMAGES = 450
CALIBRATION_IMAGES = 300


@dataclass(frozen=True)
class DigitsModel:
    """The canonical float model, and data.

    Attributes:
        imported: the model.
        module: canonical.
        test: images that it was not trained on, [450, 1, 8, 8].
        labels: theirs.
        samples: other images, batches of 50.
        float_top1: share of the test images that it knows.
    """

    imported: ImportedModel
    module: IRModule
    test: np.ndarray
    labels: np.ndarray
    samples: Samples
    float_top1: float

    def top1(self, module: IRModule) -> float:
        """Share of the test images that a changed module knows."""
        model = HostModel(module, self.imported.signature)
        batches = self.test.reshape(-1, BATCH, 1, 8, 8)
        answers = [model.run({"image": batch})["logits"].argmax(axis=1) for batch in batches]
        return float(np.mean(np.concatenate(answers) == self.labels))


def digits_model(path: Path) -> DigitsModel:
    """From the ONNX file."""
    source = read_model(path)
    special = specialize(source.proto, {"image": (BATCH, 1, 8, 8)}, {})
    imported = import_model(simplify(special.proto))
    module = apply_passes(imported.module, CANONICALIZE)
    data = load_digits()
    images = (data.images / 16).astype(np.float32)[:, None]
    samples = samples_from_tensors(
        {"image": images[:CALIBRATION_IMAGES]}, imported.signature.inputs
    )
    test, labels = images[-TEST_IMAGES:], data.target[-TEST_IMAGES:]
    found = DigitsModel(imported, module, test, labels, samples, 0.0)
    return replace(found, float_top1=found.top1(module))
