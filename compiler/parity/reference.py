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


def run_reference(
    module: IRModule, signature: Signature, inputs: Tensors
) -> dict[str, NDArray[Any]]:
    """Return outputs by name."""
    executable = relax.build(ExpandWeights()(module), tvm.target.Target({"kind": "llvm"}))
    vm = relax.VirtualMachine(executable, tvm.cpu())
    result = vm["main"](*(tvm.runtime.tensor(inputs[s.name]) for s in signature.inputs))
    results = [result] if hasattr(result, "numpy") else list(result)
    return {
        spec.name: np.asarray(value.numpy())
        for spec, value in zip(signature.outputs, results, strict=True)
    }
