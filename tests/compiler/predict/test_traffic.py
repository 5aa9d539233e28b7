"""Where bytes come from: what was touched a moment ago, an inference ago, or beside the caches."""

import numpy as np

from edgec.compiler.codegen.memory import plan_memory
from edgec.compiler.ir.program import KernelCall, Program, Value
from edgec.compiler.predict.features import weight_bytes_of
from edgec.compiler.predict.traffic import traffic_of
from edgec.targets import load_target

KIB = 1024


def temporary(kib: int) -> Value:
    return Value("temporary", (kib * KIB,), "uint8")


def call(*values: Value) -> KernelCall:
    return KernelCall("k", values, 1, "", "conv")


def test_bytes_come_from_where_they_were_left() -> None:
    target = load_target("native").model_copy(update={"l2_kib": 256, "l3_kib": 4 * KIB})
    weights = Value("constant", (3 * KIB * KIB,), "uint8", array=np.zeros(3 * KIB * KIB, np.uint8))
    begin = Value("input", (KIB,), "uint8", number=0)
    first, second, third = temporary(16), temporary(16), temporary(16)
    steps = [call(begin, weights, first), call(first, second), call(second, third)]
    program = Program([begin], [], steps)
    found = traffic_of(program, target, plan_memory(program))
    near, _, far = found[0].moved
    # The weights, and what was touched before them an inference ago.
    assert far == 3 * KIB * KIB + KIB + 16 * KIB
    assert near == 0
    # What was written a moment ago is near, and so is the place of the result.
    assert found[2].operand_distance == 2 * 16 * KIB
    assert found[2].moved[0] == 2 * 16 * KIB
    # The third lies where the first was.
    assert found[2].result_distance < 4 * 16 * KIB


def test_equal_constants_count_once() -> None:
    arrays = [np.full(64, value, np.float32) for value in (1, 1, 2)]
    values = [Value("constant", (64,), "float32", array=array) for array in arrays]
    result = temporary(1)
    program = Program([], [], [call(value, result) for value in values])
    assert weight_bytes_of(program) == 2 * 256
