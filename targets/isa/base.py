"""Provide the form in which an instruction set is described."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# Bytes of int8 that one int32 lane holds: vectors of fewer lanes cannot be rearranged by channel.
_GROUP = 4


@dataclass(frozen=True)
class InstructionSet:
    """An instruction set describes itself by facts that need no compiler.

    Attributes:
        name: as `uname -m` prints it, and as LLVM triples begin.
        elf_machine: `e_machine` of its ELF files.
        zig: Zig's name of it.
        debian: Debian's name of it, and of the folder of its C library.
        activation_dtype: dtype of quantized activations that its instructions multiply.
        emulator: QEMU's user-mode emulator that Debian packages for other machines, else empty.
        clock_calls: numbers of the system calls that read the clock.
        has_tvm_runtime: whether TVM is published for it, so that it can be a board.
        multiplies_by_lane: whether a multiply-add can broadcast one lane of a register.
        integer_dots: ways to multiply int8 that kernels know, and the float32 lanes of vectors for
            which they do.
        pairs_saturate: those of them that add products in int16.
        pairs_fit: those that add them there only where int16 holds all of them.
        levels: the flags (see `extensions`) that a CPU name stands for, where the system's
            documents define it; without any, only LLVM knows what a CPU has.
        extensions: LLVM's name of an extension to Linux's, as /proc/cpuinfo prints it.
        hwcap: Linux's name to the word (1: AT_HWCAP, 2: AT_HWCAP2) and bit that report it; empty
            where /proc/cpuinfo is what programs read.
        float_abis: LLVM's name of an ABI to the bits of `e_flags` that say how floats are passed.
        float_abi_mask: all these bits.
        native: the fields of a target from a /proc/cpuinfo text and its flags, with the size of
            the level-2 cache where the system does not say it [KiB]; None where edgec cannot
            describe the machine that it runs on.
    """

    name: str
    elf_machine: str
    zig: str
    debian: tuple[str, str]
    activation_dtype: Literal["uint8", "int8"] = "int8"
    emulator: str = ""
    clock_calls: tuple[int, ...] = ()
    has_tvm_runtime: bool = False
    multiplies_by_lane: bool = False
    integer_dots: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    pairs_saturate: frozenset[str] = frozenset()
    pairs_fit: frozenset[str] = frozenset()
    levels: Mapping[str, frozenset[str]] = field(default_factory=dict)
    extensions: Mapping[str, str] = field(default_factory=dict)
    hwcap: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    float_abis: Mapping[str, int] = field(default_factory=dict)
    float_abi_mask: int = 0
    native: Callable[[str, set[str]], dict[str, Any]] | None = None

    def why_in_floats(self, integer_dot: str, lanes: int) -> str:
        """Return why kernels multiply quantized values in floats; empty if they use integers.

        This alone decides it, for the packer and for what is said of a model.

        Args:
            integer_dot: the integer dot of the target, see `IntegerDot`.
            lanes: float32 values in a vector of the target.
        """
        if integer_dot == "none":
            return "no instruction of the target multiplies int8"
        fitting = self.integer_dots.get(integer_dot, ())
        if integer_dot == "generic":
            fitting = (lanes,) if lanes % _GROUP == 0 else ()
        if lanes in fitting:
            return ""
        return f"no kernel uses {integer_dot} of {self.name} with vectors of {lanes * 32} bits"

    def needed_flags(self, cpu: str, features: tuple[str, ...]) -> set[str] | None:
        """Return what code needs, by Linux's names; None where only LLVM knows that of a CPU.

        Args:
            cpu: LLVM's name of it.
            features: beyond that, each `+name` or `-name`.
        """
        if not self.levels:
            return None
        needed = set(self.levels.get(cpu, ()))
        added = (feature[1:] for feature in features if feature.startswith("+"))
        return needed | {self.extensions.get(name, name) for name in added}

    def flags(self, words: str, hwcap: int, hwcap2: int) -> set[str]:
        """Return what a processor reports, by Linux's names.

        Args:
            words: the flags of its /proc/cpuinfo.
            hwcap: AT_HWCAP of the kernel's auxiliary vector.
            hwcap2: AT_HWCAP2.
        """
        if not self.hwcap:
            return set(words.split())
        reported = {1: hwcap, 2: hwcap2}
        return {name for name, (word, bit) in self.hwcap.items() if reported[word] >> bit & 1}
