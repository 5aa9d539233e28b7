"""Describe what sessions do when the process forks (os.fork, multiprocessing, gunicorn).

A child has none of its parent's threads: a lock that another thread held would never be released
in it. So a fork waits until no session runs, and in the child every session begins with a new
lock and new threads.
"""

# Handlers of forks run in the reverse order of their registration. A session that runs may be about
# to take a lock of this module's, so ours are registered after its own, and run before them.
import concurrent.futures.thread  # noqa: F401
import os
import threading
import weakref
from typing import Protocol


class Forked(Protocol):
    """A forked is a session or a pool of them."""

    lock: threading.RLock

    def after_fork(self) -> None:
        """Forget, in a child of fork, what belongs to threads that are not there."""


_known: "weakref.WeakSet[Forked]" = weakref.WeakSet()
_held: list[Forked] = []


def watch_forks(item: Forked) -> None:
    """Hold the item's lock during every fork; `after_fork` is then called in the child."""
    _known.add(item)


def _before() -> None:
    for item in list(_known):
        item.lock.acquire()
        _held.append(item)


def _in_parent() -> None:
    while _held:
        _held.pop().lock.release()


def _in_child() -> None:
    _held.clear()
    for item in list(_known):
        item.lock = threading.RLock()
        item.after_fork()


os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
