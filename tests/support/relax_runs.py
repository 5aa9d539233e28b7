"""Run a Relax module as it is, with no schedule of ours: the reference for passes."""

from typing import Any

import numpy as np
import tvm
from tvm import relax

from edgec.compiler.ir.relax_helpers import dtype_of, shape_of


def run_module(module: Any, seed: int = 0) -> np.ndarray:
    """Return first output of `main` on seeded normal inputs."""
    random = np.random.default_rng(seed)
    executable = relax.build(module, tvm.target.Target({"kind": "llvm"}))
    machine = relax.VirtualMachine(executable, tvm.cpu())
    inputs = [
        tvm.runtime.tensor(random.standard_normal(shape_of(p)).astype(dtype_of(p)))
        for p in module["main"].params
    ]
    result = machine["main"](*inputs)
    return (result if hasattr(result, "numpy") else result[0]).numpy()
