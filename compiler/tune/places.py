"""The devices that a run measures on: those that fail rest, and come back."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, TypeVar

from edgec.compiler.errors import BoardError
from edgec.compiler.tune.devices import Device, MeasureFailed, Rest
from edgec.compiler.tune.report_data import Observer

# With no device working for so long there is nothing to wait for.
GIVE_UP_SECONDS = 900.0

_T = TypeVar("_T")


@dataclass
class Place:
    """A device, and whether it rests."""

    device: Device
    rest: Rest = field(default_factory=Rest)


class Places:
    """The places of a run."""

    def __init__(self, devices: Sequence[Device], database: Path, observer: Observer) -> None:
        self._places = [Place(device) for device in devices]
        self._database = database
        self._observer = observer

    def __iter__(self) -> Iterator[Place]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def first(self) -> Device:
        """The device that stands for all of them: they are alike."""
        return self._places[0].device

    @property
    def rest_seconds(self) -> float:
        """How long it is until the first of them may be tried again."""
        return min(place.rest.seconds for place in self._places)

    def cancel(self) -> None:
        """Stop what they measure."""
        for place in self._places:
            place.device.cancel()

    def let_rest(self, place: Place, error: MeasureFailed) -> None:
        """Leave a device alone for a while."""
        pause = place.rest.failed()
        self._observer.event("rest", device=place.device.name, why=str(error), seconds=pause)

    def patiently(self, action: Callable[[Device], _T]) -> _T:
        """Do something on whichever device works, on the first one if it does."""
        since = time.monotonic()
        while True:
            place = min(self._places, key=lambda p: p.rest.seconds)
            try:
                return action(place.device)
            except MeasureFailed as error:
                self.let_rest(place, error)
            if time.monotonic() - since > GIVE_UP_SECONDS:
                self.give_up()
            time.sleep(self.rest_seconds)

    def give_up(self) -> NoReturn:
        """End the run: no device works.

        Raises:
            BoardError: always.
        """
        names = ", ".join(place.device.name for place in self._places)
        raise BoardError(
            f"no round could be measured on {names} for {GIVE_UP_SECONDS / 60:.0f} minutes; what "
            f"was measured before is in {self._database}, the same command goes on from there"
        )
