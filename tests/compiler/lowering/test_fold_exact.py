from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import IRModule, relax

from edgec.compiler.ir.relax_helpers import op_name
from edgec.compiler.lowering.fold_exact import fold_exact


def test_counts_and_masks_fold_as_tvm_folds_them() -> None:
    lengths = np.array([[3, 0, 2], [-1, 5, 7]], np.int32)
    x = relax.Var("x", relax.TensorType((2, 1), "int32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            valid = builder.emit(relax.op.greater(relax.const(lengths), relax.const(np.int32(0))))
            ones = builder.emit(relax.op.astype(valid, "int32"))
            count = builder.emit(relax.op.sum(ones, axis=[1], keepdims=True))
            chosen = builder.emit(relax.op.where(valid, relax.const(lengths), ones))
            flat = builder.emit(relax.op.sum(relax.op.reshape(chosen, (3, 2)), axis=[-1]))
            shaped = builder.emit(relax.op.reshape(relax.op.expand_dims(flat, 0), (1, 3)))
            result = builder.emit_output(relax.op.add(relax.op.add(x, count), shaped))
        builder.emit_func_output(result)
    module = builder.get()
    folded = fold_exact(module)
    names = [op_name(b.value) for block in folded["main"].body.blocks for b in block.bindings]
    assert set(names) <= {"relax.add", ""}

    def run(chosen: IRModule) -> NDArray[Any]:
        machine = relax.VirtualMachine(relax.build(chosen, "llvm"), tvm.cpu())
        given = tvm.runtime.tensor(np.array([[10], [20]], np.int32))
        return np.asarray(machine["main"](given).numpy())

    np.testing.assert_array_equal(run(folded), run(module))
