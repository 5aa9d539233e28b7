"""Describe what edgec knows of instruction sets without TVM.

Names, extensions, how integers multiply.

One file describes one family; a target names its instruction set by the first part of its triple.
How kernels are written for an instruction set is in `edgec.compiler.kernels.isa`.
"""

from typing import Literal

from edgec.targets.isa.arm import AARCH64, ARMV7
from edgec.targets.isa.base import InstructionSet
from edgec.targets.isa.riscv import RISCV64
from edgec.targets.isa.x86 import X86_64

Architecture = Literal["x86_64", "aarch64", "armv7l", "riscv64"]

IntegerDot = Literal["none", "generic", "vpmaddwd", "avx512bw", "vnni", "smlal", "sdot", "i8mm"]
"""What multiplies int8 fastest: the widest instruction of each family.

none      no instruction worth using (RISC-V without vectors): kernels compute in floats
generic   int32 arithmetic that every processor has; for vectors whose own instructions no kernel
          knows yet
vpmaddwd  AVX2: int16 pairs to int32 (`vpmaddubsw` only where it cannot saturate)
avx512bw  the same at 512 bits
vnni      `vpdpbusd`: four u8*s8 products into int32
smlal     NEON widening multiply and accumulate (`smull`, `sadalp`)
sdot      Armv8.2 four s8*s8 products into int32
i8mm      Armv8.6 `smmla`
"""

INSTRUCTION_SETS: dict[str, InstructionSet] = {
    each.name: each for each in (X86_64, AARCH64, ARMV7, RISCV64)
}

# What each way to multiply does with sums, for people.
SUMS = {
    "vpmaddwd": "vpmaddubsw adds pairs in int16, so pairs of weights are bounded",
    "avx512bw": "vpmaddubsw adds pairs in int16, so pairs of weights are bounded",
    "smlal": "smlal adds products in int16, so sums of four weights are bounded",
    "vnni": "vpdpbusd takes unsigned times signed and sums in int32",
}

__all__ = [
    "INSTRUCTION_SETS",
    "SUMS",
    "Architecture",
    "InstructionSet",
    "IntegerDot",
]
