"""Constants that are the same are in memory once."""

from pathlib import Path

import numpy as np
import pytest
from tvm import relax

from edgec.compiler.ir.program import KernelCall, Program, Value
from edgec.compiler.ir.relax_helpers import constant, value_of
from edgec.compiler.ir.shared_constants import SharedConstants


def module_with(*arrays: np.ndarray) -> relax.BlockBuilder:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(arrays[0].shape, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            result = x
            for array in arrays:
                result = builder.emit(relax.op.add(result, constant(array)))
            result = builder.emit_output(result)
        builder.emit_func_output(result)
    return builder.get()


def constants_of(module: relax.BlockBuilder) -> list[np.ndarray]:
    bindings = module["main"].body.blocks[0].bindings
    found = [
        value_of(argument)
        for b in bindings
        if hasattr(b.value, "args")
        for argument in b.value.args
    ]
    return [array for array in found if array is not None]


def test_modules_share_what_is_equal_and_large() -> None:
    large, other = np.arange(2048, dtype=np.float32), np.ones(2048, np.float32)
    shared = SharedConstants()
    first = shared.of_module(module_with(large, other))
    second = shared.of_module(module_with(large.copy(), large - 1))
    one, two = constants_of(first), constants_of(second)
    np.testing.assert_array_equal(two[0], large)
    np.testing.assert_array_equal(two[1], large - 1)
    assert np.shares_memory(one[0], two[0])
    assert not np.shares_memory(one[1], two[1])


@pytest.mark.parametrize("mapped", [False, True])
def test_programs_share_arrays_of_the_same_bytes_shape_and_dtype(
    mapped: bool, tmp_path: Path
) -> None:
    def program(array: np.ndarray) -> Program:
        value = Value("constant", array.shape, str(array.dtype), array=array)
        return Program([], [], [KernelCall("k", (value,), 1, "k", "generic")])

    large = np.arange(4096, dtype=np.float32).reshape(64, 64)
    programs = [program(a) for a in (large, large.copy(), large.reshape(-1), large.view(np.int32))]
    shared = SharedConstants(tmp_path if mapped else None)
    for each in programs:
        shared.of_program(each)
    found = [each.constants()[0].array for each in programs]
    assert found[1] is found[0]
    assert found[2] is not found[0]
    assert found[3] is not found[0]
    for array, like in zip(
        found, (large, large, large.reshape(-1), large.view(np.int32)), strict=True
    ):
        np.testing.assert_array_equal(array, like)
        assert array is not None
        assert (array.dtype, array.shape) == (like.dtype, like.shape)
        assert isinstance(array, np.memmap) == mapped
