"""Graphs of operators on a cache, and what they mean in NumPy."""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import IRModule, relax

from edgec.compiler.backend import HostModel, pack
from edgec.compiler.codegen.link import link_shared
from edgec.compiler.ir.relax_helpers import dtype_of, shape_of
from edgec.compiler.ir.signature import Signature, TensorSpec
from edgec.compiler.kernels.emit.emitter import to_object
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.lowering.legalize import lower
from edgec.compiler.lowering.schedule import schedule_program
from edgec.targets import Target, load_target

Arrays = Mapping[str, np.ndarray]


def graph(
    arrays: Arrays, build: Callable[..., Any], constants: Arrays
) -> tuple[IRModule, Signature]:
    """Return a module of the named inputs and constants, and its signature.

    `build` takes an emitter, and inputs and constants by name, and gives the result `y`, or several
    by name.
    """
    variables = {
        n: relax.Var(n, relax.TensorType(a.shape, str(a.dtype))) for n, a in arrays.items()
    }
    builder = relax.BlockBuilder()
    known = {name: relax.const(array, str(array.dtype)) for name, array in constants.items()}
    with builder.function("main", list(variables.values())):
        with builder.dataflow():
            made = build(builder.emit, **variables, **known)
            results = made if isinstance(made, dict) else {"y": made}
            given = list(results.values())
            output = builder.emit_output(relax.Tuple(given) if len(given) > 1 else given[0])
        builder.emit_func_output(output)
    inputs = tuple(TensorSpec(n, a.shape, str(a.dtype)) for n, a in arrays.items())
    outputs = tuple(TensorSpec(n, shape_of(v) or (), dtype_of(v)) for n, v in results.items())
    return builder.get(), Signature(inputs, outputs)


def host_model(
    arrays: Arrays,
    build: Callable[..., Any],
    uses: Sequence[str],
    target: str = "native",
    **constants: np.ndarray,
) -> HostModel:
    """Return a graph compiled by the stages of a model; kernels of `uses` alone must compute it."""
    module, signature = graph(arrays, build, constants)
    machine = load_target(target)
    program = schedule_program(lower(pack(module, machine), machine), machine, signature)
    assert [step.template for step in program.steps] == list(uses)
    return HostModel(module, signature, target=machine)


def by_legalization(
    arrays: Arrays, build: Callable[..., Any], **constants: np.ndarray
) -> list[np.ndarray]:
    """Return what the operators' legalizations compute: TVM's own code, in its machine."""
    module, _ = graph(arrays, build, constants)
    executable = relax.build(module, tvm.target.Target({"kind": "llvm"}))
    machine = relax.VirtualMachine(executable, tvm.cpu())
    found = machine["main"](*(tvm.runtime.tensor(a) for a in arrays.values()))
    return [item.numpy() for item in ([found] if hasattr(found, "numpy") else found)]


def load_kernel(kernel: Kernel, machine: Target, folder: Path) -> Callable[..., None]:
    """Return a function that runs all tasks of a kernel named `k` on arrays as they lie."""
    module = to_object({"k": kernel.function}, tvm.target.Target(machine.llvm()))
    module.write_to_file(str(folder / "k.o"))
    link_shared([folder / "k.o"], folder / "k.so", machine)
    function = ctypes.CDLL(str(folder / "k.so"))["k"]

    def run(*arrays: np.ndarray) -> None:
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
        function(*pointers, 0, kernel.tasks)

    return run


def appended(
    past: np.ndarray, new: np.ndarray, offset: np.ndarray, clear: bool = False
) -> np.ndarray:
    """Return a cache [B, H, T, D] with new rows [B, H, S, D] from offset [B] on."""
    result = past.copy()
    for sequence, start in enumerate(offset):
        if clear:
            result[sequence, :, max(0, start + new.shape[2]) :] = 0
        for step in range(new.shape[2]):
            if 0 <= start + step < past.shape[2]:
                result[sequence, :, start + step] = new[sequence, :, step]
    return result


def rotated(
    data: np.ndarray, cosines: np.ndarray, sines: np.ndarray, offset: np.ndarray, interleaved: bool
) -> np.ndarray:
    """Return rows of [B, H, S, D] turned by the angles [P, R / 2] of their positions."""
    half = cosines.shape[1]
    steps = offset[:, np.newaxis] + np.arange(data.shape[2])
    rows = np.clip(steps, 0, len(cosines) - 1)
    cosine, sine = cosines[rows][:, np.newaxis], sines[rows][:, np.newaxis]
    result = data.copy()
    first = slice(0, 2 * half, 2) if interleaved else slice(0, half)
    second = slice(1, 2 * half, 2) if interleaved else slice(half, 2 * half)
    result[..., first] = data[..., first] * cosine - data[..., second] * sine
    result[..., second] = data[..., second] * cosine + data[..., first] * sine
    return result


def attended(
    query: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    offset: np.ndarray,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> np.ndarray:
    """Return causal attention in float64, row by row."""
    batch, heads, count, _ = query.shape
    share = heads // keys.shape[1]
    result = np.zeros((batch, heads, count, values.shape[3]))
    for b, n, i in np.ndindex(batch, heads, count):
        end = min(offset[b] + i + 1, keys.shape[2])
        begin = max(0, offset[b] + i + 1 - window) if window else 0
        if end <= begin:
            continue
        logits = keys[b, n // share, begin:end].astype(np.float64) @ query[b, n, i] * scale
        if softcap:
            logits = softcap * np.tanh(logits / softcap)
        weights = np.exp(logits - logits.max())
        result[b, n, i] = weights @ values[b, n // share, begin:end] / weights.sum()
    return result
