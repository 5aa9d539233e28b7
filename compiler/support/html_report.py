"""Describe what reports share: JSON for programs.

One HTML page without anything beside it for people.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgec.compiler.errors import OutputError

STYLE = (
    "body{font:14px sans-serif;margin:2em}table{border-collapse:collapse}"
    "td,th{padding:2px 10px;text-align:left;border-bottom:1px solid #ddd}"
    "td.n{text-align:right}rect{fill:#47a}line{stroke:#000}"
)


def save_report(
    path: Path, fields: Mapping[str, Any], page: Callable[[Mapping[str, Any]], str]
) -> None:
    """Write a .json file, or the page for any other name.

    Raises:
        OutputError: it cannot be written.
    """
    text = json.dumps(_finite(fields), indent=1) if path.suffix == ".json" else page(fields)
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from None


def _finite(value: Any) -> Any:
    """JSON has no infinities."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not -1e300 < value < 1e300:
        return None
    return value
