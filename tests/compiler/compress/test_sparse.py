"""Unstructured pruning, and the phase around it."""

from pathlib import Path

import numpy as np
import pytest
from digits_model import DigitsModel, digits_model

from edgec.compiler.accuracy import same_top1
from edgec.compiler.compress.compressor import CompressedModel, compress_model
from edgec.compiler.compress.recipe import load_compression
from edgec.compiler.compress.settings import CompressOptions
from edgec.compiler.errors import RecipeError, UnsupportedModelError, UsageError
from edgec.compiler.progress import Silent
from edgec.targets import load_target


@pytest.fixture(scope="module")
def model(digits: Path) -> DigitsModel:
    return digits_model(digits)


def compressed(model: DigitsModel, recipe: str) -> CompressedModel:
    options = CompressOptions(recipe=load_compression(recipe))
    native = load_target("native")
    return compress_model(
        model.module, model.imported, native, options, model.samples, same_top1, Silent()
    )


def test_that_share_of_the_weights_is_zero(model: DigitsModel) -> None:
    result = compressed(model, "sparse-30")
    (step,) = result.steps
    assert step.costs.weights == result.before.weights
    assert step.costs.nonzeros == pytest.approx(0.7 * step.costs.weights, rel=0.01)
    assert step.accuracy is not None
    assert step.accuracy.score > 0.95


def test_too_much_is_seen(model: DigitsModel) -> None:
    (step,) = compressed(model, "sparse-98").steps
    assert step.accuracy is not None
    assert step.accuracy.score < 0.6


def test_one_threshold_for_all_layers(model: DigitsModel, tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text('[[step]]\nkind = "sparse"\nratio = 0.5\nscope = "model"\n')
    result = compressed(model, str(file))
    shares = [o.zeros / o.weights for o in result.steps[0].costs.operators]
    assert np.ptp(shares) > 0.1
    assert result.steps[0].costs.nonzeros == pytest.approx(0.5 * result.before.weights, rel=0.01)


def test_skipped_operators_stay(model: DigitsModel, tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text('[[step]]\nkind = "sparse"\nratio = 0.5\nskip = ["*"]\n')
    with pytest.raises(UnsupportedModelError, match="no convolution or matrix product"):
        compressed(model, str(file))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("spars-50", "did you mean sparse-N"),
        ("sparse-100", "less than 1"),
        ("missing.toml", "does not exist"),
    ],
)
def test_a_wrong_recipe_is_refused(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_compression(text)


def test_a_wrong_key_is_named(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text('[[step]]\nkind = "sparse"\nratoi = 0.5\n')
    with pytest.raises(RecipeError, match="ratoi"):
        load_compression(str(file))


def test_a_report_of_another_kind_is_refused() -> None:
    with pytest.raises(UsageError, match=r"\.html or \.json"):
        CompressOptions(recipe=load_compression("sparse-50"), report=Path("x.txt"))
