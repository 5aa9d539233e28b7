"""Keep two copies of a model on a board, of which one runs.

```text
FOLDER/
├── current       link to the slot whose bundle applications open: `slots/a` or `slots/b`
├── slots/a, b    bundles; a.json.zst, b.json.zst: the releases they are. One is old, or being tried
├── incoming      a bundle that is being put together
├── state.json    which slot was confirmed, which is on trial, which releases failed here
├── root.json     the root that is trusted, and metadata/, the newest that was seen
└── agent.json    the settings
```

`current` is replaced by a rename and names a whole, tested bundle at any time. The state is written
before what it announces: a machine that stops anywhere finds, when it starts again, what it was at.
"""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from edgec.compiler.errors import BadInputError, BundleError, UsageError
from edgec.compiler.support.files import flush, write_atomically
from edgec.compiler.update.release import Release

SlotName = Literal["a", "b"]
SLOTS: tuple[SlotName, SlotName] = ("a", "b")


class Trial(BaseModel):
    """A trial is a release that is being tested.

    Attributes:
        slot: where it is.
        number: of the release.
        starts: how often its test began; a machine that stops in it counts, too.
    """

    model_config = ConfigDict(extra="forbid")

    slot: SlotName
    number: int
    starts: int = 0


class State(BaseModel):
    """State is what a board knows of its slots.

    Attributes:
        confirmed: the slot that works; None before the first.
        trial: what is being tested.
        failed: releases that did not work here, which are not tried again; with the reason.
        seconds: the latest time that was seen, since 1970.
    """

    model_config = ConfigDict(extra="forbid")

    confirmed: SlotName | None = None
    trial: Trial | None = None
    failed: dict[int, str] = {}
    seconds: float = 0


class Slots:
    """Slots are a board's two copies of a model.

    Args:
        folder: where they are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.current = folder / "current"
        self.incoming = folder / "incoming"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other agents out of the folder.

        Raises:
            UsageError: one is there.
        """
        with (self.folder / "lock").open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(f"{self.folder}: another agent is at work here") from None
            yield

    def read_state(self) -> State:
        """Return what was written last.

        Raises:
            BadInputError: it is damaged.
        """
        file = self.folder / "state.json"
        try:
            return State.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            return State()
        except ValidationError:
            raise BadInputError(f"{file} is damaged; remove it: the model stays") from None

    def write_state(self, state: State) -> None:
        """Replace the state, so that it outlives a loss of power."""
        write_atomically(self.folder / "state.json", state.model_dump_json(indent=1))
        flush(self.folder)

    def bundle(self, slot: SlotName) -> Path:
        """Return where the bundle of a slot is."""
        return self.folder / "slots" / slot

    def release(self, slot: SlotName | None) -> Release | None:
        """Return which release is in a slot; None if it is empty or not complete."""
        if slot is None or not self.bundle(slot).is_dir():
            return None
        try:
            return Release.from_bytes(self._record(slot).read_bytes())
        except (OSError, BundleError):
            return None

    def active(self) -> SlotName | None:
        """Return the slot that applications use."""
        try:
            name = self.current.readlink().name
        except OSError:
            return None
        return next((slot for slot in SLOTS if slot == name), None)

    def free(self) -> SlotName:
        """Return the slot that is not in use."""
        return "b" if self.active() == "a" else "a"

    def clear(self, slot: SlotName) -> None:
        """Empty a slot that is not in use."""
        assert slot != self.active()
        self._record(slot).unlink(missing_ok=True)
        self._discard(self.bundle(slot))

    def fill(self, slot: SlotName, release: Release) -> None:
        """Make what is in `incoming`, which is whole, the content of a slot that is not in use."""
        self.clear(slot)
        bundle = self.bundle(slot)
        bundle.parent.mkdir(exist_ok=True)
        self.incoming.rename(bundle)
        flush(bundle.parent)
        write_atomically(self._record(slot), release.to_bytes())
        flush(bundle.parent)

    def switch(self, slot: SlotName) -> None:
        """Have applications use a slot from now on."""
        assert self.release(slot) is not None
        link = self.folder / "current.new"
        link.unlink(missing_ok=True)
        link.symlink_to(Path("slots") / slot)
        link.replace(self.current)
        flush(self.folder)

    def _record(self, slot: SlotName) -> Path:
        return self.folder / "slots" / f"{slot}.json.zst"

    def _discard(self, path: Path) -> None:
        """Remove a folder, which is gone from its place at once."""
        trash = self.folder / "trash"
        shutil.rmtree(trash, ignore_errors=True)
        if path.exists():
            path.rename(trash)
            shutil.rmtree(trash, ignore_errors=True)
