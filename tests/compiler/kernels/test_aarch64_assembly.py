"""What LLVM makes of the inner loops for a Raspberry Pi 4: NEON multiply-adds in registers."""

import re
from dataclasses import dataclass
from typing import Any

import pytest
import tvm

from edgec.compiler.kernels.conv.decision import ConvDecision
from edgec.compiler.kernels.conv.winograd_decision import WinogradDecision
from edgec.compiler.kernels.conv.workload import ConvWorkload
from edgec.compiler.kernels.emit.emitter import to_object
from edgec.compiler.kernels.matmul.dense import MatmulDecision, MatmulWorkload
from edgec.compiler.kernels.templates import TEMPLATES
from edgec.targets import load_target

TARGET = load_target("rpi4")

CONV_3X3 = ConvWorkload(1, 64, 56, 56, 64, 56, 56, (3, 3), padding=(1, 1))
CONV_1X1 = ConvWorkload(1, 64, 28, 28, 128, 28, 28, (1, 1))
MATMUL = MatmulWorkload(1, 128, 384, 384, packed=True)
CASES = {
    "3x3": ("edgec.conv", CONV_3X3),
    "1x1": ("edgec.conv", CONV_1X1),
    "matmul": ("edgec.matmul", MATMUL),
}
# 36 and 40 accumulators; there are 32 registers.
TOO_LARGE = {
    "3x3": ConvDecision(tile_h=1, tile_w=12, tile_o=3),
    "1x1": ConvDecision(tile_h=1, tile_w=12, tile_o=3),
    "matmul": MatmulDecision(tile_m=10, tile_n=4, lanes=4),
}


@dataclass(frozen=True)
class Loop:
    """Counts in one innermost loop.

    Attributes:
        instructions: all of them.
        multiply_adds: NEON `fmla` on four floats.
        stack: instructions that access the stack.
    """

    instructions: int
    multiply_adds: int
    stack: int

    @property
    def share(self) -> float:
        return self.multiply_adds / self.instructions


def assembly(case: str, decision: Any) -> str:
    operator, workload = CASES[case]
    kernel = TEMPLATES[operator].emit(workload, decision, TARGET, "kernel")
    module = to_object({"kernel": kernel.function}, tvm.target.Target(TARGET.llvm()))
    return str(module.inspect_source("s"))


def multiplying_loops(text: str) -> list[Loop]:
    """Innermost loops with a multiply-add: from a label to the next branch back to it."""
    lines = text.splitlines()
    labels: dict[str, int] = {}
    spans = []
    for number, line in enumerate(lines):
        if label := re.match(r"(\.LBB\w+):", line):
            labels[label[1]] = number
        branch = re.match(r"\t(?:b(?:\.\w+)?|cbn?z|tbn?z)\t.*?(\.LBB\w+)", line)
        if branch and branch[1] in labels:
            spans.append((labels[branch[1]], number))
    loops = []
    for start, end in spans:
        if any(start <= a and b <= end and (a, b) != (start, end) for a, b in spans):
            continue
        body = [line for line in lines[start : end + 1] if re.match(r"\t[a-z]", line)]
        loop = Loop(
            len(body),
            sum(bool(re.match(r"\tfmla\tv\d+\.4s", line)) for line in body),
            sum("[sp" in line for line in body),
        )
        if loop.multiply_adds:
            loops.append(loop)
    return loops


@pytest.mark.parametrize("case", CASES)
def test_inner_loops_multiply_in_registers(case: str) -> None:
    operator, workload = CASES[case]
    decision = TEMPLATES[operator].default(workload, TARGET)
    loops = multiplying_loops(assembly(case, decision))
    assert loops
    if isinstance(decision, WinogradDecision):
        # Its transforms multiply as well, a little, and on the way to and from memory.
        loops = [max(loops, key=lambda loop: loop.share)]
    # One broadcast load for each multiply-add, or fewer.
    assert min(loop.share for loop in loops) > 0.4
    assert [loop.stack for loop in loops] == [0] * len(loops)


@pytest.mark.parametrize("case", CASES)
def test_too_many_accumulators_are_noticed(case: str) -> None:
    loops = multiplying_loops(assembly(case, TOO_LARGE[case]))
    assert max(loop.stack for loop in loops) > 0


def test_scalar_code_is_noticed() -> None:
    scalar = assembly("matmul", MatmulDecision(tile_m=8, tile_n=3, lanes=1))
    assert "fmadd" in scalar
    assert multiplying_loops(scalar) == []
