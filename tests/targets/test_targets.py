from pathlib import Path

import pytest

from edgec.compiler.errors import TargetError
from edgec.targets import Target, load_target, target_names
from edgec.targets.native import cpu_flags

WANTED = {
    "native",
    "x86-64-v2",
    "x86-64-v3",
    "x86-64-v3-vnni",
    "x86-64-v4",
    "x86-64-v4-vnni",
    "rpi3",
    "rpi3-32bit",
    "rpi4",
    "rpi5",
    "armv8.0",
    "armv8.2-dotprod",
    "armv8.6-i8mm",
    "riscv64",
}

VALID = """
description = "a board"
triple = "aarch64-linux-gnu"
cpu = "cortex-a72"
vector_bits = 128
vector_registers = 32
clock_ghz = 1.5
integer_dot = "smlal"
cores = 4
l1d_kib = 32
l2_kib = 1024
memory_mib = 2048
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_every_wanted_target_loads() -> None:
    assert set(target_names()) == WANTED
    for name in target_names():
        assert load_target(name).name == name


def test_native_is_this_machine() -> None:
    native = load_target("native")
    assert native.cores >= 1
    if native.needed_flags is not None:
        flags = cpu_flags(Path("/proc/cpuinfo").read_text())
        assert native.needed_flags <= flags


def test_llvm_description_of_a_board() -> None:
    assert load_target("rpi5").llvm() == {
        "kind": "llvm",
        "mtriple": "aarch64-linux-gnu",
        "mcpu": "cortex-a76",
        "mattr": ["+neon", "+dotprod", "+fullfp16"],
        "num-cores": 4,
    }


def test_only_boards_with_the_instruction_claim_a_dot_product() -> None:
    assert load_target("rpi4").integer_dot == "smlal"
    assert load_target("rpi5").integer_dot == "sdot"


def test_a_users_own_file(tmp_path: Path) -> None:
    target = load_target(write(tmp_path, VALID))
    assert isinstance(target, Target)
    assert (target.name, target.glibc, target.linker) == ("mine", "2.28", "zig")


@pytest.mark.parametrize(
    ("name", "message"),
    [("rpi44", "did you mean rpi4?"), ("toaster", "unknown target 'toaster'; Known targets: nat")],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        load_target(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (VALID + "vector_bit = 128\n", "unknown key vector_bit; did you mean vector_bits?"),
        (VALID.replace("cores = 4\n", ""), "key cores is missing"),
        (VALID.replace("cores = 4", "cores = 0"), "cores = 0: .*greater than or equal to 1"),
        (VALID.replace("aarch64-", "z80-"), "must begin with one of x86_64, aarch64"),
        (VALID + 'emulator = { program = "q", cpus = "x" }\n', r"emulator\.cpus.*did you mean cpu"),
        (VALID + "this is not toml", "is not valid TOML"),
    ],
    ids=["misspelt", "missing", "range", "triple", "nested", "toml"],
)
def test_wrong_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        load_target(write(tmp_path, text))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="does not exist"):
        load_target(tmp_path / "no.toml")
