"""Pruning of single weights and in patterns, and the phase around it."""

from pathlib import Path

import numpy as np
import pytest
from support.digits_model import DigitsModel, digits_model

from edgec.compiler.compress.compression_recipe import load_compression
from edgec.compiler.compress.compressor import CompressedModel, compress_model
from edgec.compiler.compress.options import CompressOptions
from edgec.compiler.compress.steps.sparse import Sparse
from edgec.compiler.errors import RecipeError, UnsupportedModelError, UsageError
from edgec.compiler.ir.anchors import find_operators
from edgec.compiler.ir.graph import Graph


@pytest.fixture(scope="module")
def model(digits: Path) -> DigitsModel:
    return digits_model(digits)


def compressed(model: DigitsModel, recipe: str) -> CompressedModel:
    options = CompressOptions(recipe=load_compression(recipe))
    return compress_model(model.module, options, model.context())


def recipe_file(folder: Path, settings: str) -> str:
    file = folder / "recipe.toml"
    file.write_text(f'[[step]]\nkind = "sparse"\n{settings}\n')
    return str(file)


def top1(model: DigitsModel, recipe: str) -> float:
    return model.top1(compressed(model, recipe).module)


def test_that_share_of_the_weights_is_zero(model: DigitsModel) -> None:
    result = compressed(model, "sparse-30")
    (step,) = result.steps
    assert step.costs.weights == result.before.weights
    # The first convolution has too few weights to be worth it.
    assert step.costs.nonzeros == pytest.approx(0.7 * step.costs.weights, rel=0.01)
    assert step.costs.operators[0].zeros == 0
    assert step.accuracy is not None
    assert step.accuracy.score > 0.99


def test_layers_that_have_more_to_spare_give_more(model: DigitsModel) -> None:
    result = compressed(model, "sparse-50")
    shares = [o.zeros / o.weights for o in result.steps[0].costs.operators[1:]]
    assert np.ptp(shares) > 0.1


def test_80_percent_within_a_point_and_random_is_worse(model: DigitsModel, tmp_path: Path) -> None:
    assert top1(model, "sparse-80") >= model.float_top1 - 0.01
    random = recipe_file(tmp_path, 'ratio = 0.8\nscore = "random"')
    assert top1(model, random) < model.float_top1 - 0.3


def test_2_of_4_within_a_point_and_others_are_worse(model: DigitsModel, tmp_path: Path) -> None:
    result = compressed(model, "sparse-2:4")
    assert model.top1(result.module) >= model.float_top1 - 0.01
    for operator in find_operators(Graph(result.module, {})):
        if operator.weight is not None and operator.weight.array.size >= 512:
            channels = operator.weight.array
            if operator.kind == "matmul":
                channels = channels.T[:, :, None, None]
            grouped = channels.reshape(len(channels), -1, 4, *channels.shape[2:])
            assert ((grouped != 0).sum(axis=2) == 2).all()
    scores = {
        score: top1(model, recipe_file(tmp_path, f'pattern = "2:4"\nscore = "{score}"'))
        for score in ("magnitude", "random")
    }
    assert scores["random"] < scores["magnitude"] < model.float_top1 - 0.05


def test_blocks_go_whole(model: DigitsModel) -> None:
    result = compressed(model, "block-50")
    array = next(
        o.weight.array for o in find_operators(Graph(result.module, {})) if o.name == "relu1"
    )
    assert array.shape == (32, 16, 3, 3)
    used = (array.reshape(2, 16, 16, 3, 3) != 0).sum(axis=1)
    assert set(np.unique(used)) == {0, 16}
    assert model.top1(result.module) > 0.85


def test_weights_below_a_threshold_go(model: DigitsModel, tmp_path: Path) -> None:
    result = compressed(model, recipe_file(tmp_path, "threshold = 0.05"))
    before, after = (
        next(o.weight.array for o in find_operators(Graph(m, {})) if o.name == "relu2")
        for m in (model.module, result.module)
    )
    np.testing.assert_array_equal(after, np.where(np.abs(before) < 0.05, 0, before))


def test_skipped_operators_stay(model: DigitsModel, tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path, 'ratio = 0.5\nskip = ["*"]')
    with pytest.raises(UnsupportedModelError, match="no convolution or matrix product"):
        compressed(model, recipe)


def test_what_stays_makes_up_for_what_goes() -> None:
    random = np.random.default_rng(0)
    inputs = random.standard_normal((500, 24)) @ random.standard_normal((24, 24))
    rows = random.standard_normal((8, 24))
    second = inputs.T @ inputs / 500

    def error(pruned: np.ndarray) -> float:
        return float(np.square(inputs @ (pruned - rows).T).mean())

    pruned = Sparse(ratio=0.5)._pruned_rows(rows, second, 0.5)
    assert np.count_nonzero(pruned) == rows.size // 2
    only_chosen = np.where(pruned != 0, rows, 0)
    best = np.zeros(rows.shape)
    for row, fit, kept in zip(rows, best, pruned != 0, strict=True):
        fit[kept] = np.linalg.lstsq(inputs[:, kept], inputs @ row)[0]
    assert error(best) <= error(pruned) < 1.05 * error(best)
    assert error(pruned) < 0.7 * error(only_chosen)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("", "one of ratio, threshold"),
        ('ratio = 0.5\npattern = "2:4"', "one of ratio, threshold"),
        ('pattern = "4:2"', "expected N:M with 0 < N < M"),
        ('threshold = 0.1\nscore = "wanda"', "single weights"),
        ('ratio = 0.5\npattern = "block"\nblock = [0, 1]', "positive"),
    ],
)
def test_settings_that_contradict_are_refused(settings: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        load_compression(recipe_file(tmp_path, settings))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("spars-50", "did you mean sparse-N"),
        ("sparse-100", "less than 1"),
        ("sparse-4:4", "expected N:M"),
        ("missing.toml", "does not exist"),
    ],
)
def test_a_wrong_recipe_is_refused(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_compression(text)


def test_a_wrong_key_is_named(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text('[[step]]\nkind = "sparse"\nratoi = 0.5\n')
    with pytest.raises(RecipeError, match="ratoi; did you mean ratio"):
        load_compression(str(file))


def test_a_report_of_another_kind_is_refused() -> None:
    with pytest.raises(UsageError, match=r"\.html or \.json"):
        CompressOptions(recipe=load_compression("sparse-50"), report=Path("x.txt"))
