"""Linked files that a target cannot load or execute are refused."""

from pathlib import Path

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile
from onnx import TensorProto
from support.onnx_graphs import make_model, node, save

from edgec.compiler import compile_model
from edgec.compiler.codegen.elf import ASKED_FOR, check_library, llvm_features, why_not_on
from edgec.compiler.codegen.link import link_shared
from edgec.compiler.errors import ToolchainError
from edgec.targets import Target, load_target
from edgec.targets.isa.arm import ENCODINGS

# Instructions of each extension, two or more where its table has different encodings.
EXTENSIONS = {
    "dotprod": """
        sdot v0.4s, v1.16b, v2.16b
        udot v0.2s, v1.8b, v2.8b
        sdot v0.4s, v1.16b, v31.4b[3]
        udot v0.2s, v1.8b, v2.4b[0]""",
    "i8mm": """
        smmla v0.4s, v1.16b, v2.16b
        ummla v0.4s, v1.16b, v2.16b
        usmmla v0.4s, v1.16b, v2.16b
        usdot v0.4s, v1.16b, v2.16b
        usdot v0.4s, v1.16b, v2.4b[1]
        sudot v0.4s, v1.16b, v2.4b[1]""",
    "bf16": """
        bfdot v0.4s, v1.8h, v2.8h
        bfmmla v0.4s, v1.8h, v2.8h
        bfmlalb v0.4s, v1.8h, v2.8h
        bfmlalt v0.4s, v1.8h, v2.8h
        bfcvt h0, s1
        bfcvtn v0.4h, v1.4s
        bfcvtn2 v0.8h, v1.4s""",
    "fullfp16": """
        fadd h0, h1, h2
        fdiv h0, h1, h2
        fmadd h0, h1, h2, h3
        fnmsub h0, h1, h2, h3
        fcmp h0, h1
        fcmp h0, #0.0
        fcsel h0, h1, h2, eq
        fabs h0, h1
        fsqrt h0, h1
        frintm h0, h1
        scvtf h0, w1
        fcvtzs x0, h1
        fmov h0, w1
        fmov h0, #1.0
        fadd v0.8h, v1.8h, v2.8h
        fmla v0.4h, v1.4h, v2.4h
        fmax v0.8h, v1.8h, v2.8h
        fcvtzs v0.8h, v1.8h
        fabs v0.8h, v1.8h
        fmla v0.8h, v1.8h, v2.h[7]
        fmls v0.8h, v1.8h, v2.h[0]
        fmul v0.4h, v1.4h, v2.h[3]
        fmov v0.8h, #1.0
        fmaxv h0, v1.8h
        fminnmv h0, v1.8h""",
    "fp16fml": """
        fmlal v0.4s, v1.4h, v2.4h
        fmlsl v0.4s, v1.4h, v2.4h
        fmlal2 v0.4s, v1.4h, v2.4h""",
    "lse": """
        ldadd w0, w1, [x2]
        ldaddal x0, x1, [x2]
        ldclrb w0, w1, [x2]
        stset w0, [x2]
        swpal w0, w1, [x2]
        casal x0, x1, [x2]
        casp x0, x1, x2, x3, [x4]""",
    "rcpc": """
        ldapr w0, [x1]
        ldaprb w0, [x1]""",
    "rcpc-immo": """
        ldapur w0, [x1, #4]
        stlur x0, [x1, #8]""",
    "rdm": """
        sqrdmlah v0.4s, v1.4s, v2.4s
        sqrdmlsh v0.8h, v1.8h, v2.8h
        sqrdmlah v0.4s, v1.4s, v2.s[1]""",
    "complxnum": """
        fcmla v0.4s, v1.4s, v2.4s, #90
        fcadd v0.4s, v1.4s, v2.4s, #270""",
    "jsconv": """
        fjcvtzs w0, d1""",
    "aes": """
        aese v0.16b, v1.16b
        aesimc v0.16b, v1.16b
        pmull v0.1q, v1.1d, v2.1d
        pmull2 v0.1q, v1.2d, v2.2d""",
    "sha2": """
        sha1c q0, s1, v2.4s
        sha256h2 q0, q1, v2.4s
        sha256su1 v0.4s, v1.4s, v2.4s
        sha1h s0, s1
        sha256su0 v0.4s, v1.4s""",
    "sha3": """
        eor3 v0.16b, v1.16b, v2.16b, v3.16b
        bcax v0.16b, v1.16b, v2.16b, v3.16b""",
    "sve": """
        fmla z0.s, p0/m, z1.s, z2.s
        ld1w { z0.s }, p0/z, [x0]
        whilelo p0.s, x0, x1""",
    "sme": """
        fmopa za0.s, p0/m, p1/m, z0.s, z1.s""",
}

# What every Armv8.0 has, close to the above.
BASELINE = """
        fcvt h0, s1
        fcvt s0, h1
        fcvt d0, h1
        fcvtl v0.4s, v1.4h
        fcvtn v0.4h, v1.4s
        fadd v0.4s, v1.4s, v2.4s
        fmla v0.4s, v1.4s, v2.s[1]
        fmul v0.2d, v1.2d, v2.d[1]
        fmadd s0, s1, s2, s3
        fcmp s0, s1
        fcsel s0, s1, s2, eq
        fmov s0, #1.0
        fmov v0.4s, #1.0
        movi v0.8h, #1
        orr v0.8h, #1
        smull v0.4s, v1.4h, v2.4h
        pmull v0.8h, v1.8b, v2.8b
        dup s0, v1.s[1]
        smlal v0.4s, v1.4h, v2.h[1]
        sqrdmulh v0.4s, v1.4s, v2.4s
        sadalp v0.4s, v1.8h
        dup v0.8h, w1
        ins v0.h[1], w1
        umov w0, v1.h[1]
        addv h0, v1.8h
        sshr v0.8h, v1.8h, #3
        tbl v0.16b, {v1.16b}, v2.16b
        eor v0.16b, v1.16b, v2.16b
        ldr w0, [x1, x2]
        ldr q0, [x1, x2, lsl #4]
        ldrh w0, [x1], #2
        ldxr w0, [x1]
        stxr w0, w1, [x2]
        ldaxr x0, [x1]
        stlr w0, [x1]
        ldar w0, [x1]
        ldp q0, q1, [x0]
        madd x0, x1, x2, x3
        ccmp x0, x1, #0, eq
        mrs x0, tpidr_el0
        yield"""


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory):
    def make(source: str, target: Target, name: str = "code.S", beside: tuple[Path, ...] = ()):
        folder = tmp_path_factory.mktemp("elf")
        (folder / name).write_text(source)
        link_shared([folder / name, *beside], folder / "made.so", target)
        return folder / "made.so"

    return make


def of_machine(target: Target, **changes: object) -> Target:
    return target.model_copy(update={"name": "other", **changes})


def test_encodings_of_aarch64(make) -> None:
    """Each instruction has the extension that it belongs to, and no other."""
    # A target that may do all of it, so that it can be linked.
    features = tuple(f"+{feature}" for feature in EXTENSIONS)
    everything = of_machine(load_target("rpi5"), features=features)
    lines = {
        f"{feature}: {line.strip()}": feature
        for feature, text in {**EXTENSIONS, "": BASELINE}.items()
        for line in text.strip().splitlines()
    }
    body = "\n".join(line.partition(": ")[2] for line in lines)
    arch = ".arch armv8.7-a+dotprod+i8mm+bf16+fp16+fp16fml+lse+rcpc+rdm+aes+sha2+sha3+sve+sme"
    source = f"{arch}\n.text\n.globl f\nf:\n{body}\n"
    library = make(source, everything)
    with library.open("rb") as stream:
        code = ELFFile(stream).get_section_by_name(".text").data()
    words = np.frombuffer(code, "<u4")[: len(lines)]
    used = set()
    for word, (text, feature) in zip(words, lines.items(), strict=True):
        rows = {row for row in ENCODINGS if int(word) & row[2] == row[3]}
        assert {row[0] for row in rows} == ({feature} if feature else set()), text
        used |= rows
    assert used == set(ENCODINGS)


@pytest.mark.parametrize(
    ("instruction", "able", "unable", "message"),
    [
        (
            ".arch_extension dotprod\n sdot v0.4s, v1.16b, v2.16b",
            "rpi5",
            "rpi4",
            r"uses sdot or udot at 0x\w+, of the extension dotprod that cortex-a72 does not have",
        ),
        (".arch_extension fp16\n fadd v0.8h, v1.8h, v2.8h", "rpi5", "armv8.0", "fullfp16"),
        # The Pi 5 has instructions for cryptography, those before it were built without.
        (".arch_extension crypto\n aese v0.16b, v1.16b", "rpi5", "rpi4", "extension aes that"),
        (".arch_extension crypto\n sha256su0 v0.4s, v1.4s", "rpi5", "rpi3", "extension sha2 that"),
        (".arch_extension i8mm\n smmla v0.4s, v1.16b, v2.16b", "", "rpi5", "i8mm"),
        ("{vex} vpdpbusd %ymm0, %ymm1, %ymm2", "", "x86-64-v4-vnni", "avxvnni"),
        ("vpdpbusd %zmm0, %zmm1, %zmm2", "x86-64-v4-vnni", "x86-64-v4", "vpdpbusd at .*avx512vnni"),
        ("vaddps %zmm0, %zmm1, %zmm2", "x86-64-v4", "x86-64-v3", "avx512f"),
        ("vfmadd231ps %ymm0, %ymm1, %ymm2", "x86-64-v3", "x86-64-v2", "fma"),
        ("rep bsf %eax, %eax\n pause\n endbr64", "x86-64-v2", "", ""),
        (
            ".eabi_attribute Tag_ABI_VFP_args, 1\n.fpu neon-vfpv4\n vfma.f32 q0, q1, q2",
            "rpi3-32bit",
            "",
            "",
        ),
        (
            ".eabi_attribute Tag_ABI_VFP_args, 1\n.fpu neon-fp-armv8\n vrintz.f32 s0, s1",
            "",
            "rpi3-32bit",
            r"code for Arm \(fp_arch 7\), of the extension fp-armv8 that cortex-a7 does",
        ),
        ('.attribute arch, "rv64gcv"\n vadd.vv v0, v1, v2', "", "riscv64", "extension v that"),
    ],
)
def test_instructions(make, instruction: str, able: str, unable: str, message: str) -> None:
    source = f".text\n.globl f\nf: {instruction}\n"
    if able:
        make(source, load_target(able))
    if unable:
        with pytest.raises(ToolchainError, match=message):
            make(source, load_target(unable))


def test_instructions_that_a_program_asks_for(make) -> None:
    source = '.section {}, "ax"\n.globl f\nf: sha256h q0, q1, v2.4s\n'
    source = ".arch armv8-a+crypto\n" + source
    make(source.format(ASKED_FOR), load_target("rpi4"))
    with pytest.raises(ToolchainError, match="of the extension sha2 that cortex-a72 does not have"):
        make(source.format(".text"), load_target("rpi4"))


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that computes with half floats."""
    dtypes = dict.fromkeys("xy", TensorProto.FLOAT16)
    nodes = [node("Mul", ["x", "x"], ["m"]), node("Add", ["m", "x"], ["y"])]
    model = make_model(nodes, {"x": [4, 64]}, ["y"], dtypes=dtypes)
    return save(model, tmp_path_factory.mktemp("half"))


def test_a_model_for_another_board(half: Path, tmp_path: Path) -> None:
    """A Raspberry Pi 5 computes with half floats; a 4 would meet an illegal instruction."""
    new, old = load_target("rpi5"), load_target("rpi4")
    library = compile_model(half, new, output=tmp_path / "new.edgec").library
    check_library(library, new)
    with pytest.raises(ToolchainError, match=r"half floats .* that cortex-a72 does not have"):
        check_library(library, old)
    # The older board's code does without, and runs on both.
    library = compile_model(half, old, output=tmp_path / "old.edgec").library
    check_library(library, old)
    check_library(library, new)


def test_another_machine(digits_bundle: Path) -> None:
    with pytest.raises(ToolchainError, match=r"model\.so cannot run on target rpi4: it is for x86"):
        check_library(digits_bundle / "model.so", load_target("rpi4"))


def test_glibc(make) -> None:
    source = "#include <pthread.h>\nvoid* f(void) { return (void*)pthread_create; }\n"
    rpi4 = load_target("rpi4")
    make(source, rpi4, "code.c")
    newer = of_machine(rpi4, glibc="2.36")
    library = make(source, newer, "code.c")
    with pytest.raises(ToolchainError, match=r"it needs glibc 2\.34, the target has 2\.28"):
        check_library(library, rpi4)


def test_libraries_that_a_board_may_not_have(make, tmp_path: Path) -> None:
    rpi4 = load_target("rpi4")
    (tmp_path / "other.c").write_text("int other(void) { return 1; }")
    other = tmp_path / "libother.so"
    link_shared([tmp_path / "other.c"], other, rpi4)
    source = "int other(void); int f(void) { return other(); }"
    with pytest.raises(ToolchainError, match=r"it needs libother\.so, which is not in the C lib"):
        make(source, rpi4, "code.c", (other,))


@pytest.mark.parametrize(
    ("target", "changes"), [("rpi3-32bit", {"float_abi": "soft"}), ("riscv64", {"abi": "lp64"})]
)
def test_floats_passed_in_other_registers(make, target: str, changes: dict[str, str]) -> None:
    right = load_target(target)
    library = make("float f(float x) { return x * x; }", right, "code.c")
    with pytest.raises(ToolchainError, match="passes floats in another way"):
        check_library(library, of_machine(right, **changes))


def test_no_elf_file(tmp_path: Path) -> None:
    file = tmp_path / "x.so"
    file.write_bytes(b"no library")
    rpi4 = load_target("rpi4")
    assert "it is no ELF file" in why_not_on(file, rpi4, llvm_features(rpi4))
