"""Provide TOML files that people write (targets and recipes), and what is wrong with them."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from edgec.compiler.errors import BadInputError, did_you_mean

# Keys and indices, as pydantic gives them.
Place = tuple[int | str, ...]


def read_toml(path: Path, what: str, error: type[BadInputError]) -> dict[str, Any]:
    """Return the tables of a file.

    Args:
        path: the path of the file.
        what: it is called in messages.
        error: raised where it cannot be read.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(f"{what} {path} does not exist") from None
    except OSError as problem:
        raise error(f"{what} {path} cannot be read: {problem.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise error(f"{what} {path} is not valid TOML: {problem}") from None


def explain(error: ValidationError, table_at: Callable[[Place], type[BaseModel]]) -> str:
    """Return what is wrong with the fields of a file, in one line.

    Args:
        error: all that was found.
        table_at: the fields of the table at a place; the file itself is at ().
    """
    reasons = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            known = list(table_at(item["loc"][:-1]).model_fields)
            reasons.append(
                f"unknown key {key}{did_you_mean(str(item['loc'][-1]), known)} "
                f"(known keys: {', '.join(known)})"
            )
        elif item["type"] == "missing":
            reasons.append(f"key {key} is missing")
        elif key:
            reasons.append(f"{key} = {item['input']!r}: {item['msg']}")
        else:
            reasons.append(item["msg"].removeprefix("Value error, "))
    return "; ".join(reasons)
