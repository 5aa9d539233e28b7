"""What is said to compute on floats is what does so in the scheduled program."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from support.onnx_graphs import make_model, node, random

from edgec.compiler.backend import pack_dense
from edgec.compiler.frontend.canonical import canonical_model
from edgec.compiler.ir.graph import Graph
from edgec.compiler.ir.program import KernelCall, Program
from edgec.compiler.kernels.isa import dot_of
from edgec.compiler.lowering.legalize import lower
from edgec.compiler.lowering.pack import Notes, matmul
from edgec.compiler.lowering.schedule import schedule_program
from edgec.compiler.quantize import plan as planning
from edgec.compiler.quantize.encode import Quantization, quantize_numbers
from edgec.compiler.quantize.float_fallbacks import FloatFallback, float_fallbacks
from edgec.compiler.quantize.insert_qdq import InsertQuantization
from edgec.compiler.quantize.plan import plan_quantization
from edgec.compiler.quantize.quantization_recipe import RECIPES, resolve
from edgec.targets import load_target, target_names

WEIGHTS = {
    "six": random(6, 8, seed=1),
    "eight": random(8, 4, seed=2),
    "w": random(8, 8, 3, 3, seed=3),
    "v": random(8, 8, 1, 1, seed=4),
    "row": np.array([1, 8]),
}
# A product of depth 6, then one of depth 8.
DEPTH_SIX = [
    node("MatMul", ["x", "six"], ["a"]),
    node("Relu", ["a"], ["r"]),
    node("MatMul", ["r", "eight"], ["y"]),
]
NETWORK = [
    node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
    node("Relu", ["a"], ["r"]),
    node("Conv", ["r", "v"], ["c"]),
    node("Add", ["c", "r"], ["s"]),
    node("GlobalAveragePool", ["s"], ["p"]),
    node("Reshape", ["p", "row"], ["f"]),
    node("MatMul", ["f", "eight"], ["y"]),
]
PRODUCT = [
    node("Transpose", ["x"], ["t"], perm=[1, 0]),
    node("MatMul", ["x", "t"], ["m"]),
    node("MatMul", ["m", "eight"], ["y"]),
]


@dataclass(frozen=True)
class Compiled:
    """A quantized model up to its program.

    Attributes:
        quantization: of the model.
        program: what runs.
        fallbacks: what is said to compute on floats.
    """

    quantization: Quantization
    program: Program
    fallbacks: tuple[FloatFallback, ...]

    def check(self) -> None:
        """Compare the fallbacks with the program: each, and no other, runs on floats."""
        planned = [o for o in self.quantization.plan.operators if o.keep == "integer"]
        # Steps of generic code have no name of a value.
        seen = [o for o in planned if self.steps_of(o.names)]
        said = {fallback.name for fallback in self.fallbacks} & {o.name for o in seen}
        assert seen
        assert said == {o.name for o in seen if self.reads_floats(o.names)}
        silent = [f.name for f in self.fallbacks if not f.why or "without a reason" in f.why]
        assert not silent, f"no reason is given for {silent}"

    def steps_of(self, names: Sequence[str]) -> list[KernelCall]:
        """Return the steps that compute values of these names."""
        own = [step for step in self.program.steps if step.label in names]
        return [step for step in own if step.template != "pack" and not _dequantizes(step)]

    def reads_floats(self, names: Sequence[str]) -> bool:
        """Tell whether no kernel of an operator reads quantized values."""
        return all(step.arguments[0].dtype == "float32" for step in self.steps_of(names))


def _dequantizes(step: KernelCall) -> bool:
    """Tell whether a step does nothing else."""
    alone = step.template == "elementwise" and step.workload.count('"op"') == 1
    return alone and '"multiply"' in step.workload and step.arguments[0].dtype != "float32"


def compiled(
    nodes: Sequence[Any], shape: Sequence[int], target: str, recipe: str = "int8"
) -> Compiled:
    used = {name for item in nodes for name in item.input}
    weights: Mapping[str, Any] = {n: array for n, array in WEIGHTS.items() if n in used}
    model = canonical_model(make_model(nodes, {"x": list(shape)}, ["y"], weights))
    graph = Graph(model.module, model.value_names)
    machine = load_target(target)
    plan = plan_quantization(graph, RECIPES[recipe])
    ranges = {graph.names[v]: (-1.0 - i, 2.0 + i) for i, v in enumerate(plan.tensors)}
    quantization = quantize_numbers(plan, resolve(RECIPES[recipe], machine), ranges)
    module = InsertQuantization(quantization)(graph.module)
    notes = Notes()
    packed = pack_dense(module, machine, model.value_names, notes)
    program = schedule_program(lower(packed, machine), machine, model.signature)
    return Compiled(quantization, program, float_fallbacks(quantization, notes.why_floats))


def test_a_product_of_depth_six_is_named_with_its_reason() -> None:
    result = compiled(DEPTH_SIX, (4, 6), "x86-64-v3")
    result.check()
    assert [(f.name, f.operator) for f in result.fallbacks] == [("r", "matmul")]
    assert result.fallbacks[0].why == "its depth 6 is not a multiple of 4"
    templates = [s.template for s in result.program.steps if s.template.endswith("matmul")]
    assert templates == ["stored_matmul", "integer_matmul"]


def test_the_packer_declines_what_the_plan_would_have_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planning, "integer_support", lambda _graph, _operator: None)
    result = compiled(DEPTH_SIX, (4, 6), "x86-64-v3")
    assert result.quantization.plan.operators[0].keep == "integer"
    result.check()
    assert [f.why for f in result.fallbacks] == ["its depth 6 is not a multiple of 4"]


@pytest.mark.parametrize("target", ["x86-64-v2", "riscv64", "rpi3-32bit"])
def test_without_integer_kernels_every_operator_is_named(target: str) -> None:
    result = compiled(NETWORK, (1, 8, 6, 6), target)
    result.check()
    assert {f.name for f in result.fallbacks} >= {"r", "c", "s", "p", "y"}
    assert {f.why for f in result.fallbacks if f.name in "rcspy"} == {
        load_target(target).why_in_floats
    }
    why = result.quantization.resolved.why
    assert "products are in floats" in why
    assert "int32" not in why


@pytest.mark.parametrize("target", ["x86-64-v3", "rpi4", "x86-64-v4-vnni"])
def test_with_integer_kernels_none_is_named(target: str) -> None:
    result = compiled(NETWORK, (1, 8, 6, 6), target)
    result.check()
    assert result.fallbacks == ()


def test_a_product_of_two_activations_is_named() -> None:
    result = compiled(PRODUCT, (8, 8), "x86-64-v3")
    result.check()
    (fallback,) = [f for f in result.fallbacks if f.name == "m"]
    assert fallback.why == "only a constant int8 matrix has a kernel of integers"


def test_a_convolution_of_dynamic_ranges_is_named() -> None:
    nodes = [*NETWORK[:2], node("Conv", ["r", "v"], ["y"])]
    result = compiled(nodes, (1, 8, 6, 6), "x86-64-v3", "int8-dynamic")
    result.check()
    assert {f.name for f in result.fallbacks} >= {"r", "y"}
    assert any("scale that is known when compiling" in f.why for f in result.fallbacks)


def test_a_kernel_that_declines_silently_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "_integer_matmul", lambda _context, _call: None)
    result = compiled(DEPTH_SIX, (4, 6), "x86-64-v3")
    with pytest.raises(AssertionError, match="no reason is given"):
        result.check()


def test_fallbacks_of_the_plan_alone_are_found_to_be_wrong() -> None:
    result = compiled(NETWORK, (1, 8, 6, 6), "riscv64")
    blind = float_fallbacks(result.quantization, lambda _names: None)
    with pytest.raises(AssertionError):
        Compiled(result.quantization, result.program, blind).check()


def test_targets_name_the_instructions_that_kernels_use() -> None:
    for name in target_names():
        target = load_target(name)
        assert (dot_of(target) is None) == (target.integer_dot == "none"), name
