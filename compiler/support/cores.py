"""Count the cores that this process may use."""

import os
from collections.abc import Iterator
from pathlib import Path

_OWN_GROUPS = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Return the cores of this process's affinity that the quota of its control groups pays for.

    A quota of 1.5 cores counts as 2.
    """
    cores = len(os.sched_getaffinity(0))
    return max(1, min([cores, *_quotas(_OWN_GROUPS, _MOUNT)]))


def _quotas(own_groups: Path, mount: Path) -> Iterator[int]:
    """Yield the cores that each control group of the process pays for, where it has a limit.

    Args:
        own_groups: lines of number, controllers and group: `0::/a/b` in version 2 of control
            groups, `3:cpu,cpuacct:/a/b` in version 1.
        mount: where control groups are mounted.
    """
    for line in _text(own_groups).splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            roots = [mount]
        elif "cpu" in controllers.split(","):
            roots = [mount / controllers, mount / "cpu"]
        else:
            continue
        for root in roots:
            folder = root / group.strip("/")
            for place in (folder, *folder.parents):
                yield from _quota(place)
                if place == root:
                    break


def _quota(group: Path) -> Iterator[int]:
    numbers = _text(group / "cpu.max").split() or [
        *_text(group / "cpu.cfs_quota_us").split(),
        *_text(group / "cpu.cfs_period_us").split(),
    ]
    # "max" and -1 are no limit.
    if len(numbers) == 2 and numbers[0].isdigit():
        yield -(-int(numbers[0]) // int(numbers[1]))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
