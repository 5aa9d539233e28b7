"""Provide the devices that a run measures on: those that fail rest, and come back."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, TypeVar

from edgec.compiler.errors import BoardError
from edgec.compiler.tune.devices import Backoff, Device, MeasureFailed
from edgec.compiler.tune.report_data import TuningObserver

# With no device working for so long there is nothing to wait for.
GIVE_UP_SECONDS = 900.0

_T = TypeVar("_T")


@dataclass
class Slot:
    """A slot describes a device, and whether it rests."""

    device: Device
    backoff: Backoff = field(default_factory=Backoff)


class Slots:
    """Slots are where the rounds of a run are timed."""

    def __init__(self, devices: Sequence[Device], database: Path, observer: TuningObserver) -> None:
        self._slots = [Slot(device) for device in devices]
        self._database = database
        self._observer = observer

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def first(self) -> Device:
        """Return the device that stands for all of them: they are alike."""
        return self._slots[0].device

    @property
    def backoff_seconds(self) -> float:
        """Return how long it is until the first of them may be tried again."""
        return min(slot.backoff.seconds for slot in self._slots)

    def cancel(self) -> None:
        """Stop what they measure."""
        for slot in self._slots:
            slot.device.cancel()

    def back_off(self, slot: Slot, error: MeasureFailed) -> None:
        """Leave a device alone for a while."""
        pause = slot.backoff.failed()
        self._observer.event("rest", device=slot.device.name, why=str(error), seconds=pause)

    def patiently(self, action: Callable[[Device], _T]) -> _T:
        """Do something on whichever device works, on the first one if it does."""
        since = time.monotonic()
        while True:
            slot = min(self._slots, key=lambda p: p.backoff.seconds)
            try:
                return action(slot.device)
            except MeasureFailed as error:
                self.back_off(slot, error)
            if time.monotonic() - since > GIVE_UP_SECONDS:
                self.give_up()
            time.sleep(self.backoff_seconds)

    def give_up(self) -> NoReturn:
        """End the run: no device works.

        Raises:
            BoardError: always.
        """
        names = ", ".join(slot.device.name for slot in self._slots)
        raise BoardError(
            f"no round could be measured on {names} for {GIVE_UP_SECONDS / 60:.0f} minutes; what "
            f"was measured before is in {self._database}, the same command goes on from there"
        )
