from pathlib import Path

import pytest

from edgec.compiler.errors import RecipeError
from edgec.compiler.quantize.recipe import RECIPES, Recipe, load_recipe, resolve
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
    recipe = Recipe.model_validate(
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
        ("x86-64-v3", "uint8", 0, 255, 63),
        ("x86-64-v4", "uint8", 0, 255, 63),
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
    codes = resolved.activations
    assert (codes.dtype, codes.low, codes.high) == (dtype, low, high)
    assert resolved.largest_weight == largest
    assert target in resolved.why


@pytest.mark.parametrize("bits", [{}, {"weight_bits": 7}, {"activation_bits": 7}])
def test_two_products_fit_int16_where_they_are_added_there(bits: dict[str, int]) -> None:
    recipe = Recipe.model_validate(bits)
    for target in ("x86-64-v3", "x86-64-v4"):
        resolved = resolve(recipe, load_target(target))
        assert resolved.activations.high * resolved.largest_weight * 2 <= 32767


def test_eight_bits_on_both_sides_are_refused_there() -> None:
    recipe = Recipe(weight_bits=8, activation_bits=8)
    with pytest.raises(RecipeError, match="overflow the int16 sums of x86-64-v3"):
        resolve(recipe, load_target("x86-64-v3"))
    assert resolve(recipe, load_target("rpi5")).largest_weight == 127
