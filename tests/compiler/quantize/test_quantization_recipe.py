from pathlib import Path

import pytest

from edgec.compiler.errors import RecipeError
from edgec.compiler.numerics.pair_sums import INT8_LIMIT, UINT8_LIMIT, SumLimit
from edgec.compiler.quantize.quantization_recipe import (
    RECIPES,
    QuantizationRecipe,
    load_recipe,
    resolve,
)
from edgec.targets import load_target


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", RECIPES)
def test_named_recipes_load(name: str) -> None:
    assert load_recipe(name).name == name


def test_a_file_starts_from_its_base_and_takes_its_own_name(tmp_path: Path) -> None:
    path = write(
        tmp_path, 'base = "int8-dynamic"\n[[override]]\noperator = "matmul"\nkeep = "float"\n'
    )
    recipe = load_recipe(path)
    assert (recipe.name, recipe.activations) == ("mine", "dynamic")
    assert recipe.keep(("a",), "matmul") == "float"
    assert recipe.keep(("a",), "conv") == "integer"


def test_the_first_override_counts() -> None:
    recipe = QuantizationRecipe.model_validate(
        {
            "override": [
                {"match": "head*", "keep": "weight-only"},
                {"match": "h*", "operator": "conv", "keep": "float"},
            ]
        }
    )
    assert recipe.keep(("x", "head1"), "conv") == "weight-only"
    assert recipe.keep(("hip",), "conv") == "float"
    assert recipe.keep(("hip",), "add") == "integer"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('wieghts = "int4"', "unknown key wieghts; did you mean weights?"),
        ('weights = "int3"', "weights = 'int3'"),
        ('weights = "int4"', "static activations need int8 weights"),
        ('base = "int9"', "base = 'int9'; known: int8"),
        ('[[override]]\nkeep = "float"', "an override needs match or operator"),
        ('activations = "float"\nextent = "full"', 'extent = "full" needs'),
        ("weights = ", "not valid TOML"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, text))
    assert message in str(caught.value)


def test_unknown_names_are_answered_with_near_ones() -> None:
    with pytest.raises(RecipeError, match=r"did you mean int8"):
        load_recipe("int-8")
    with pytest.raises(RecipeError, match="does not exist"):
        load_recipe("nowhere.toml")


@pytest.mark.parametrize(
    ("target", "dtype", "low", "high", "largest"),
    [
        ("x86-64-v3", "uint8", 0, 255, 127),
        ("x86-64-v4", "uint8", 0, 255, 127),
        ("x86-64-v4-vnni", "uint8", 0, 255, 127),
        ("rpi4", "int8", -128, 127, 127),
        ("rpi5", "int8", -128, 127, 127),
        ("riscv64", "int8", -128, 127, 127),
    ],
)
def test_codes_are_what_the_target_multiplies_exactly(
    target: str, dtype: str, low: int, high: int, largest: int
) -> None:
    resolved = resolve(RECIPES["int8"], load_target(target))
    qtype = resolved.activations
    assert (qtype.dtype, qtype.low, qtype.high) == (dtype, low, high)
    assert resolved.largest_weight == largest
    assert target in resolved.why


@pytest.mark.parametrize(
    ("recipe", "target", "limit"),
    [
        (QuantizationRecipe(), "x86-64-v3", UINT8_LIMIT),
        (QuantizationRecipe(weight_bits=8, activation_bits=8), "x86-64-v4", UINT8_LIMIT),
        (QuantizationRecipe(activations="dynamic"), "x86-64-v3", UINT8_LIMIT),
        (QuantizationRecipe(), "x86-64-v4-vnni", None),
        (QuantizationRecipe(), "rpi4", INT8_LIMIT),
        (QuantizationRecipe(), "rpi5", None),
        # The same quantized values everywhere.
        (QuantizationRecipe(weight_bits=7), "rpi4", UINT8_LIMIT),
        (QuantizationRecipe(weight_bits=7), "rpi5", UINT8_LIMIT),
        (RECIPES["int8-weight-only"], "x86-64-v3", None),
    ],
)
def test_weights_keep_to_what_int16_holds_where_it_is_used(
    recipe: QuantizationRecipe, target: str, limit: SumLimit | None
) -> None:
    assert resolve(recipe, load_target(target)).limit == limit
