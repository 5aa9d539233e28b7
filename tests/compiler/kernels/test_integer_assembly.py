"""What LLVM makes of the inner loops on quantized values: the instructions meant, in registers."""

import re

import pytest
import tvm

from edgec.compiler.kernels.conv.decision import ConvDecision
from edgec.compiler.kernels.conv.integer import (
    IntegerConvWorkload,
    default_integer_decision,
)
from edgec.compiler.kernels.conv.integer_winograd import emit_integer_winograd
from edgec.compiler.kernels.conv.integer_writer import emit_integer_conv
from edgec.compiler.kernels.conv.winograd_decision import WinogradDecision
from edgec.compiler.kernels.conv.workload import ConvWorkload
from edgec.compiler.kernels.emit.emitter import to_object
from edgec.compiler.kernels.emit.epilogue import EpilogueStep
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.matmul.dense import MatmulWorkload
from edgec.compiler.kernels.matmul.integer import (
    IntegerMatmulWorkload,
    default_integer_matmul_decision,
    emit_integer_matmul,
)
from edgec.targets import Target, load_target

INSTRUCTIONS = {
    "rpi4": ("smull", "smlal2", "sadalp"),
    "rpi5": ("sdot",),
    "x86-64-v3": ("vpmaddubsw", "vpmaddwd"),
    "x86-64-v3-vnni": ("vpdpbusd",),
    "x86-64-v4-vnni": ("vpdpbusd",),
}


def inner_loops(target: str, decision: ConvDecision | None = None) -> list[list[str]]:
    """Innermost loops that hold the first of the target's instructions."""
    machine = load_target(target)
    x86 = machine.architecture == "x86_64"
    steps = (
        EpilogueStep("multiply", "channel"),
        EpilogueStep("quantize_uint8" if x86 else "quantize_int8", "quantizer"),
    )
    conv = ConvWorkload(1, 64, 56, 56, 64, 56, 56, (3, 3), padding=(1, 1), epilogue=steps)
    workload = IntegerConvWorkload(conv, 3)
    decision = decision or default_integer_decision(workload, machine)
    kernel = emit_integer_conv(workload, decision, machine, "kernel")
    return loops_of(kernel, machine, INSTRUCTIONS[target][0])


def loops_of(kernel: Kernel, machine: Target, first: str) -> list[list[str]]:
    """Innermost loops of a kernel that hold an instruction."""
    module = to_object({"kernel": kernel.function}, tvm.target.Target(machine.llvm()))
    lines = str(module.inspect_source("s")).replace("\t{vex}\t", "\t").splitlines()
    labels: dict[str, int] = {}
    spans = []
    for number, line in enumerate(lines):
        if label := re.match(r"(\.LBB\w+):", line):
            labels[label[1]] = number
        branch = re.match(r"\t(?:b\.?\w*|cbn?z|tbn?z|j\w+)\t.*?(\.LBB\w+)", line)
        if branch and branch[1] in labels:
            spans.append((labels[branch[1]], number))
    inner = [
        (start, end)
        for start, end in spans
        if not any(start <= a and b <= end and (a, b) != (start, end) for a, b in spans)
    ]
    loops = [[x for x in lines[a : b + 1] if re.match(r"\t[a-z]", x)] for a, b in inner]
    return [loop for loop in loops if any(x.startswith(f"\t{first}\t") for x in loop)]


def spills(loop: list[str]) -> int:
    """Vectors moved from or to the stack."""
    return sum(
        bool(re.search(r"\[sp|\(%rsp", x) and re.search(r"[xyz]mm|\tq\d|v\d", x)) for x in loop
    )


@pytest.mark.parametrize("target", INSTRUCTIONS)
def test_inner_loops(target: str) -> None:
    loops = inner_loops(target)
    assert loops
    for loop in loops:
        names = [line.split()[0] for line in loop]
        assert set(INSTRUCTIONS[target]) <= set(names)
        # At the edges of the image a constant for the padding takes a register as well.
        assert spills(loop) < 0.15 * len(loop)
    shortest = min(loops, key=len)
    assert spills(shortest) == 0
    meant = sum(line.split()[0] in INSTRUCTIONS[target] for line in shortest)
    assert meant / len(shortest) > 0.4


def test_pairs_of_int16_stay_in_registers() -> None:
    """By Winograd's algorithm: unrolled, LLVM would spill sums (`products` of 4 x 2 are 8)."""
    machine = load_target("x86-64-v3")
    steps = (EpilogueStep("multiply", "channel"), EpilogueStep("quantize_uint8", "quantizer"))
    conv = ConvWorkload(1, 32, 16, 16, 16, 16, 16, (3, 3), padding=(1, 1), epilogue=steps)
    decision = WinogradDecision(register_tiles=4, vectors=2, repeats=2, out=4)
    kernel = emit_integer_winograd(IntegerConvWorkload(conv), decision, machine, "kernel")
    shortest = min(loops_of(kernel, machine, "vpmaddwd"), key=len)
    names = [line.split()[0] for line in shortest]
    assert names.count("vpmaddwd") == names.count("vpaddd") == 8
    assert spills(shortest) == 0
    assert len(names) < 30


def test_too_many_accumulators_are_noticed() -> None:
    loops = inner_loops("rpi5", ConvDecision(tile_h=1, tile_w=12, tile_o=3))
    assert max(spills(loop) for loop in loops) > 0


def test_products_by_smmla() -> None:
    """Two rows by two columns at a time, half the instructions of sdot, in registers."""
    machine = load_target("armv8.6-i8mm")
    steps = (EpilogueStep("multiply", "channel"), EpilogueStep("quantize_int8", "quantizer"))
    workload = IntegerMatmulWorkload(MatmulWorkload(1, 64, 64, 128, True, steps))
    decision = default_integer_matmul_decision(workload, machine)
    kernel = emit_integer_matmul(workload, decision, machine, "kernel")
    (loop,) = loops_of(kernel, machine, "smmla")
    names = [line.split()[0] for line in loop]
    products = decision.tile_m * decision.tile_n
    assert names.count("smmla") == products
    assert names.count("sdot") == spills(loop) == 0
    assert products / len(loop) > 0.4


def products_written(decision: ConvDecision | None) -> int:
    """How many `vpdpbusd` the code of a small convolution holds."""
    machine = load_target("x86-64-v4-vnni")
    steps = (EpilogueStep("multiply", "channel"), EpilogueStep("quantize_uint8", "quantizer"))
    conv = ConvWorkload(1, 64, 8, 8, 16, 8, 8, (3, 3), padding=(1, 1), epilogue=steps)
    workload = IntegerConvWorkload(conv)
    decision = decision or default_integer_decision(workload, machine)
    kernel = emit_integer_conv(workload, decision, machine, "kernel")
    module = to_object({"kernel": kernel.function}, tvm.target.Target(machine.llvm()))
    return str(module.inspect_source("s")).count("\tvpdpbusd\t")


def test_small_layers_get_small_code() -> None:
    """The loop over the four groups of a block is not unrolled, and rows of taps are a loop."""
    in_four_groups = 4 * (8 + 7 + 7)
    assert products_written(ConvDecision(tile_h=1, tile_w=8, tile_o=1)) < in_four_groups
    assert products_written(None) < in_four_groups < products_written(ConvDecision(4, 8, 1)) / 3
