"""Count the cores that this process may use, by the rule of `codegen/executor/cores.c`.

Those of its affinity, and no more than the CPU quota of its control groups pays for (cgroups of
both versions; a quota of 1.5 cores counts as 2).
"""

import os
from pathlib import Path, PurePosixPath

_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")


def usable_cores(groups: Path = _GROUPS, own_groups: Path = _OWN_GROUPS) -> int:
    """Return how many cores this process may use, at least 1.

    Args:
        groups: where control groups are mounted.
        own_groups: the list of those that this process is in, as the system gives it:
            `0::/a/b` of version 2, `3:cpu,cpuacct:/a/b` of version 1.
    """
    cores = len(os.sched_getaffinity(0))
    for line in _text(own_groups).splitlines():
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        if not group:
            continue
        if not controllers:
            mounts = [groups]
        elif "cpu" in controllers.split(","):
            mounts = [groups / controllers, groups / "cpu"]
        else:
            continue
        path = PurePosixPath(group.lstrip("/"))
        for mount in mounts:
            # A group's own quota, and that of all that contain it, as far as they are mounted.
            for folder in (path, *path.parents):
                cores = min(cores, _paid_cores(mount / folder) or cores)
    return max(1, cores)


def _paid_cores(folder: Path) -> int:
    """Return the cores that a group's quota pays for; 0: it has none."""
    limit = _numbers(folder / "cpu.max")
    if len(limit) < 2:
        limit = _numbers(folder / "cpu.cfs_quota_us") + _numbers(folder / "cpu.cfs_period_us")
    if len(limit) < 2 or limit[0] <= 0 or limit[1] <= 0:
        return 0
    quota, period = limit[:2]
    return -(-quota // period)


def _numbers(path: Path) -> list[int]:
    """Return the whole numbers that a file begins with; none if it begins with a word ("max")."""
    numbers = []
    for word in _text(path).split():
        try:
            numbers.append(int(word))
        except ValueError:
            break
    return numbers


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
