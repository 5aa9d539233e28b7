"""What is said of operators that run generic code."""

import pytest

from edgec.compiler.ir.program import KernelCall, Program, Value
from edgec.compiler.lowering.time_estimate import describe_generic, warn_of_generic
from edgec.targets import load_target


def program(generic_flops: int) -> Program:
    value = Value("temporary", (1000,), "float32")
    steps = [
        KernelCall("k", (value,), 1, "conv", "conv", flops=400_000_000, workload="", constants={}),
        KernelCall("g", (value,), 1, "einsum_2", "generic", flops=generic_flops),
    ]
    return Program([], [], steps)


@pytest.mark.parametrize(
    ("flops", "told"),
    [
        (100_000_000, True),
        # One part in a hundred; over at once; vectors of single elements.
        (50_000, False),
        (1_000, False),
    ],
)
def test_a_slow_operator_is_said(flops: int, told: bool) -> None:
    text = warn_of_generic(program(flops), load_target("x86-64-v3"))
    assert ("no kernel computes einsum" in text) == told
    assert "einsum" in describe_generic(program(flops), load_target("x86-64-v3"))


def test_kernels_alone_are_not_worth_a_word() -> None:
    steps = program(0).steps[:1]
    assert warn_of_generic(Program([], [], steps), load_target("x86-64-v3")) == ""
