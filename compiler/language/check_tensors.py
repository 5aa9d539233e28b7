"""Compare the tensors that are there with those that a decoder needs."""

from collections.abc import Callable, Iterable
from pathlib import Path

from edgec.compiler.errors import ModelFileError, UnsupportedModelError
from edgec.compiler.language.architectures import Decoder, expected_tensors, optional_tensors

_NAMED = 5


def check_tensors(
    path: Path,
    decoder: Decoder,
    names: frozenset[str],
    shape: Callable[[str], tuple[int, ...]],
) -> None:
    """Make sure that every tensor is there, has its extents, and that no other is.

    Args:
        path: named in errors.
        decoder: says what is needed.
        names: tensors that there are.
        shape: gives the extents of one.

    Raises:
        ModelFileError: one is missing, or its extents contradict the settings.
        UnsupportedModelError: there are others: the model computes something else, too.
    """
    needed = expected_tensors(decoder)
    allowed = needed | optional_tensors(decoder)
    title = decoder.family.title
    missing = [name for name in needed if name not in names]
    if missing:
        raise ModelFileError(f"{path}: tensors of {title} are missing: {_some(missing)}")
    others = sorted(names - allowed.keys())
    if others:
        raise UnsupportedModelError(f"{path} has tensors that are none of {title}: {_some(others)}")
    for name in sorted(names):
        if shape(name) != allowed[name]:
            raise ModelFileError(
                f"{path}: {name} has the shape {list(shape(name))}; {list(allowed[name])} is "
                "expected by the settings"
            )


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = len(listed) - _NAMED
    return ", ".join(listed[:_NAMED]) + (f" and {more} more" if more > 0 else "")
