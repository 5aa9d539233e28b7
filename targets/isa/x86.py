"""Provide x86-64: levels of the psABI, and extensions beyond them.

Source: "System V Application Binary Interface, AMD64 Architecture Processor Supplement", 3.1.1.
"""

import re
from typing import Any

from edgec.compiler.errors import TargetError
from edgec.targets.isa.base import InstructionSet

# In the words of /proc/cpuinfo.
_LEVEL_2 = frozenset({"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"})
_LEVEL_3 = _LEVEL_2 | {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"}
_LEVEL_4 = _LEVEL_3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
LEVELS = {"x86-64-v2": _LEVEL_2, "x86-64-v3": _LEVEL_3, "x86-64-v4": _LEVEL_4}
_VECTOR_BITS = {"x86-64-v2": 128, "x86-64-v3": 256, "x86-64-v4": 512}

# Extensions beyond a level that code generation can use: LLVM's name to that of /proc/cpuinfo.
EXTENSIONS = {
    "avx512vnni": "avx512_vnni",
    "avxvnni": "avx_vnni",
    "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16",
}

# Extensions beyond plain x86-64 that a compiler may choose, by the names of Intel's manual; the
# others are for systems.
CHOSEN_BY_COMPILERS = re.compile(
    r"ADX|AES|AMX_.*|AVX.*|BMI[12]|F16C|FMA|GFNI|LZCNT|MOVBE|PCLMULQDQ|POPCNT|SHA|S?SSE[34].*|"
    r"VAES|VPCLMULQDQ"
)


def llvm_name(feature: str) -> str:
    """Return LLVM's name of an extension by that of Intel's manual.

    >>> [llvm_name(name) for name in ("SSE4_1", "AVX512_VNNI", "AVX_VNNI", "AMX_INT8", "BMI1")]
    ['sse4.1', 'avx512vnni', 'avxvnni', 'amx-int8', 'bmi']
    """
    name = feature.lower().replace("sse4_", "sse4.").replace("amx_", "amx-").replace("_", "")
    return {"bmi1": "bmi", "pclmulqdq": "pclmul"}.get(name, name)


def _native(_text: str, flags: set[str]) -> dict[str, Any]:
    levels = [name for name, needed in LEVELS.items() if needed <= flags]
    if not levels:
        missing = ", ".join(sorted(_LEVEL_2 - flags))
        raise TargetError(f"this CPU is below x86-64-v2: it lacks {missing}")
    level = levels[-1]
    has_more = level != "x86-64-v2"
    wide = level == "x86-64-v4"
    features = tuple(f"+{name}" for name, flag in EXTENSIONS.items() if has_more and flag in flags)
    dot = "none"
    if "+avx512vnni" in features or "+avxvnni" in features:
        dot = "vnni"
    elif has_more:
        dot = "avx512bw" if wide else "vpmaddwd"
    return {
        "triple": "x86_64-linux-gnu",
        "cpu": level,
        "features": features,
        "vector_bits": _VECTOR_BITS[level],
        "vector_registers": 32 if wide else 16,
        "fma_units": 2 if has_more else 1,
        "integer_dot": dot,
        "l2_kib": 512,
    }


X86_64 = InstructionSet(
    name="x86_64",
    elf_machine="EM_X86_64",
    zig="x86_64",
    debian=("amd64", "x86_64-linux-gnu"),
    activation_dtype="uint8",
    has_tvm_runtime=True,
    integer_dots={"vpmaddwd": (8, 16), "avx512bw": (8, 16), "vnni": (8, 16)},
    pairs_saturate=frozenset({"vpmaddwd", "avx512bw"}),
    levels=LEVELS,
    extensions=EXTENSIONS,
    native=_native,
)
