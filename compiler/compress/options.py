"""Provide the settings of a compile that compresses."""

from dataclasses import dataclass
from pathlib import Path

from edgec.compiler.compress.compression_recipe import CompressionRecipe, as_compression
from edgec.compiler.errors import UsageError
from edgec.compiler.support.converted_field import ConvertedField
from edgec.compiler.support.html_report import check_report_name


@dataclass(frozen=True, kw_only=True)
class CompressOptions:
    """Compress options describe what is compressed, and how.

    Attributes:
        recipe: the steps; the name or file of a recipe is taken, too.
        report: .html or .json file.
        checkpoint: file in which `distill` is kept; it goes on from there if it is there.
    """

    recipe: ConvertedField[CompressionRecipe | str | Path, CompressionRecipe] = ConvertedField(
        as_compression
    )
    report: Path | None = None
    checkpoint: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            UsageError: says which setting.
        """
        check_report_name(self.report, "--compress-report")
        trained = [step.kind for step in self.recipe.step].count("distill")
        if self.checkpoint is not None and trained != 1:
            raise UsageError(
                f"--checkpoint {self.checkpoint}: holds the training of one distill step, the "
                f"recipe has {trained}"
            )

    def check_samples(self, given: bool) -> None:
        """Refuse a recipe that needs samples where none are given.

        Raises:
            UsageError: names the steps.
        """
        needing = [step.kind for step in self.recipe.step if step.needs_samples]
        if needing and not given:
            raise UsageError(
                f"{', '.join(needing)}: looks at samples (they need no labels): add --calibration "
                "DATA (.npy, .npz, a folder of images, or module:function)"
            )
