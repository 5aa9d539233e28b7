"""Provide the settings of a quantized compile."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from edgec.compiler.errors import UsageError
from edgec.compiler.numerics.observers import ObserverName
from edgec.compiler.quantize.quantization_recipe import QuantizationRecipe, as_recipe
from edgec.compiler.support.converted_field import ConvertedField
from edgec.compiler.support.html_report import check_report_name

if TYPE_CHECKING:
    from edgec.compiler.ir.signature import TensorSpec

Rounding = Literal["nearest", "second-order", "learned"]
ROUNDINGS: tuple[str, ...] = get_args(Rounding)


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """Quantize options describe what is quantized, and what it may cost.

    Attributes:
        recipe: what becomes an integer; the name or file of a recipe is taken, too.
        observer: finds ranges.
        cache: file of ranges; read if it is there, else written.
        ranges: file of ranges that private calibration wrote, in place of samples.
        repair: adapt rounding and biases.
        rounding: the rounding of weights, if they are corrected.
        max_drop: the max drop of the metric, as a share: 0.01 is one point; operators return to
            float until it holds.
        min_sqnr_db: likewise, for the signal-to-noise ratio of the worst output [dB].
        report: .html or .json file.
    """

    recipe: ConvertedField[QuantizationRecipe | str | Path, QuantizationRecipe] = ConvertedField(
        as_recipe
    )
    observer: ObserverName = "mse"
    cache: Path | None = None
    ranges: Path | None = None
    repair: bool = True
    rounding: Rounding = "second-order"
    max_drop: float | None = None
    min_sqnr_db: float | None = None
    report: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            UsageError: says which setting.
        """
        if self.min_sqnr_db is not None and not math.isfinite(self.min_sqnr_db):
            raise UsageError(f"--min-sqnr {self.min_sqnr_db:g} is no ratio; 30 is 30 dB")
        if self.max_drop is not None and not 0 <= self.max_drop <= 1:
            raise UsageError(f"--max-drop {self.max_drop:g} is no share; 0.01 is one point")
        check_report_name(self.report, "--report")
        if self.ranges is not None and self.cache is not None:
            raise UsageError("--ranges and --calibration-cache contradict each other")

    @property
    def has_bar(self) -> bool:
        """Return whether operators may have to return to float."""
        return self.max_drop is not None or self.min_sqnr_db is not None

    def batches_to_measure(self, outputs: "Sequence[TensorSpec]", own_metric: bool) -> int:
        """Return how many batches of samples the accuracy is measured on, where there are enough.

        Args:
            outputs: the outputs of the model.
            own_metric: it is measured by a function of the user's, whose steps are not known.

        Raises:
            UsageError: there is nothing that `max_drop` could be measured by.
        """
        # Imported here: options are read without ONNX.
        from edgec.compiler.calibration.accuracy import MAX_MEASURED, batches_to_resolve

        if self.max_drop is None or own_metric:
            return MAX_MEASURED
        return max(MAX_MEASURED, batches_to_resolve(self.max_drop, outputs))

    def check_resolution(
        self, batches: int, outputs: "Sequence[TensorSpec]", own_metric: bool
    ) -> None:
        """Refuse a `max_drop` that is less than one answer among all of the samples.

        Raises:
            UsageError: says how many batches it takes.
        """
        # Imported here: options are read without ONNX.
        from edgec.compiler.calibration.accuracy import batches_to_resolve

        if self.max_drop is None or own_metric:
            return
        needed = batches_to_resolve(self.max_drop, outputs)
        if batches < needed:
            raise UsageError(
                f"--max-drop {self.max_drop:g} cannot be told from {batches} batches of samples, "
                f"where one changed answer is more than that; give at least {needed}, or a "
                f"--max-drop of {self.max_drop * needed / batches:.2g} or more"
            )

    def check_samples(self, given: bool) -> None:
        """Refuse a recipe that needs samples where none are given.

        Raises:
            UsageError: they are needed and there are none.
        """
        if given:
            return
        if self.has_bar:
            raise UsageError(
                "--max-drop and --min-sqnr are measured on samples: add --calibration DATA"
            )
        cached = self.ranges is not None or (self.cache is not None and self.cache.exists())
        if self.recipe.needs_samples and not cached:
            raise UsageError(
                f"recipe {self.recipe.name} needs the ranges of activations: add --calibration "
                "DATA (.npy, .npz, a folder of images, or module:function); int8-dynamic, "
                "int8-weight-only and int4-weight-only need no data"
            )
