"""Keep what a search found, one file for each fact, so that a kill at any moment loses nothing.

A search is decided by its settings and these facts alone: started again, it asks for the same
points in the same order, finds what is here, and goes on from there.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from edgec.compiler.errors import BadInputError
from edgec.compiler.fit.space import Point
from edgec.compiler.support.files import write_atomically

Kind = Literal["predicted", "evaluated", "compiled"]


class Records:
    """Records are the facts of one folder.

    Attributes:
        folder: made when the first is written.
        reused: how many facts were found in place of work.
    """

    def __init__(self, folder: Path, subject: str) -> None:
        """Read what is there.

        Args:
            folder: where the files are.
            subject: digest of what the facts are about; others are left alone.

        Raises:
            BadInputError: a file there is no fact.
        """
        self.folder = folder
        self.reused = 0
        self._subject = subject
        self._known: dict[str, dict[str, Any]] = {}
        for path in sorted(folder.glob("*.json")):
            self._read(path)

    def _read(self, path: Path) -> None:
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            if fields["subject"] == self._subject:
                self._known[path.stem] = fields["found"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInputError(
                f"{path} is no record of a search ({error}); delete it, and that trial is repeated"
            ) from None

    def find(self, kind: Kind, point: Point) -> dict[str, Any] | None:
        """Return what is known of a point; None if it has to be found out."""
        found = self._known.get(self._name(kind, point))
        self.reused += found is not None
        return found

    def keep(self, kind: Kind, point: Point, found: Mapping[str, Any]) -> None:
        """Write down what was found, at once and as a whole.

        Raises:
            OutputError: it cannot be written.
        """
        name = self._name(kind, point)
        self._known[name] = dict(found)
        fields = {"subject": self._subject, "point": point.label, "found": found}
        write_atomically(self.folder / f"{name}.json", json.dumps(fields, indent=1) + "\n")

    def _name(self, kind: Kind, point: Point) -> str:
        text = json.dumps([self._subject, point.quantize, point.compress, point.program])
        return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
