"""Fields that take several forms of a value: converted once, frozen, without a default."""

from dataclasses import FrozenInstanceError, dataclass, replace

import pytest

from edgec.compiler.support.converted_field import ConvertedField


@dataclass(frozen=True)
class Box:
    width: ConvertedField[int | str, int] = ConvertedField(int)
    height: int = 1


def test_a_value_is_converted_and_then_like_any_other_field() -> None:
    box = Box("3")
    assert box.width == 3
    assert box == Box(3)
    assert hash(box) == hash(Box(3))
    assert repr(box) == "Box(width=3, height=1)"
    assert replace(box, height=2) == Box(3, 2)
    with pytest.raises(FrozenInstanceError):
        box.width = 4  # type: ignore[misc]


def test_it_has_no_default_and_the_errors_of_its_conversion() -> None:
    with pytest.raises(TypeError, match="width"):
        Box()  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="wide"):
        Box("wide")
