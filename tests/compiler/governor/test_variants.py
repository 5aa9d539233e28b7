"""Variants in words of the command line."""

import pytest

from edgec.compiler.errors import UsageError
from edgec.compiler.governor.variants import Variant, parse_variant, parse_variants
from edgec.compiler.options import CompileOptions


def test_words_say_what_a_variant_is() -> None:
    name, variant = parse_variant("small=int8,channels-50,distill,image=1x3x96x96,accuracy=0.71")
    assert name == "small"
    assert variant == Variant(
        quantize="int8",
        compress="channels-50,distill",
        shapes={"image": (1, 3, 96, 96)},
        accuracy=0.71,
    )
    assert parse_variant("full=float") == ("full", Variant())
    assert list(parse_variants(("b=int8", "a=float"))) == ["b", "a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int8", "write NAME=RECIPE"),
        ("fast=", "write NAME=RECIPE"),
        ("a b=int8", "write NAME=RECIPE"),
        ("fast=int8,fp16", "int8 and fp16 contradict each other"),
        ("fast=int8,accuracy=1.5", "a share from 0 to 1; 1.5 was given"),
        ("fast=int8,accuracy=good", "'good' is no number"),
    ],
)
def test_other_words_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_variant(text)


FAST, FULL = Variant(quantize="int8", accuracy=0.9), Variant()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variants": {"a": FULL}}, "a choice needs two"),
        ({"variants": {"a": FULL, "b": FAST}, "quantize": "int8"}, "takes the place"),
        ({"variants": {"a": FULL, "b": Variant(quantize="int8")}}, "nothing measures the accuracy"),
        ({"variants": {"a": FULL, "b": Variant(shapes={"x": (1, 2)})}}, "variant b: give --cali"),
        (
            {"variants": {"a": FULL, "b": Variant(compress="no-such", accuracy=1)}},
            "unknown compression 'no-such'",
        ),
        ({"variants": {"a": FULL, "b b": FAST}}, "a program is named 'b b'"),
        ({"variants": {"a": FULL, "b": FULL}}, "variants a and b are the same"),
    ],
)
def test_choices_that_cannot_be_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(Exception, match=message):
        CompileOptions(**settings)  # type: ignore[arg-type]


def test_two_of_a_name_are_refused() -> None:
    with pytest.raises(UsageError, match="names one twice"):
        parse_variants(("a=int8", "a=float"))
