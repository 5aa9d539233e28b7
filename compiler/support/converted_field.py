"""Provide fields of dataclasses that take several forms of a value and hold one of them."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

Given = TypeVar("Given", contravariant=True)
Held = TypeVar("Held", covariant=True)


class ConvertedField(Generic[Given, Held]):
    """A converted field is a field whose value is converted when it is set.

    The constructor of the dataclass takes what the conversion takes, and the attribute has the
    type of what it gives; see "Descriptor-typed fields" in Python's manual of `dataclasses`.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Box:
    ...     width: ConvertedField[int | str, int] = ConvertedField(int)
    >>> Box("3")
    Box(width=3)
    """

    def __init__(self, convert: Callable[[Given], Held]) -> None:
        self._convert = convert
        self._name = ""

    def __set_name__(self, _owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, _owner: type | None = None) -> Held:
        if instance is None:
            # The class itself has no such value: the field has no default.
            raise AttributeError(self._name)
        held: Held = instance.__dict__[self._name]
        return held

    def __set__(self, instance: Any, value: Given) -> None:
        instance.__dict__[self._name] = self._convert(value)
