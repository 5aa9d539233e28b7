"""Provide the machine that edgec runs on, as a target.

Reads what Linux says (`/proc/cpuinfo`, sysfs) and needs neither TVM nor LLVM, so that
listing targets stays fast.
"""

import os
import platform
import re
from pathlib import Path
from typing import Any

from edgec.compiler.errors import TargetError
from edgec.targets.isa import INSTRUCTION_SETS
from edgec.targets.target import Target

CPUINFO = Path("/proc/cpuinfo")
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def cpu_flags(text: str) -> set[str]:
    r"""Return feature words of the first core in a `/proc/cpuinfo` text.

    >>> sorted(cpu_flags("processor : 0\nflags : fma avx2\n"))
    ['avx2', 'fma']
    """
    match = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    return set(match.group(1).split()) if match else set()


def detect_native() -> Target:
    """Describe this machine.

    Raises:
        TargetError: the system is not Linux, or its CPU is below every known level.
    """
    machine = platform.machine()
    isa = INSTRUCTION_SETS.get(machine)
    if platform.system() != "Linux" or isa is None or isa.native is None:
        known = [each.name for each in INSTRUCTION_SETS.values() if each.native]
        raise TargetError(
            f"target native knows Linux on {' and '.join(known)}, this is "
            f"{platform.system()} on {machine}; name another target"
        )
    text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    fields = isa.native(text, cpu_flags(text))
    return Target(description=_description(text), **{**fields, **_common()})


def _common() -> dict[str, Any]:
    """Return the fields that every architecture reads in the same way."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    caches = {f"l{level}{'d' * (level == 1)}_kib": size for level, size in _caches().items()}
    return {
        "name": "native",
        "cores": len(os.sched_getaffinity(0)),
        "l1d_kib": 32,
        **caches,
        "memory_mib": memory // 2**20,
        "clock_ghz": _clock_ghz(),
    }


def _caches() -> dict[int, int]:
    """Return level to size [KiB] of the data caches of the first core."""
    sizes = {}
    for index in sorted(CACHES.glob("index*")):
        try:
            if (index / "type").read_text().strip() == "Instruction":
                continue
            size = (index / "size").read_text().strip()
            sizes[int((index / "level").read_text())] = int(size.removesuffix("K"))
        except (OSError, ValueError):
            continue
    return sizes


def _clock_ghz() -> float:
    path = Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
    try:
        return int(path.read_text()) / 1e6
    except (OSError, ValueError):
        match = re.search(r"^cpu MHz\s*:\s*([\d.]+)", CPUINFO.read_text(), re.MULTILINE)
        return round(float(match.group(1)) / 1e3, 2) if match else 2.0


def cpu_name() -> str:
    """Return what Linux calls this processor; the architecture where it says nothing."""
    try:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    return _model_name(text) or platform.machine()


def _model_name(text: str) -> str:
    match = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1).strip() if match else ""


def _description(text: str) -> str:
    return ": ".join(filter(None, ("this machine", _model_name(text))))
