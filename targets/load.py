"""Lead from a name or a path to a checked `Target`."""

from pathlib import Path

from pydantic import ValidationError

from edgec.compiler.errors import TargetError, did_you_mean
from edgec.compiler.support.toml_file import explain, read_toml
from edgec.targets.native import detect_native
from edgec.targets.target import Emulator, Target, board_folder

NATIVE = "native"


def target_names() -> list[str]:
    """Return names that `load_target` knows: `native` first, then the files in order.

    >>> "rpi4" in target_names()
    True
    """
    return [NATIVE, *sorted(path.stem for path in board_folder().glob("*.toml"))]


def load_target(name: str | Path) -> Target:
    """Return the target of this name, or of this file if the name ends in `.toml`.

    Raises:
        TargetError: unknown name, unreadable file, unknown key or bad value.
    """
    if isinstance(name, Path) or name.endswith(".toml"):
        return read_target(Path(name))
    if name == NATIVE:
        return detect_native()
    path = board_folder() / f"{name}.toml"
    if not path.is_file():
        known = target_names()
        raise TargetError(
            f"unknown target {name!r}{did_you_mean(name, known) or ';'} "
            f"Known targets: {', '.join(known)}; a target file is given by its path, *.toml"
        )
    return read_target(path)


def read_target(path: Path) -> Target:
    """Read and check one target file.

    Raises:
        TargetError: names the file, the key, what was found and what is allowed.
    """
    fields = read_toml(path, "target file", TargetError)
    fields.setdefault("name", path.stem)
    try:
        return Target.model_validate(fields)
    except ValidationError as error:
        raise TargetError(
            f"target file {path}: {explain(error, lambda at: Emulator if at else Target)}"
        ) from None
