"""Describe what a quantized graph computes, by TVM's own code.

No kernel, layout or schedule of ours.
"""

from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import IRModule, relax

from edgec.compiler.ir.signature import Signature, Tensors
from edgec.compiler.passes.expand_weights import ExpandWeights
from edgec.compiler.support.progress import Progress, Silent

# A higher level of LLVM's takes longer to compile than it saves in one run.
_TARGET = {"kind": "llvm", "opt-level": 1}


def run_reference(
    module: IRModule,
    signature: Signature,
    inputs: Tensors,
    progress: Progress | None = None,
) -> dict[str, NDArray[Any]]:
    """Return outputs by name.

    It runs once, so most of the time goes to LLVM. More than half of what it would compile are
    checks that each function makes of its arguments, which are other functions' results.
    """
    with (progress or Silent()).parts("reference code", 3) as advance:
        with tvm.transform.PassContext(opt_level=3, config={"tirx.disable_assert": True}):
            executable = relax.build(ExpandWeights()(module), tvm.target.Target(_TARGET))
            advance()
            vm = relax.VirtualMachine(executable, tvm.cpu())
            advance()
        result = vm["main"](*(tvm.runtime.tensor(inputs[s.name]) for s in signature.inputs))
        advance()
    results = [result] if hasattr(result, "numpy") else list(result)
    return {
        spec.name: np.asarray(value.numpy())
        for spec, value in zip(signature.outputs, results, strict=True)
    }
