"""Run a compiled library on this machine.

A static model's library runs by itself, see `static_session.py`.
A model of data-dependent shape runs on TVM's virtual machine; its runtime (a few megabytes, not
the compiler) is loaded for that.
"""

import platform
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from numpy.typing import NDArray

from edgec.compiler.errors import BundleError
from edgec.compiler.ir.signature import Signature, Tensors
from edgec.compiler.runtime.executor import Executor
from edgec.compiler.runtime.fork import watch_forks
from edgec.compiler.runtime.static_session import StaticSession
from edgec.compiler.runtime.vm_session import VmSession
from edgec.targets.native import CPUINFO, cpu_flags
from edgec.targets.target import Target


class Session(Protocol):
    """A session is a loaded model.

    Attributes:
        lock: who holds it alone uses the session.
    """

    lock: threading.RLock

    def run(
        self, inputs: Tensors | NDArray[Any], program: str | None = None
    ) -> dict[str, NDArray[Any]]:
        """Return outputs by name.

        Args:
            inputs: by name.
            program: which of several; None takes the first one of these shapes.

        Raises:
            TensorInputError: an input is missing, has the wrong shape or dtype, or holds an index
                beyond its table.
        """

    def run_shared(self, inputs: Tensors | NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Run like `run`, but the next run may overwrite the arrays."""

    def run_padded(self, inputs: Tensors | NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Run like `run`, on inputs filled up with zeros; see `StaticSession.run_padded`."""

    def reset(self) -> None:
        """Begin anew: all state is zeros."""

    def save(self, path: str | Path) -> None:
        """Write the state to a file; see `StaticSession.save`."""

    def load(self, path: str | Path) -> None:
        """Read the state from a file; see `StaticSession.load`."""


def open_session(
    library: Path,
    target: Target,
    signature: Signature | Mapping[str, Signature],
    executor: Executor,
    threads: int = 0,
    index_bounds: Mapping[str, int] = MappingProxyType({}),
    title: str = "",
) -> Session:
    """Load a library, and return a session that any thread may call.

    Args:
        library: shared library that `edgec.compiler.codegen.build` made.
        target: what it was compiled for; must be able to run here.
        signature: inputs and outputs that callers pass; of a model of several programs those of
            each by its name.
        executor: what runs it.
        threads: threads to compute on; 0 is one for each core that this process may use.
        index_bounds: rows that an input chooses from, by name; a static library knows its own.
        title: what the library is called in messages; by default by its path.

    Raises:
        BundleError: this machine cannot run code for the target, or the library is damaged.
    """
    obstacle = why_not_here(target)
    if obstacle:
        title = title or f"{library.parent.name}/{library.name}"
        raise BundleError(
            f"{title} is for target {target.name}: {obstacle}; compile for --target "
            "native, or run it on its board"
        )
    programs = {"": signature} if isinstance(signature, Signature) else signature
    # The dynamic loader takes a path that it has loaded once for the same library, even if
    # another file is there by now: a bundle that was compiled again would run its old code.
    # So every load is under a name that was never used before.
    with tempfile.TemporaryDirectory(prefix="edgec-") as folder:
        alias = Path(folder) / "model.so"
        # Not resolved: a file in memory has no other name.
        alias.symlink_to(library.absolute())
        try:
            if executor == "static":
                return StaticSession(alias, programs, threads)
            (only,) = programs.values()
            return VmSession(alias, only, threads, index_bounds)
        except (OSError, RuntimeError, AttributeError) as error:
            first = str(error).strip().splitlines()[-1]
            raise BundleError(f"{library} cannot be loaded: {first}") from None


class SessionPool:
    """A session pool is sessions of one model that run at the same time.

    The weights are in memory once.

    Any thread may call `run`; it takes a session that is free, or waits for one.
    """

    def __init__(self, sessions: Sequence[Session]) -> None:
        self._sessions = tuple(sessions)
        self.lock = threading.RLock()
        self.after_fork()
        watch_forks(self)

    def after_fork(self) -> None:
        """Make all sessions free: nobody uses them in a child."""
        self._free = list(self._sessions)
        self._returned = threading.Condition(self.lock)

    def run(
        self, inputs: Tensors | NDArray[Any], program: str | None = None
    ) -> dict[str, NDArray[Any]]:
        """Return outputs by name; the arrays belong to the caller."""
        with self._returned:
            self._returned.wait_for(lambda: self._free)
            session = self._free.pop()
        try:
            return session.run(inputs, program)
        finally:
            with self._returned:
                self._free.append(session)
                self._returned.notify()


def why_not_here(target: Target) -> str:
    """Return why this machine cannot run code for a target; empty if it can.

    >>> from edgec.targets import load_target
    >>> "this machine is" in why_not_here(load_target("riscv64"))
    True
    """
    machine = platform.machine()
    if target.architecture != machine:
        return f"its code is for {target.architecture}, this machine is {machine}"
    if target.needed_flags is None:
        return ""
    flags = cpu_flags(CPUINFO.read_text(encoding="utf-8", errors="replace"))
    missing = sorted(target.needed_flags - flags)
    return f"this CPU lacks {', '.join(missing)}" if missing else ""
