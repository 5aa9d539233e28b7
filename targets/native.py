"""The machine that edgec runs on, as a target.

Reads what Linux says (`/proc/cpuinfo`, sysfs) and needs neither TVM nor LLVM, so that
listing targets stays fast.
"""

import os
import platform
import re
from pathlib import Path

from edgec.compiler.errors import TargetError
from edgec.targets.target import IntegerDot, Target

CPUINFO = Path("/proc/cpuinfo")
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")

# The x86-64 psABI levels, in the words of /proc/cpuinfo.
_LEVEL_2 = {"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"}
_LEVEL_3 = _LEVEL_2 | {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"}
_LEVEL_4 = _LEVEL_3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
X86_LEVELS = {"x86-64-v2": _LEVEL_2, "x86-64-v3": _LEVEL_3, "x86-64-v4": _LEVEL_4}

# Extensions beyond a level that code generation can use: /proc/cpuinfo to LLVM.
X86_EXTENSIONS = {
    "avx512_vnni": "avx512vnni",
    "avx_vnni": "avxvnni",
    "avx512_bf16": "avx512bf16",
    "avx512_fp16": "avx512fp16",
}

# /proc/cpuinfo "CPU part" of Arm's own cores to the LLVM name.
ARM_PARTS = {
    "0xd03": "cortex-a53",
    "0xd04": "cortex-a35",
    "0xd05": "cortex-a55",
    "0xd07": "cortex-a57",
    "0xd08": "cortex-a72",
    "0xd09": "cortex-a73",
    "0xd0a": "cortex-a75",
    "0xd0b": "cortex-a76",
    "0xd0c": "neoverse-n1",
    "0xd0d": "cortex-a77",
    "0xd40": "neoverse-v1",
    "0xd41": "cortex-a78",
    "0xd49": "neoverse-n2",
    "0xd4f": "neoverse-v2",
}
ARM_EXTENSIONS = {"asimddp": "dotprod", "i8mm": "i8mm", "asimdhp": "fullfp16"}


def cpu_flags(text: str) -> set[str]:
    r"""Feature words of the first core in a `/proc/cpuinfo` text.

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
    if platform.system() != "Linux" or machine not in ("x86_64", "aarch64"):
        raise TargetError(
            f"target native knows Linux on x86_64 and aarch64, this is "
            f"{platform.system()} on {machine}; name another target"
        )
    text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    return _x86(text) if machine == "x86_64" else _aarch64(text)


def _x86(text: str) -> Target:
    flags = cpu_flags(text)
    levels = [name for name, needed in X86_LEVELS.items() if needed <= flags]
    if not levels:
        missing = ", ".join(sorted(_LEVEL_2 - flags))
        raise TargetError(f"this CPU is below x86-64-v2: it lacks {missing}")
    level = levels[-1]
    features = tuple(
        f"+{llvm}"
        for flag, llvm in X86_EXTENSIONS.items()
        if level != "x86-64-v2" and flag in flags
    )
    wide = level == "x86-64-v4"
    dot: IntegerDot = "none"
    if "+avx512vnni" in features or "+avxvnni" in features:
        dot = "vnni"
    elif level != "x86-64-v2":
        dot = "avx512bw" if wide else "vpmaddwd"
    return Target(
        description=_description(text),
        triple="x86_64-linux-gnu",
        cpu=level,
        features=features,
        vector_bits={"x86-64-v2": 128, "x86-64-v3": 256, "x86-64-v4": 512}[level],
        vector_registers=32 if wide else 16,
        fma_units=2 if level != "x86-64-v2" else 1,
        integer_dot=dot,
        **_common(l1d=32, l2=512),
    )


def _aarch64(text: str) -> Target:
    flags = cpu_flags(text)
    part = re.search(r"^CPU part\s*:\s*(\S+)", text, re.MULTILINE)
    dot: IntegerDot = "i8mm" if "i8mm" in flags else "sdot" if "asimddp" in flags else "smlal"
    return Target(
        description=_description(text),
        triple="aarch64-linux-gnu",
        cpu=ARM_PARTS.get(part.group(1) if part else "", "generic"),
        features=("+neon", *(f"+{llvm}" for flag, llvm in ARM_EXTENSIONS.items() if flag in flags)),
        vector_bits=128,
        vector_registers=32,
        fma_units=2 if "asimddp" in flags else 1,
        integer_dot=dot,
        **_common(l1d=32, l2=256),
    )


def _common(*, l1d: int, l2: int) -> dict[str, object]:
    """Fields that every architecture reads in the same way; caches with a fallback [KiB]."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    caches = _caches()
    return {
        "name": "native",
        "cores": len(os.sched_getaffinity(0)),
        "l1d_kib": caches.get(1, l1d),
        "l2_kib": caches.get(2, l2),
        "l3_kib": caches.get(3, 0),
        "memory_mib": memory // 2**20,
        "clock_ghz": _clock_ghz(),
    }


def _caches() -> dict[int, int]:
    """Level to size [KiB] of the data caches of the first core."""
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
    """What Linux calls this processor; the architecture where it says nothing."""
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
