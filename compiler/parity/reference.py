"""Describe what a quantized graph computes, by TVM's own code.

No kernel, layout or schedule of ours.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import IRModule, relax

from edgec.compiler.ir.signature import Signature, State, Tensors
from edgec.compiler.parity.stream import Step, Stream
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
    """Return outputs by name."""
    (step,) = run_reference_steps(module, signature, [inputs], (), progress)
    return dict(step.outputs)


def run_reference_steps(
    module: IRModule,
    signature: Signature,
    inputs: Sequence[Tensors],
    states: Sequence[State],
    progress: Progress | None = None,
) -> tuple[Step, ...]:
    """Return runs one after the other, on inputs without states.

    It runs a few times, so most of the time goes to LLVM. More than half of what it would compile
    are checks that each function makes of its arguments, which are other functions' results.
    """
    with (progress or Silent()).parts("reference code", 3) as advance:
        with tvm.transform.PassContext(opt_level=3, config={"tirx.disable_assert": True}):
            executable = relax.build(ExpandWeights()(module), tvm.target.Target(_TARGET))
            advance()
            vm = relax.VirtualMachine(executable, tvm.cpu())
            advance()

        def run(full: Tensors) -> Tensors:
            result = vm["main"](*(tvm.runtime.tensor(full[s.name]) for s in signature.inputs))
            results = [result] if hasattr(result, "numpy") else list(result)
            return {
                spec.name: np.asarray(value.numpy())
                for spec, value in zip(signature.outputs, results, strict=True)
            }

        stream = Stream(run, states, signature.inputs)
        steps = tuple(stream.step(each) for each in inputs)
        advance()
    return steps
