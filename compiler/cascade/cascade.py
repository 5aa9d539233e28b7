"""Provide the cascade: a folder with two bundles, and when the first one's answer is enough.

```text
digits.cascade/
├── cascade.json   the threshold, and what it is worth
├── small.edgec/   asked first
└── large.edgec/   asked where the small one is not sure; or a server has the same
```

Reading it needs no TVM.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgec.compiler.errors import BundleError, OutputError
from edgec.compiler.support.files import output_error, write_atomically

if TYPE_CHECKING:
    from edgec.compiler.bundle.bundle import Bundle

CASCADE = "cascade.json"
SMALL, LARGE = "small.edgec", "large.edgec"


class Cascade(BaseModel):
    """A cascade says when the answer of the small model is enough; `cascade.json`.

    Attributes:
        version: of this format.
        threshold: the largest probability from which on it is.
        probabilities: whether the small model gives probabilities, not scores.
        large_probabilities: whether the large model does.
        drop: share of other answers than the large model's that the threshold was found for.
        samples: that the following was measured on; the threshold was found on others.
        agreement: share of the cascade's answers that are the large model's.
        escalated: share of the samples that the large model was asked for.
        accuracy: share of right answers of `small`, `large` and `cascade`; empty without labels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    threshold: float = Field(ge=0)
    probabilities: bool
    large_probabilities: bool
    drop: float
    samples: int
    agreement: float
    escalated: float
    accuracy: dict[str, float] = {}

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read the cascade of a folder that `edgec cascade` wrote.

        Raises:
            BundleError: there is none, or it is no cascade that this edgec reads.
        """
        file = Path(folder) / CASCADE
        try:
            return cls.model_validate(json.loads(file.read_bytes()))
        except OSError as error:
            raise BundleError(f"{folder} is no cascade: {CASCADE}: {error.strerror}") from None
        except (ValueError, ValidationError):
            raise BundleError(f"{file} is damaged; make the cascade again") from None


def is_cascade(path: str | Path) -> bool:
    """Return whether a path is a folder that `edgec cascade` wrote."""
    return (Path(path) / CASCADE).is_file()


def check_cascade_destination(path: Path) -> None:
    """Make sure that a cascade can be written to a path.

    Raises:
        OutputError: no such folder, no permission, or something that is no cascade is in the way.
    """
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: folder {path.parent} does not exist")
    if path.exists() and not is_cascade(path):
        raise OutputError(f"cannot write {path}: something that is no cascade is in the way")


def write_cascade(path: Path, cascade: Cascade, small: "Bundle", large: "Bundle") -> None:
    """Write the folder: it is there whole or not at all. One that is there is replaced.

    Raises:
        OutputError: it cannot be written.
    """
    check_cascade_destination(path)
    try:
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise output_error(path, error) from None
    try:
        filling = staging / "cascade"
        filling.mkdir()
        for name, bundle in ((SMALL, small), (LARGE, large)):
            shutil.copytree(bundle.file("."), filling / name)
        write_atomically(filling / CASCADE, cascade.model_dump_json(indent=1) + "\n")
        if path.is_dir():
            path.rename(staging / "old")
        filling.rename(path)
    except OSError as error:
        raise output_error(path, error) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
