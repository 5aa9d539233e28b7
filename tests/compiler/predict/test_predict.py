"""Predictions: sizes that are exact, times with bars, records that win over the model."""

import json
from pathlib import Path

import pytest

from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.errors import UnsupportedModelError
from edgec.compiler.frontend.canonical import CanonicalModel, canonical_model
from edgec.compiler.lowering.tuning_records import Database, Key, make_record
from edgec.compiler.options import CompileOptions
from edgec.compiler.predict.correction import fit_for
from edgec.compiler.predict.model import predict_model
from edgec.compiler.predict.predict import (
    operator_times,
    predict,
    predict_program,
    scheduled_program,
    total_of,
)
from edgec.compiler.predict.prediction import Estimate
from edgec.targets import load_target

SHAPES = {"image": (1, 1, 8, 8)}


@pytest.fixture(scope="module")
def canonical(digits: Path) -> CanonicalModel:
    return canonical_model(digits, SHAPES)


def test_memory_and_size_are_those_of_the_bundle(digits: Path, digits_bundle: Path) -> None:
    execution = Bundle.load(digits_bundle).manifest.execution
    options = CompileOptions(shapes=SHAPES)
    found = predict_model(digits, "native", options, compile_library=True)
    assert found.arena_bytes == execution.arena_bytes
    assert found.library_source == "compiled"
    assert found.library_bytes == (digits_bundle / "model.so").stat().st_size
    # What the bundle says of itself is the same prediction.
    assert execution.predicted is not None
    assert found.latency.value == pytest.approx(execution.predicted.latency_ms, rel=0.01)
    estimated = predict_model(digits, "native", options)
    assert estimated.library_source == "estimated"
    assert estimated.library_bytes == pytest.approx(found.library_bytes, rel=0.5)


def test_a_processor_that_was_never_measured_says_so(digits: Path) -> None:
    found = predict_model(digits, "riscv64", CompileOptions(shapes=SHAPES))
    assert fit_for(load_target("riscv64"), "ns") is None
    assert "were measured" in found.warnings[0]
    # Its bar is wide, and holds the value.
    assert found.latency.low < found.latency.value < found.latency.high
    assert found.latency.width > 0.5
    assert found.energy.source == "model"


def test_operators_by_name_add_up(canonical: CanonicalModel) -> None:
    target = load_target("rpi4")
    arguments = (canonical.module, canonical.signature, target)
    times = operator_times(*arguments, names=canonical.value_names)
    whole = predict(*arguments, names=canonical.value_names)
    assert "logits" in times
    assert sum(time.value for time in times.values()) == pytest.approx(whole.latency.value)


def test_a_record_wins_over_the_model(canonical: CanonicalModel, tmp_path: Path) -> None:
    target = load_target("rpi4")
    program = scheduled_program(canonical.module, canonical.signature, target)
    step = next(step for step in program.steps if step.template == "conv")
    key = Key("edgec.conv", step.workload)
    decision = json.dumps({"register_tiles": 1, "vectors": 1, "repeats": 1, "out": 1})
    record = make_record(key, decision, target, 1, 0.125)
    database = Database(tmp_path, (record,))
    assert predict_program(program, target).recorded_share == 0
    known = {key: record.model_copy(update={"decision": json.loads(_decision(program, step))})}
    found = predict_program(program, target, known)
    (item,) = (item for item in found.operators if item.source == "record")
    assert item.time.value == 125.0
    assert found.recorded_share > 0.9
    assert database.fitting(target) == [record]


def _decision(_program: object, step: object) -> str:
    from edgec.compiler.kernels.template import from_text, to_text
    from edgec.compiler.kernels.templates import TEMPLATES

    template = TEMPLATES["edgec.conv"]
    workload = from_text(template.workload, getattr(step, "workload"))  # noqa: B009
    return to_text(template.default(workload, load_target("rpi4")))


def test_bars_of_many_calls_are_narrower() -> None:
    one = Estimate(1.0, 0.5, 2.0)
    many = total_of([one] * 100)
    assert many.value == 100
    assert one.width > many.width > one.width / 2


def test_shapes_that_depend_on_data_are_refused() -> None:
    from support.onnx_graphs import make_model, node

    model = make_model([node("NonZero", ["x"], ["y"])], {"x": [4]}, ["y"])
    canonical = canonical_model(model)
    with pytest.raises(UnsupportedModelError, match="cannot be predicted"):
        predict(canonical.module, canonical.signature, load_target("rpi4"))
