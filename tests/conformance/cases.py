"""The official cases of the installed onnx package, and what becomes of one."""

import contextlib
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

Array = NDArray[Any]

STATUSES = ("pass", "refused", "wrong", "crash", "timeout")


@dataclass(frozen=True)
class Case:
    """A case describes one official case.

    Attributes:
        name: unique.
        kind: node, simple, real (the light models), pytorch-converted or pytorch-operator.
        operator: what it is listed under.
        core: of tensors and the standard operators: no training, ai.onnx.ml, preview operators,
            strings, sequences or optionals.
        model: serialized.
        inputs: arrays in the order of the graph's inputs; anything else for sequences.
        expected: likewise, of the graph's outputs.
        rtol: relative tolerance.
        atol: absolute tolerance.
    """

    name: str
    kind: str
    operator: str
    core: bool
    model: bytes
    inputs: list[Any]
    expected: list[Any]
    rtol: float
    atol: float


@dataclass(frozen=True)
class Outcome:
    """An outcome describes what became of a case.

    Attributes:
        status: one of `STATUSES`.
        message: why it did not pass.
        frozen: inputs that had to be made constants.
        folded: nothing was left to compile then.
        died: the worker ended.
        seconds: time from sending the case to hearing of it.
        phases: seconds in each phase of the compile.
    """

    status: str
    message: str = ""
    frozen: list[str] = field(default_factory=list)
    folded: bool = False
    died: bool = False
    seconds: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)


class Failed(Exception):  # noqa: N818 - a verdict about a case, not a malfunction
    """A case did not pass; `status` says how."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


def load_cases() -> list[Case]:
    """Return all cases of the installed onnx package, by name; generated.

    As it ships no node data.
    """
    with warnings.catch_warnings(), contextlib.redirect_stdout(None):
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.model import collect_testcases
        from onnx.backend.test.loader import load_model_tests

        cases = [_generated(case) for case in load_model_tests(kind="node")]
        cases += [_generated(case) for case in collect_testcases() if case.model is not None]
        for kind in ("pytorch-converted", "pytorch-operator"):
            cases += [_stored(case) for case in load_model_tests(kind=kind)]
        cases += [_light(case) for case in load_model_tests(kind="real")]
    operators = {case.name: case.operator for case in cases}
    cases = [replace(case, operator=_listed_under(case, operators)) for case in cases]
    return sorted(cases, key=lambda case: case.name)


def _generated(case: Any) -> Case:
    (inputs, expected), *others = case.data_sets
    assert not others, f"{case.name} has several data sets"
    return _case(case, case.model, list(map(_array, inputs)), list(map(_array, expected)))


def _stored(case: Any) -> Case:
    folder = Path(case.model_dir)
    model = onnx.load(folder / "model.onnx")
    (data,) = folder.glob("test_data_set_*")

    def read(kind: str) -> list[Array]:
        count = len(list(data.glob(f"{kind}_*.pb")))
        return [_tensor(data / f"{kind}_{index}.pb") for index in range(count)]

    return _case(case, model, read("input"), read("output"))


def _light(case: Any) -> Case:
    """Return true shapes, made-up weights; ONNX's runner feeds a ramp from 0 to 1."""
    path = Path(onnx.__file__).parent.parent / case.url
    model = onnx.load(path)
    initialized = {tensor.name for tensor in model.graph.initializer}
    inputs = []
    for value in model.graph.input:
        if value.name not in initialized:
            shape = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
            count = int(np.prod(shape))
            inputs.append((np.arange(count).reshape(shape) / count).astype(np.float32))
    return _case(case, model, inputs, [_tensor(path.with_name(f"{path.stem}_output_0.pb"))])


def _case(case: Any, model: onnx.ModelProto, inputs: list[Any], expected: list[Any]) -> Case:
    operator = model.graph.node[0].op_type if case.kind == "node" else f"[{case.kind}]"
    core = _is_core(model)
    data = model.SerializeToString()
    return Case(case.name, case.kind, operator, core, data, inputs, expected, case.rtol, case.atol)


def _listed_under(case: Case, operators: dict[str, str]) -> str:
    """A function's body written out is listed under the function."""
    base, expanded, _ = case.name.partition("_expanded")
    return f"{operators[base]} expanded" if expanded and base in operators else case.operator


def _array(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.generic) else value


def _tensor(path: Path) -> Array:
    array: Array = numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes()))
    return array


def _is_core(model: onnx.ModelProto) -> bool:
    if any(item.domain not in ("", "ai.onnx") for item in model.opset_import):
        return False
    for value in [*model.graph.input, *model.graph.output]:
        if not value.type.HasField("tensor_type"):
            return False
        if value.type.tensor_type.elem_type == onnx.TensorProto.STRING:
            return False
    kinds = re.compile(r"(?<!Reverse)Sequence|Optional|String|RegexFullMatch")
    return not any(kinds.search(node.op_type) for node in _nodes(model.graph))


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)
