"""Run the variant of a model that a governor chooses."""

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgec.compiler.errors import TensorInputError
from edgec.compiler.governor.governor import (
    Governor,
    GovernorLibrary,
    GovernorReport,
    GovernorSettings,
    Option,
)
from edgec.compiler.ir.signature import Signature, Tensors
from edgec.compiler.runtime.library import pointers
from edgec.compiler.runtime.static_session import StaticSession

# How often the machine is asked how it is.
SIGNALS_MS = 100.0

Inputs = Tensors | NDArray[Any]


def state_file(model: str) -> Path:
    """Return where what was measured on this machine is kept: of a model, by its digest.

    In `$XDG_STATE_HOME/edgec`, or `~/.local/state/edgec`.
    """
    home = os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()
    return Path(home) / "edgec" / f"{model[:32]}.options"


def read_measured(library: GovernorLibrary, digest: str, threads: int) -> list[Option]:
    """Return what an installation measured on this machine; empty if there was none.

    Args:
        library: does the work.
        digest: of the bundle.
        threads: options of more are left out.
    """
    options = library.read_options(state_file(digest), digest)
    return [option for option in options if option.threads <= threads]


def measure_options(
    session: StaticSession,
    library: GovernorLibrary,
    vectors: Sequence[Inputs],
    signatures: Mapping[str, Signature],
    accuracies: Sequence[float],
) -> list[Option]:
    """Return the options of a model, measured on this machine.

    Args:
        session: the model.
        library: does the work.
        vectors: inputs of each program.
        signatures: of each program by its name.
        accuracies: of each program.
    """
    prepared = [
        session.prepare(inputs, name) for inputs, name in zip(vectors, signatures, strict=True)
    ]
    outputs = [session.new_outputs(number) for number in range(len(prepared))]
    with session.lock:
        return library.measure_options(
            session.addresses,
            [pointers(one.arrays) for one in prepared],
            [pointers(arrays) for arrays in outputs],
            accuracies,
        )


class GovernedSession:
    """A governed session runs the variant, and on the threads, that meet a deadline.

    Any thread may call it; runs take turns.
    """

    def __init__(
        self,
        session: StaticSession,
        names: Sequence[str],
        library: GovernorLibrary,
        options: Sequence[Option],
        settings: GovernorSettings,
    ) -> None:
        """Begin without experience.

        Args:
            session: the model.
            names: of its programs, in order.
            library: does the work.
            options: what can be chosen.
            settings: what is to be kept.
        """
        self.governor = Governor(library, options, settings, session.threads)
        self._session = session
        self._names = tuple(names)
        self._noted_ms = 0.0
        self.lock = threading.RLock()

    def choose(self) -> Option:
        """Return the option of the next run, for applications that prepare inputs for it."""
        with self.lock:
            now = _now_ms()
            if now - self._noted_ms >= SIGNALS_MS:
                self._noted_ms = now
                self.governor.note(now, self.governor.read_signals())
            return self.governor.choose(now)

    def name(self, option: Option) -> str:
        """Return the name of an option's variant."""
        return self._names[option.program]

    def run(
        self, inputs: Inputs | Callable[[str], Inputs], option: Option | None = None
    ) -> dict[str, NDArray[Any]]:
        """Return outputs by name.

        Args:
            inputs: inputs; of variants whose shapes differ a function that gives them for the
                variant of a name. The time that this function takes is not the inference's.
            option: what `choose` gave; None chooses.

        Raises:
            TensorInputError: the inputs do not fit the variant.
        """
        with self.lock:
            chosen = option or self.choose()
            name = self.name(chosen)
            given = inputs(name) if callable(inputs) else inputs
            try:
                prepared = self._session.prepare(given, name)
            except TensorInputError as error:
                raise TensorInputError(f"variant {name}: {error}") from None
            outputs = self._session.new_outputs(prepared.program)
            self._session.use_threads(chosen.threads)
            began = _now_ms()
            self._session.run_into(prepared, outputs)
            ended = _now_ms()
            self.governor.observe(ended, ended - began)
            return self._session.named(prepared.program, outputs)

    def report(self) -> GovernorReport:
        """Return what came of the choices."""
        return self.governor.report()


def _now_ms() -> float:
    return time.monotonic() * 1e3
