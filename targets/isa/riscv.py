"""Provide 64-bit RISC-V."""

from edgec.targets.isa.base import InstructionSet

RISCV64 = InstructionSet(
    name="riscv64",
    elf_machine="EM_RISCV",
    zig="riscv64",
    debian=("riscv64", "riscv64-linux-gnu"),
    emulator="qemu-riscv64",
    clock_calls=(113,),
    # "RISC-V ELF psABI", file header: EF_RISCV_FLOAT_ABI.
    float_abis={"lp64": 0, "lp64f": 2, "lp64d": 4},
    float_abi_mask=0x6,
)

# Extensions that are parts of others, which LLVM's list of a processor does not repeat.
PARTS = frozenset({"zcd", "zifencei"})
