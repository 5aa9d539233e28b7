"""Read settings of a model by name, and say in one line which is missing or cannot be."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgec.compiler.errors import ModelFileError

_MAX_INTEGER = 2**31


class Settings:
    """Settings hold what a file says of a model, by name.

    A name without a value, or with `None`, stands for the default of the call; without a default
    it is an error.
    """

    def __init__(self, path: Path, values: Mapping[str, Any], prefix: str = "") -> None:
        self.path = path
        self.values = values
        self.prefix = prefix

    def get(self, name: str) -> Any:
        """Return the raw value, or None."""
        return self.values.get(self.prefix + name)

    def section(self, name: str) -> "Settings":
        """Return the settings in an object; none if it is missing."""
        value = self.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(name, value, "an object")
        return Settings(self.path, value or {})

    def wrong(self, name: str, value: object, wanted: str) -> ModelFileError:
        """Return the error for a value that cannot be."""
        text = str(value)
        text = text if len(text) <= 40 else f"{text[:39]}…"
        return ModelFileError(f"{self.path}: {self.prefix}{name} is {text}; {wanted} is expected")

    def integer(self, name: str, default: int | None = None, *, least: int = 1) -> int:
        """Return a whole number, at least `least` and below 2 ** 31."""
        value = self._known(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(name, value, "a whole number")
        if not least <= value < _MAX_INTEGER:
            raise self.wrong(name, value, f"a number from {least} to {_MAX_INTEGER - 1}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Return a positive, finite number."""
        value = self._known(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, value, "a number")
        if not (math.isfinite(value) and value > 0):
            raise self.wrong(name, value, "a positive number")
        return float(value)

    def cap(self, name: str, default: float = 0.0) -> float:
        """Return a positive number, or zero where the setting is missing or zero."""
        return self.number(name) if self.get(name) else default

    def text(self, name: str, default: str | None = None) -> str:
        """Return text."""
        value = self._known(name, default)
        if not isinstance(value, str):
            raise self.wrong(name, value, "text")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """Return a truth value."""
        value = self._known(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, value, "true or false")
        return value

    def numbers(self, name: str, count: int) -> list[float]:
        """Return so many positive numbers."""
        value = self._known(name, None)
        if not isinstance(value, list) or len(value) != count:
            raise self.wrong(name, value, f"a list of {count} numbers")
        if not all(isinstance(item, int | float) and item > 0 for item in value):
            raise self.wrong(name, value, "a list of positive numbers")
        return [float(item) for item in value]

    def _known(self, name: str, default: Any) -> Any:
        value = self.get(name)
        value = default if value is None else value
        if value is None:
            raise ModelFileError(f"{self.path}: {self.prefix}{name} is missing")
        return value
