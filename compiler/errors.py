"""Provide every error that edgec raises for its user's sake, and the exit code of each.

```text
EdgecError
├── CheckFailed            1   a check was made and failed
│   ├── ParityError            outputs differ from the original graph
│   ├── IntegrityError         a bundle is not what its manifest says
│   └── SelfTestError          a release does not work on this machine
├── UsageError             2   the call contradicts itself
├── UnsupportedModelError  3   the model uses something edgec cannot compile
├── BadInputError          4   a file, shape, target or setting is wrong
│   ├── ModelFileError
│   ├── ShapeError
│   ├── TensorInputError
│   ├── TargetError
│   ├── BundleError
│   ├── KeyFileError
│   ├── BoardConfigError
│   ├── RecipeError
│   ├── CalibrationError
│   ├── RepositoryError        a repository of releases is missing, or cannot be reached
│   └── OutputError
├── ToolchainError         5   a program or package that edgec needs is missing or failed
├── BoardError             6   a board cannot be reached, or failed
├── InterruptedRunError    7   stopped by a signal; nothing is lost
└── TrustError             8   a bundle's signature is not what this machine asks for
    └── AttackError            8   metadata of releases is not authentic, or too old
```

A message says what was found, what was expected, and what to do.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class EdgecError(Exception):
    """All known errors derive from this one.

    The command line prints the message and no traceback.
    """

    exit_code = 1


class CheckFailed(EdgecError):  # noqa: N818 - a verdict, not a malfunction
    """A check was carried out and its answer is no."""

    exit_code = 1


class ParityError(CheckFailed):
    """The compiled model does not compute what the original graph computes."""


class IntegrityError(CheckFailed):
    """A bundle's files are not the ones that its manifest lists."""


class SelfTestError(CheckFailed):
    """A release does not work on this machine: wrong results, too slow, or it does not run."""


class UsageError(EdgecError):
    """The arguments of a call contradict each other."""

    exit_code = 2


class UnsupportedModelError(EdgecError):
    """The model holds operators or attributes that edgec cannot compile."""

    exit_code = 3


class BadInputError(EdgecError):
    """A file, a shape, a name or a setting given by the user is wrong."""

    exit_code = 4


class ModelFileError(BadInputError):
    """The file is no valid model of its format."""


class LimitError(BadInputError):
    """The model asks for more memory or nodes than is allowed."""


class ShapeError(BadInputError):
    """A dimension is missing, not positive, or contradicts the model."""


class TensorInputError(BadInputError):
    """Input tensors do not fit the model's signature."""


class TargetError(BadInputError):
    """A target is unknown or its file is wrong."""


class BundleError(BadInputError):
    """A bundle cannot be read here: not a bundle, or made for another machine."""


class KeyFileError(BadInputError):
    """A key cannot be read, is of the wrong kind, or opens nothing here."""


class BoardConfigError(BadInputError):
    """A board is unknown, or what is said of it is wrong."""


class RecipeError(BadInputError):
    """A quantization recipe is unknown, wrong, or not exact on the target."""


class CalibrationError(BadInputError):
    """Calibration samples or ranges do not fit the model, or cannot be read."""


class RepositoryError(BadInputError):
    """A repository of releases is missing or damaged, or cannot be reached."""


class OutputError(BadInputError):
    """The result cannot be written: no permission, no space, something is in the way."""


class ToolchainError(EdgecError):
    """A linker or package that edgec needs is missing or failed."""

    exit_code = 5


class BoardError(EdgecError):
    """A board cannot be reached, does not answer in time, or failed."""

    exit_code = 6


class InterruptedRunError(EdgecError):
    """A signal stopped the run."""

    exit_code = 7


class TrustError(EdgecError):
    """A bundle is not signed as this machine asks, or is not what was signed."""

    exit_code = 8


class AttackError(TrustError):
    """What a repository gave is refused, and would be part of an attack if it is no mistake."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the nearest known word as a clause for an error message, or nothing.

    >>> did_you_mean("rpi44", ["rpi3", "rpi4", "native"])
    '; did you mean rpi4?'
    >>> did_you_mean("zzz", ["rpi4"])
    ''
    """
    near = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""
