"""The digits classifier as tests of quantization and compression need it: canonical, with data."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from support.contexts import model_context
from tvm import IRModule

from edgec.compiler.backend import evaluate_here
from edgec.compiler.calibration.accuracy import Metric, same_top1
from edgec.compiler.calibration.context import ModelContext
from edgec.compiler.calibration.samples import Samples, samples_from_tensors
from edgec.compiler.frontend.canonical import canonical_model
from edgec.compiler.frontend.import_graph import ImportedModel
from edgec.compiler.support.progress import Progress

BATCH = 50
TEST_IMAGES = 450
CALIBRATION_IMAGES = 300


@dataclass(frozen=True)
class DigitsModel:
    """A digits model describes the canonical float model, and data.

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
        """Return share of the test images that a changed module knows."""
        model = evaluate_here(module, self.imported.signature)
        batches = self.test.reshape(-1, BATCH, 1, 8, 8)
        answers = [model.run({"image": batch})["logits"].argmax(axis=1) for batch in batches]
        return float(np.mean(np.concatenate(answers) == self.labels))

    def context(
        self,
        target: str = "native",
        metric: Metric = same_top1,
        progress: Progress | None = None,
    ) -> ModelContext:
        """Return what a step is handed, with the samples."""
        return model_context(
            self.imported.signature,
            self.samples,
            target=target,
            value_names=self.imported.value_names,
            metric=metric,
            progress=progress,
        )


def digits_model(path: Path) -> DigitsModel:
    """Return the digits model from the ONNX file."""
    canonical = canonical_model(path, {"image": (BATCH, 1, 8, 8)})
    imported, module = canonical.imported, canonical.module
    data = load_digits()
    images = (data.images / 16).astype(np.float32)[:, None]
    samples = samples_from_tensors(
        {"image": images[:CALIBRATION_IMAGES]}, imported.signature.inputs
    )
    test, labels = images[-TEST_IMAGES:], data.target[-TEST_IMAGES:]
    found = DigitsModel(imported, module, test, labels, samples, 0.0)
    return replace(found, float_top1=found.top1(module))
