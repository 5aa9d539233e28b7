"""Provide 64-bit and 32-bit Arm: extensions, how they are reported, and their encodings.

Sources: Linux, `arch/arm64/include/uapi/asm/hwcap.h`; "Arm Architecture Reference Manual", A64
instruction set encoding; "Addenda to, and Errata in, the ABI for the Arm Architecture".
"""

import re
from typing import Any

from edgec.targets.isa.base import InstructionSet

# Extensions that code generation uses for numbers: LLVM's name to Linux's.
EXTENSIONS = {
    "fp-armv8": "fp",
    "neon": "asimd",
    "lse": "atomics",
    "fullfp16": "asimdhp",
    "rdm": "asimdrdm",
    "rcpc": "lrcpc",
    "dotprod": "asimddp",
    "fp16fml": "asimdfhm",
    "complxnum": "fcma",
    "sve": "sve",
    "sve2": "sve2",
    "i8mm": "i8mm",
    "bf16": "bf16",
}
# Those of them that the description of this machine names beside what its CPU has.
_NATIVE = ("dotprod", "i8mm", "fullfp16")

HWCAP = {
    "fp": (1, 0),
    "asimd": (1, 1),
    "atomics": (1, 8),
    "asimdhp": (1, 10),
    "asimdrdm": (1, 12),
    "fcma": (1, 14),
    "lrcpc": (1, 15),
    "asimddp": (1, 20),
    "sve": (1, 22),
    "asimdfhm": (1, 23),
    "sve2": (2, 1),
    "i8mm": (2, 13),
    "bf16": (2, 14),
}

# /proc/cpuinfo "CPU part" of Arm's own cores to the LLVM name.
PARTS = {
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

# Extension, mnemonic, and the bits of a word (mask, value) that make it this instruction; from the
# Arm Architecture Reference Manual, A64 instruction set encoding.
ENCODINGS = (
    ("dotprod", "sdot or udot", 0x9FE0FC00, 0x0E809400),
    ("dotprod", "sdot or udot by element", 0x9FC0F400, 0x0F80E000),
    ("i8mm", "smmla, ummla or usmmla", 0xDFE0F400, 0x4E80A400),
    ("i8mm", "usdot", 0xBFE0FC00, 0x0E809C00),
    ("i8mm", "usdot or sudot by element", 0xBF40F400, 0x0F00F000),
    ("bf16", "bfdot", 0xBFE0FC00, 0x2E40FC00),
    ("bf16", "bfmmla", 0xFFE0FC00, 0x6E40EC00),
    ("bf16", "bfmlalb or bfmlalt", 0xBFE0FC00, 0x2EC0FC00),
    ("bf16", "bfcvt", 0xFFFFFC00, 0x1E634000),
    ("bf16", "bfcvtn", 0xBFFFFC00, 0x0EA16800),
    ("fullfp16", "arithmetic on half floats", 0xFFE00C00, 0x1EE00800),
    ("fullfp16", "fmadd on half floats", 0xFFC00000, 0x1FC00000),
    ("fullfp16", "fcmp on half floats", 0xFFE0FC07, 0x1EE02000),
    ("fullfp16", "fcsel on half floats", 0xFFE00C00, 0x1EE00C00),
    ("fullfp16", "fabs, fneg or fsqrt on half floats", 0xFFFE7C00, 0x1EE04000),
    ("fullfp16", "frint on half floats", 0xFFFC7C00, 0x1EE44000),
    ("fullfp16", "conversion between integers and half floats", 0x7FE0FC00, 0x1EE00000),
    ("fullfp16", "fmov of half floats", 0xFFE01FE0, 0x1EE01000),
    ("fullfp16", "arithmetic on vectors of half floats", 0x9F60C400, 0x0E400400),
    ("fullfp16", "conversion of vectors of half floats", 0x9F7E0C00, 0x0E780800),
    ("fullfp16", "fmla or fmls of half floats by element", 0x9FC0B400, 0x0F001000),
    ("fullfp16", "fmul of half floats by element", 0x9FC0F400, 0x0F009000),
    ("fullfp16", "fmov of vectors of half floats", 0xBFF8FC00, 0x0F00FC00),
    ("fullfp16", "maximum or minimum across half floats", 0xBF7FFC00, 0x0E30C800),
    ("fullfp16", "maximum or minimum across half floats", 0xBF7FFC00, 0x0E30F800),
    ("fp16fml", "fmlal or fmlsl", 0xBF60FC00, 0x0E20EC00),
    ("fp16fml", "fmlal2 or fmlsl2", 0xBF60FC00, 0x2E20CC00),
    ("lse", "an atomic operation", 0x3F208C00, 0x38200000),
    ("lse", "swp", 0x3F20FC00, 0x38208000),
    ("lse", "cas", 0x3FA07C00, 0x08A07C00),
    ("lse", "casp", 0xBFA07C00, 0x08207C00),
    ("rcpc", "ldapr", 0x3FFFFC00, 0x38BFC000),
    ("rcpc-immo", "ldapur or stlur", 0x3F200C00, 0x19000000),
    ("rdm", "sqrdmlah or sqrdmlsh", 0xBF20F400, 0x2E008400),
    ("rdm", "sqrdmlah or sqrdmlsh by element", 0xBF00D400, 0x2F00D000),
    ("complxnum", "fcmla", 0xBF20E400, 0x2E00C400),
    ("complxnum", "fcadd", 0xBF20EC00, 0x2E00E400),
    ("jsconv", "fjcvtzs", 0xFFFFFC00, 0x1E7E0000),
    ("aes", "aese, aesd, aesmc or aesimc", 0xFFFFCC00, 0x4E284800),
    ("aes", "pmull of 64 bits", 0xBFE0FC00, 0x0EE0E000),
    ("sha2", "sha1 or sha256 of three registers", 0xFFE08C00, 0x5E000000),
    ("sha2", "sha1 or sha256 of two registers", 0xFFFFCC00, 0x5E280800),
    ("sha3", "eor3 or bcax", 0xFFC08000, 0xCE000000),
    ("sve", "a scalable vector instruction", 0x1E000000, 0x04000000),
    ("sme", "a matrix instruction", 0x9E000000, 0x80000000),
)

# What an object's build attributes say it was compiled for, and LLVM's name of that; "Addenda to,
# and Errata in, the ABI for the Arm Architecture". Smaller values are in every Armv7-A with VFPv3.
BUILD_ATTRIBUTES = {
    "TAG_CPU_ARCH": {14: "v8", 21: "v8.1m.main", 22: "v9a"},
    "TAG_FP_ARCH": {5: "vfp4", 6: "vfp4d16", 7: "fp-armv8", 8: "fp-armv8d16"},
    "TAG_ADVANCED_SIMD_ARCH": {1: "neon", 2: "neon", 3: "v8", 4: "v8.1a"},
}


def _native(text: str, flags: set[str]) -> dict[str, Any]:
    part = re.search(r"^CPU part\s*:\s*(\S+)", text, re.MULTILINE)
    has_dot = EXTENSIONS["dotprod"] in flags
    added = tuple(f"+{name}" for name in _NATIVE if EXTENSIONS[name] in flags)
    return {
        "triple": "aarch64-linux-gnu",
        "cpu": PARTS.get(part.group(1) if part else "", "generic"),
        "features": ("+neon", *added),
        "vector_bits": 128,
        "vector_registers": 32,
        "fma_units": 2 if has_dot else 1,
        "integer_dot": "i8mm" if EXTENSIONS["i8mm"] in flags else "sdot" if has_dot else "smlal",
        "l2_kib": 256,
    }


AARCH64 = InstructionSet(
    name="aarch64",
    elf_machine="EM_AARCH64",
    zig="aarch64",
    debian=("arm64", "aarch64-linux-gnu"),
    emulator="qemu-aarch64",
    clock_calls=(113,),
    has_tvm_runtime=True,
    multiplies_by_lane=True,
    integer_dots={"smlal": (4,), "sdot": (4,), "i8mm": (4,)},
    pairs_fit=frozenset({"smlal"}),
    extensions=EXTENSIONS,
    hwcap=HWCAP,
    native=_native,
)

ARMV7 = InstructionSet(
    name="armv7l",
    elf_machine="EM_ARM",
    zig="arm",
    debian=("armhf", "arm-linux-gnueabihf"),
    emulator="qemu-arm",
    clock_calls=(263, 403),
    multiplies_by_lane=True,
    extensions=EXTENSIONS,
    hwcap=HWCAP,
    # "ELF for the Arm Architecture": EF_ARM_ABI_FLOAT_HARD.
    float_abis={"hard": 0x400, "soft": 0},
    float_abi_mask=0x400,
)
