"""Compile kernels as the pipeline does, without a bundle around them, and run them here."""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tvm
from onnx import NodeProto
from support.onnx_graphs import Shape, make_model, random

from edgec.compiler.backend import pack
from edgec.compiler.codegen.build import build_library
from edgec.compiler.codegen.in_place import move_channels_in_place
from edgec.compiler.codegen.link import link_shared
from edgec.compiler.codegen.memory import MemoryPlan, plan_memory
from edgec.compiler.frontend.canonical import canonical_model
from edgec.compiler.frontend.onnx_facts import graph_depth
from edgec.compiler.ir.program import Program, Value
from edgec.compiler.ir.signature import Signature
from edgec.compiler.kernels.emit.emitter import to_object
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.templates import TEMPLATES
from edgec.compiler.lowering.legalize import lower
from edgec.compiler.lowering.schedule import Decide, default_decide, schedule_program
from edgec.compiler.parity.compare import compare, tolerance_for
from edgec.compiler.parity.oracle import run_original
from edgec.compiler.runtime.session import open_session, why_not_here
from edgec.targets import Target, load_target

# Vectors of 16, 8 and 4 lanes; 32 registers and 16.
X86_TARGETS = [
    name
    for name in ("native", "x86-64-v3", "x86-64-v2")
    if name == "native" or not why_not_here(load_target(name))
]


@dataclass(frozen=True)
class Branch:
    """A branch describes a small graph from `x` (and other inputs) to `y`.

    Attributes:
        nodes: its nodes.
        inputs: shape by name.
        uses: templates that must compute it, in order, without `pack`.
        weights: initializers by name.
    """

    nodes: Sequence[NodeProto]
    inputs: Mapping[str, Sequence[int]]
    uses: Sequence[str]
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Built:
    """A built model is a compiled model of static shapes.

    Attributes:
        model: the ONNX model.
        program: what the schedule stage made of it.
        plan: its memory.
        library: its code.
        target: what it was compiled for.
        signature: its inputs and outputs.
    """

    model: onnx.ModelProto
    program: Program
    plan: MemoryPlan
    library: Path
    target: Target
    signature: Signature

    def inputs(self) -> dict[str, np.ndarray]:
        specs = self.signature.inputs
        shapes = {s.name: [extent or 0 for extent in s.shape] for s in specs}
        return {name: random(*shapes[name], seed=i) for i, name in enumerate(shapes)}

    def open(self, threads: int = 2) -> Any:
        return open_session(self.library, self.target, self.signature, "static", threads)

    def templates(self) -> list[str]:
        """Return template of every step."""
        return [step.template for step in self.program.steps]

    def templates_of(self, output: str) -> list[str]:
        """Return templates of the steps that one output depends on."""
        names = [spec.name for spec in self.signature.outputs]
        # Several steps write the parts of one value.
        written: dict[int, list[Any]] = {}
        for step in self.program.steps:
            written.setdefault(id(step.arguments[-1].root), []).append(step)
        found: list[Any] = []
        visited: list[Any] = []

        def visit(value: Value) -> None:
            for step in written.get(id(value.root), []):
                if step not in visited:
                    visited.append(step)
                    for argument in step.arguments[:-1]:
                        visit(argument)
                    found.append(step)

        number = names.index(output)
        roots = {v.root.number: v for s in self.program.steps for v in s.arguments[-1:]}
        visit(
            next(v for v in roots.values() if v.root.role == "output" and v.root.number == number)
        )
        return [step.template for step in found]


def compile_graph(
    model: onnx.ModelProto, target: str, folder: Path, decide: Decide = default_decide
) -> Built:
    """Return everything from a model to a library, step by step."""
    machine = load_target(target)
    canonical = canonical_model(model)
    module, graph = canonical.module, canonical.graph
    lowered = lower(pack(module, machine), machine)
    signature = canonical.signature
    program = schedule_program(lowered, machine, signature, decide)
    move_channels_in_place(program)
    library = folder / "model.so"
    build_library([program], machine, library)
    return Built(graph, program, plan_memory(program), library, machine, signature)


def check_branches(
    branches: Mapping[str, Branch], target: str, folder: Path, decide: Decide = default_decide
) -> None:
    """Compile independent branches as one model; each must use its templates and be right.

    The negative control: against the results of slightly other inputs each branch must fail.
    """
    built = compile_graph(_join(branches), target, folder, decide)
    inputs = built.inputs()
    outputs = built.open().run(inputs)
    tolerance = tolerance_for("float32", graph_depth(built.model.graph))
    report = compare(run_original(built.model, inputs), outputs, tolerance)
    other = {name: _nudged(array) for name, array in inputs.items()}
    control = compare(run_original(built.model, other), outputs, tolerance)
    problems = []
    for name, good, bad in zip(branches, report.outputs, control.outputs, strict=True):
        used = [kind for kind in built.templates_of(good.name) if kind != "pack"]
        if used != list(branches[name].uses):
            problems.append(f"{name}: computed by {used}")
        if not good.passed:
            problems.append(f"{name}: {good.problem}")
        if bad.passed:
            problems.append(f"{name}: the comparison does not notice other inputs")
    assert not problems, "\n".join(problems)


def _nudged(array: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(1).standard_normal(array.shape).astype(array.dtype)
    return array + np.float32(0.01) * noise


def random_decisions(seed: int) -> Decide:
    """Chooses any decision of a template's space, the same for the same seed."""
    generator = np.random.default_rng(seed)

    def decide(operator: str, workload: Any, target: Target) -> Any:
        space = TEMPLATES[operator].space(workload, target)
        return space[int(generator.integers(len(space)))]

    return decide


def _join(branches: Mapping[str, Branch]) -> onnx.ModelProto:
    nodes: list[NodeProto] = []
    inputs: dict[str, Shape] = {}
    weights: dict[str, np.ndarray] = {}
    for number, branch in enumerate(branches.values()):

        def rename(name: str, number: int = number) -> str:
            return f"{name}_{number}" if name else ""

        for item in branch.nodes:
            copy = NodeProto()
            copy.CopyFrom(item)
            copy.name = rename(item.name)
            copy.input[:] = [rename(name) for name in item.input]
            copy.output[:] = [rename(name) for name in item.output]
            nodes.append(copy)
        inputs.update({rename(name): list(shape) for name, shape in branch.inputs.items()})
        weights.update({rename(name): array for name, array in branch.weights.items()})
    return make_model(nodes, inputs, [f"y_{i}" for i in range(len(branches))], weights)


class LoadedKernels:
    """Loaded kernels are kernels linked into a library of their own."""

    def __init__(self, kernels: Mapping[str, Kernel], target: str, folder: Path) -> None:
        machine = load_target(target)
        functions = {name: kernel.function for name, kernel in kernels.items()}
        module = to_object(functions, tvm.target.Target(machine.llvm()))
        module.write_to_file(str(folder / "kernels.o"))
        library = folder / "kernels.so"
        link_shared([folder / "kernels.o"], library, machine)
        self._kernels = kernels
        self._library = ctypes.CDLL(str(library))

    def __call__(self, name: str, *arrays: np.ndarray, size: int) -> np.ndarray:
        """Run all tasks of a kernel; its output is the last buffer."""
        buffers = [_aligned(array.size) for array in arrays]
        for buffer, array in zip(buffers, arrays, strict=True):
            buffer[:] = array.reshape(-1)
        buffers.append(_aligned(size))
        pointers = [ctypes.c_void_p(buffer.ctypes.data) for buffer in buffers]
        self._library[name](*pointers, 0, self._kernels[name].tasks)
        return buffers[-1]


def _aligned(size: int) -> np.ndarray:
    """Return NaN where nothing is written, first byte aligned."""
    memory = np.full(size + 16, np.nan, np.float32)
    start = -memory.ctypes.data % 64 // 4
    return memory[start : start + size]
