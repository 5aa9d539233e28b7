"""Provide the description of a machine that edgec compiles for.

One TOML file in `boards/` is one target. The file holds what the compiler must know and
cannot find out: nothing in it is derived, and every field is checked when it is read.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edgec.targets.isa import INSTRUCTION_SETS, Architecture, InstructionSet, IntegerDot

Kib = Annotated[int, Field(ge=0)]


class Emulator(BaseModel):
    """An emulator describes how to run the target's code on a machine that is not one.

    Attributes:
        program: QEMU user-mode emulator, for example `qemu-aarch64`.
        cpu: QEMU CPU model; a more capable one would hide illegal instructions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    program: str
    cpu: str


class Target(BaseModel):
    """A target describes one machine, as far as a compiler needs to know it.

    Attributes:
        name: the name it is asked for by; the stem of its file.
        description: one line for people.
        triple: LLVM triple, `architecture-linux-gnu…`.
        cpu: LLVM CPU name (`llc -mcpu=`).
        features: LLVM features on top of the CPU's own, each `+name` or `-name`.
        abi: LLVM ABI name where the triple leaves it open (RISC-V), else empty.
        float_abi: `hard` or `soft` on 32-bit ARM, else empty.
        vector_bits: width of one vector register in bits, 0 where there are no vectors.
        vector_registers: how many of them there are (without vectors: float registers).
        fma_units: fused multiply-adds of full vector width that can start in one cycle.
        load_units: loads that can start in one cycle.
        clock_ghz: highest sustained clock, for estimates of time.
        integer_dot: see `IntegerDot`.
        cores: cores of the largest kind.
        l1d_kib: level-1 data cache of one core.
        l2_kib: level-2 cache of one core (or its share).
        l3_kib: last-level cache of all cores, 0 where there is none.
        memory_mib: main memory.
        memory_gb_per_s: what one core reads and writes beyond its level-2 cache, 10^9 bytes a
            second; 0 where that is not known. For estimates where instructions are counted.
        glibc: oldest GNU C library that the compiled code must load on.
        linker: `zig` (installed with edgec), or the name of a compiler driver on PATH.
        emulator: how to run it elsewhere, if there is a way.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    description: str
    triple: str
    cpu: str
    features: tuple[Annotated[str, Field(pattern=r"^[+-]")], ...] = ()
    abi: str = ""
    float_abi: Literal["", "hard", "soft"] = ""
    vector_bits: Literal[0, 128, 256, 512]
    vector_registers: Annotated[int, Field(ge=8, le=64)]
    fma_units: Annotated[float, Field(gt=0, le=4)] = 1
    load_units: Annotated[float, Field(gt=0, le=4)] = 2
    clock_ghz: Annotated[float, Field(gt=0, le=10)]
    integer_dot: IntegerDot
    cores: Annotated[int, Field(ge=1, le=1024)]
    l1d_kib: Annotated[int, Field(ge=4)]
    l2_kib: Annotated[int, Field(ge=32)]
    l3_kib: Kib = 0
    memory_mib: Annotated[int, Field(ge=16)]
    memory_gb_per_s: Annotated[float, Field(ge=0, le=1000)] = 0
    glibc: Annotated[str, Field(pattern=r"^2\.\d+$")] = "2.28"
    linker: str = "zig"
    emulator: Emulator | None = None

    @model_validator(mode="after")
    def _check_triple(self) -> Self:
        if self.architecture not in INSTRUCTION_SETS:
            known = ", ".join(INSTRUCTION_SETS)
            raise ValueError(f"triple {self.triple!r} must begin with one of {known}")
        if "-linux-gnu" not in self.triple:
            raise ValueError(f"triple {self.triple!r} must name linux-gnu")
        return self

    @property
    def architecture(self) -> Architecture:
        """Return first part of the triple, as `uname -m` prints it."""
        return self.triple.split("-")[0]  # type: ignore[return-value]

    @property
    def float_lanes(self) -> int:
        """Return float32 values that one register holds."""
        return max(1, self.vector_bits // 32)

    @property
    def instruction_set(self) -> InstructionSet:
        """Return what is known of its architecture."""
        return INSTRUCTION_SETS[self.architecture]

    @property
    def multiplies_by_lane(self) -> bool:
        """Return whether a multiply-add can broadcast one lane of a register, as on Arm."""
        return self.instruction_set.multiplies_by_lane

    @property
    def why_in_floats(self) -> str:
        """Return why kernels multiply quantized values in floats; empty if they use integers."""
        return self.instruction_set.why_in_floats(self.integer_dot, self.float_lanes)

    @property
    def needed_flags(self) -> set[str] | None:
        """Return what its code needs, by Linux's names.

        None where only LLVM knows that of its CPU.
        """
        return self.instruction_set.needed_flags(self.cpu, self.features)

    @property
    def peak_gflops(self) -> float:
        """Return float32 peak of one core: lanes * FMA units * 2 * clock [GFLOP/s]."""
        return self.float_lanes * self.fma_units * 2 * self.clock_ghz

    def llvm(self) -> dict[str, Any]:
        """Return the target as TVM takes it.

        TVM 0.27 accepts a dictionary; its string form with `-mcpu=` raises.
        """
        spec: dict[str, Any] = {
            "kind": "llvm",
            "mtriple": self.triple,
            "mcpu": self.cpu,
            "num-cores": self.cores,
        }
        if self.features:
            spec["mattr"] = list(self.features)
        if self.abi:
            spec["mabi"] = self.abi
        if self.float_abi:
            spec["mfloat-abi"] = self.float_abi
        return spec


def board_folder() -> Path:
    """Return where the target files that come with edgec are."""
    return Path(__file__).parent / "boards"


def record_folder() -> Path:
    """Return where the tuning records that come with edgec are."""
    return Path(__file__).parent / "records"
