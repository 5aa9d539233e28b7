"""TOML files that people write: targets and recipes."""

import tomllib
from pathlib import Path
from typing import Any

from edgec.compiler.errors import BadInputError


def read_toml(path: Path, what: str, error: type[BadInputError]) -> dict[str, Any]:
    """The tables of a file.

    Args:
        path: of the file.
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
