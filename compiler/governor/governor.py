"""Call the C that chooses among variants: governor.so of a bundle.

Python and the program `run` of a bundle use the same C, see `native/governor.h`.
"""

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgec.compiler.errors import BundleError, UsageError

GOVERNOR = "governor.so"
_MOST_OPTIONS = 256
_OnSwitch = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32)


class _OptionStruct(ctypes.Structure):
    _fields_ = (
        ("program", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("accuracy", ctypes.c_double),
        ("latency_ms", ctypes.c_double),
    )


class _SignalsStruct(ctypes.Structure):
    _fields_ = (
        ("to_trip", ctypes.c_double),
        ("clock", ctypes.c_double),
        ("busy_cores", ctypes.c_double),
        ("battery", ctypes.c_double),
    )


class _SettingsStruct(ctypes.Structure):
    _fields_ = (
        ("deadline_ms", ctypes.c_double),
        ("miss_share", ctypes.c_double),
        ("accuracy_floor", ctypes.c_double),
        ("low_battery", ctypes.c_double),
        ("cores", ctypes.c_int32),
        ("on_switch", _OnSwitch),
        ("context", ctypes.c_void_p),
    )


class _ReportStruct(ctypes.Structure):
    _fields_ = (
        ("inferences", ctypes.c_int64),
        ("misses", ctypes.c_int64),
        ("switches", ctypes.c_int64),
        ("accuracy", ctypes.c_double),
        ("slowdown", ctypes.c_double),
    )


_Options = ctypes.POINTER(_OptionStruct)
# Result and arguments by the name of the function.
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "governor_open": (
        ctypes.c_void_p,
        (_Options, ctypes.c_int32, ctypes.POINTER(_SettingsStruct)),
    ),
    "governor_close": (None, (ctypes.c_void_p,)),
    "governor_choose": (ctypes.c_int32, (ctypes.c_void_p, ctypes.c_double)),
    "governor_observe": (None, (ctypes.c_void_p, ctypes.c_double, ctypes.c_double)),
    "governor_note": (
        None,
        (ctypes.c_void_p, ctypes.c_double, ctypes.POINTER(_SignalsStruct)),
    ),
    "governor_expected_ms": (ctypes.c_double, (ctypes.c_void_p, ctypes.c_int32)),
    "governor_reported": (_ReportStruct, (ctypes.c_void_p,)),
    "signals_open": (ctypes.c_void_p, (ctypes.c_char_p, ctypes.c_char_p)),
    "signals_close": (None, (ctypes.c_void_p,)),
    "signals_read": (_SignalsStruct, (ctypes.c_void_p,)),
    "race": (
        ctypes.c_int32,
        (
            *(ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)),
            *(ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_double)),
            *(_Options, ctypes.c_int32),
        ),
    ),
    "options_read": (
        ctypes.c_int32,
        (ctypes.c_char_p, ctypes.c_char_p, _Options, ctypes.c_int32),
    ),
    "options_write": (
        ctypes.c_int,
        (ctypes.c_char_p, ctypes.c_char_p, _Options, ctypes.c_int32),
    ),
}


@dataclass(frozen=True)
class Option:
    """An option is a variant on so many threads.

    Attributes:
        program: number of the variant's program in the bundle.
        threads: threads that it computes on.
        accuracy: 0 to 1.
        latency_ms: of one inference on this machine while nothing else ran.
    """

    program: int
    threads: int
    accuracy: float
    latency_ms: float


@dataclass(frozen=True)
class Signals:
    """Signals are what a machine says of itself.

    Attributes:
        to_trip: kelvins from the hottest zone to where it throttles; negative above.
        clock: the present clock as a share of the highest; 1 if nobody says.
        busy_cores: cores that other processes keep busy.
        battery: what is left, 0 to 1, while the machine runs on it; 1 otherwise.
    """

    to_trip: float = math.inf
    clock: float = 1.0
    busy_cores: float = 0.0
    battery: float = 1.0


@dataclass(frozen=True, kw_only=True)
class GovernorSettings:
    """Governor settings say what is to be kept.

    Attributes:
        deadline_ms: of one inference.
        miss_share: share of the deadlines that may be missed.
        accuracy_floor: options below it serve only where no other meets the deadline.
        low_battery: below this charge the option of least work is taken.
        on_switch: called after each switch with the option before (None at first) and the new one.
        sys: folder of heat, clock and battery.
        proc: folder of load.
    """

    deadline_ms: float
    miss_share: float = 0.01
    accuracy_floor: float = 0.0
    low_battery: float = 0.2
    on_switch: Callable[[Option | None, Option], None] | None = None
    sys: Path = Path("/sys")
    proc: Path = Path("/proc")

    def __post_init__(self) -> None:
        """Check that there can be such settings.

        Raises:
            UsageError: one cannot be.
        """
        if not 0 < self.deadline_ms < math.inf:
            raise UsageError(f"a deadline is more than 0 ms; {self.deadline_ms} was given")
        for name, value in (("miss_share", self.miss_share), ("low_battery", self.low_battery)):
            if not 0 < value <= 1:
                raise UsageError(f"{name} is a share from 0 to 1; {value} was given")


@dataclass(frozen=True)
class GovernorReport:
    """A governor report says what came of its choices.

    Attributes:
        inferences: how many were observed.
        misses: how many of them took longer than the deadline.
        switches: how often another option was chosen, the first choice included.
        accuracy: mean of the options that ran.
        slowdown: of an inference at present, beside its latency while nothing else ran.
    """

    inferences: int
    misses: int
    switches: int
    accuracy: float
    slowdown: float


class GovernorLibrary:
    """A governor library is governor.so, loaded."""

    def __init__(self, path: Path) -> None:
        """Load the library.

        Raises:
            BundleError: it cannot be loaded.
        """
        # Under a name that was never used before: the loader would give an older file of this path.
        with TemporaryDirectory(prefix="edgec-") as folder:
            alias = Path(folder) / path.name
            alias.symlink_to(path.absolute())
            try:
                loaded = ctypes.CDLL(str(alias))
                for name, (result, arguments) in _FUNCTIONS.items():
                    function = loaded[f"edgec_{name}"]
                    function.restype, function.argtypes = result, arguments
                    setattr(self, name, function)
            except (OSError, AttributeError) as error:
                raise BundleError(f"{path} cannot be loaded: {error}") from None

    governor_open: Any
    governor_close: Any
    governor_choose: Any
    governor_observe: Any
    governor_note: Any
    governor_expected_ms: Any
    governor_reported: Any
    signals_open: Any
    signals_close: Any
    signals_read: Any
    race: Any
    options_read: Any
    options_write: Any

    def read_options(self, path: Path, model: str) -> list[Option]:
        """Return what was measured on this machine for a model; empty if nothing was."""
        structs = (_OptionStruct * _MOST_OPTIONS)()
        count = self.options_read(bytes(path), model.encode(), structs, _MOST_OPTIONS)
        return [_option(struct) for struct in structs[:count]]

    def measure_options(
        self,
        addresses: tuple[int, int],
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        accuracies: Sequence[float],
    ) -> list[Option]:
        """Return the options of a model, measured on this machine; see `edgec_race`.

        Args:
            addresses: of the model and the session, as `StaticSession.addresses` gives them.
            inputs: of each program, pointers as of `edgec.compiler.runtime.library.pointers`.
            outputs: likewise.
            accuracies: of each program.

        Raises:
            BundleError: the model cannot be run.
        """
        structs = (_OptionStruct * _MOST_OPTIONS)()
        count = self.race(
            *addresses,
            _addresses(inputs),
            _addresses(outputs),
            (ctypes.c_double * len(accuracies))(*accuracies),
            structs,
            _MOST_OPTIONS,
        )
        if count < 0:
            raise BundleError("a variant failed on its test vector; run edgec verify")
        return [_option(struct) for struct in structs[:count]]

    def write_options(self, path: Path, model: str, options: Sequence[Option]) -> bool:
        """Keep what was measured, whole or not at all; whether that was possible."""
        status = self.options_write(bytes(path), model.encode(), _structs(options), len(options))
        return bool(status == 0)


class Governor:
    """A governor chooses an option before each inference, and learns from how long it took."""

    def __init__(
        self,
        library: GovernorLibrary,
        options: Sequence[Option],
        settings: GovernorSettings,
        cores: int,
    ) -> None:
        """Begin without experience.

        Args:
            library: does the work.
            options: what can be chosen.
            settings: what is to be kept.
            cores: that this process may use.
        """
        self.options = tuple(options)
        self.settings = settings
        self._library = library
        self._callback = _OnSwitch(self._switched)
        made = _SettingsStruct(
            settings.deadline_ms,
            settings.miss_share,
            settings.accuracy_floor,
            settings.low_battery,
            cores,
            self._callback if settings.on_switch else _OnSwitch(),
            None,
        )
        self._handle = library.governor_open(_structs(options), len(options), made)
        if not self._handle:
            raise MemoryError("for a governor")

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.governor_close(self._handle)
            if "_files" in self.__dict__:
                self._library.signals_close(self._files)

    def choose(self, now_ms: float) -> Option:
        """Return the option for the next inference; times are of any clock that never goes back."""
        number = int(self._library.governor_choose(self._handle, now_ms))
        return self.options[number]

    def observe(self, now_ms: float, latency_ms: float) -> None:
        """Note how long the inference took that ran by the option chosen last."""
        self._library.governor_observe(self._handle, now_ms, latency_ms)

    def note(self, now_ms: float, signals: Signals) -> None:
        """Note what the machine says."""
        struct = _SignalsStruct(signals.to_trip, signals.clock, signals.busy_cores, signals.battery)
        self._library.governor_note(self._handle, now_ms, struct)

    def read_signals(self) -> Signals:
        """Return what the machine says, by the folders of the settings."""
        found = self._library.signals_read(self._files)
        return Signals(found.to_trip, found.clock, found.busy_cores, found.battery)

    @cached_property
    def _files(self) -> Any:
        return self._library.signals_open(bytes(self.settings.sys), bytes(self.settings.proc))

    def expected_ms(self, option: Option) -> float:
        """Return the latency that an option keeps but for the share of misses."""
        number = self.options.index(option)
        return float(self._library.governor_expected_ms(self._handle, number))

    def report(self) -> GovernorReport:
        """Return what came of the choices."""
        found = self._library.governor_reported(self._handle)
        return GovernorReport(
            found.inferences, found.misses, found.switches, found.accuracy, found.slowdown
        )

    def _switched(self, _context: Any, before: int, now: int) -> None:
        assert self.settings.on_switch is not None
        self.settings.on_switch(None if before < 0 else self.options[before], self.options[now])


def _option(struct: Any) -> Option:
    return Option(struct.program, struct.threads, struct.accuracy, struct.latency_ms)


def _addresses(arrays: Sequence[Any]) -> Any:
    return (ctypes.c_void_p * len(arrays))(*map(ctypes.addressof, arrays))


def _structs(options: Sequence[Option]) -> Any:
    made = [_OptionStruct(o.program, o.threads, o.accuracy, o.latency_ms) for o in options]
    return (_OptionStruct * max(1, len(made)))(*made)
