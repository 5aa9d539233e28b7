"""Decisions from tuning records: those that fit decide, others are as if they were not there."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from support.conv_workloads import conv_workload

from edgec.compiler.kernels.conv.integer import IntegerConvWorkload
from edgec.compiler.kernels.conv.workload import ConvWorkload
from edgec.compiler.kernels.emit.epilogue import EpilogueStep
from edgec.compiler.kernels.template import to_text
from edgec.compiler.kernels.templates import TEMPLATES
from edgec.compiler.lowering import recorded_decisions
from edgec.compiler.lowering.recorded_decisions import (
    RecordedDecisions,
    read_record,
    tuned_records,
)
from edgec.compiler.lowering.schedule import default_decide
from edgec.compiler.lowering.tuning_records import (
    READY,
    Database,
    Key,
    Record,
    alike,
    append,
    best_records,
    make_record,
)
from edgec.compiler.support.progress import Silent
from edgec.targets import load_target

OPERATOR = "edgec.integer_conv"
RPI4 = load_target("rpi4")
CONV: ConvWorkload = conv_workload(in_h=14, in_w=14, out_h=14, out_w=14)


def workload(border: int = 0) -> IntegerConvWorkload:
    return IntegerConvWorkload(CONV, border)


def other_decision() -> Any:
    default = default_decide(OPERATOR, workload(114), RPI4)
    space = TEMPLATES[OPERATOR].space(workload(114), RPI4)
    return next(decision for decision in space if decision != default)


def record(decision: str, border: int = 114, operator: str = OPERATOR) -> Record:
    key = Key(operator, to_text(workload(border)))
    return make_record(key, decision, RPI4, 1, 1e-6, emulated=True)


def decided(*records: Record, border: int = 114) -> tuple[Any, RecordedDecisions]:
    decisions = RecordedDecisions({record.key: record for record in records})
    return decisions(OPERATOR, workload(border), RPI4), decisions


def requantized(fraction: float, function: float) -> str:
    numbers = (fraction, function, 0.0, -1.0, 1.0, 1.0, 1.0)
    step = EpilogueStep("requantize_int8", "fixed", numbers)
    return to_text(IntegerConvWorkload(dataclasses.replace(CONV, epilogue=(step,)), 3))


def test_calibration_makes_no_other_kernel_of_it() -> None:
    one, other, gated = (
        alike(Key(OPERATOR, requantized(*numbers))) for numbers in ((4, 0), (6, 0), (4, 1))
    )
    assert one == other
    assert one != gated
    assert one != alike(Key("edgec.integer_depthwise", one.workload))


def test_a_record_decides_whatever_the_zero_point_of_the_padding() -> None:
    wanted = other_decision()
    for border in (114, 7):
        found, decisions = decided(record(to_text(wanted)), border=border)
        assert found == wanted
        assert decisions.used == {Key(OPERATOR, to_text(workload(border)))}
    # Without a zero point the kernel has less to do.
    found, decisions = decided(record(to_text(wanted)), border=0)
    assert (found, decisions.used) == (default_decide(OPERATOR, workload(), RPI4), set())


@pytest.mark.parametrize("change", ["not offered", "unknown field", "missing field"])
def test_what_a_kernel_does_not_offer_any_more_is_not_there(change: str) -> None:
    fields = json.loads(to_text(other_decision()))
    name = next(name for name, value in fields.items() if isinstance(value, int))
    if change == "not offered":
        fields[name] = 999
    elif change == "unknown field":
        fields = {"of_another_version": 1}
    else:
        del fields[name]
    outdated = record(json.dumps(fields))
    assert read_record(outdated, RPI4) is None
    found, decisions = decided(outdated)
    assert (found, decisions.used) == (default_decide(OPERATOR, workload(114), RPI4), set())


def test_records_of_kernels_that_are_gone_are_not_read() -> None:
    text = to_text(other_decision())
    assert read_record(record(text), RPI4) == (workload(114), other_decision())
    assert read_record(record(text, operator="edgec.gone"), RPI4) is None
    changed = record(text).model_copy(update={"workload": {"rows": 3}})
    assert read_record(changed, RPI4) is None


def test_records_that_come_with_edgec_give_way_to_measured_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded_decisions, "READY", tmp_path)
    shipped, own = record('{"shipped":1}'), record('{"own":1}')
    append(tmp_path / "rpi4.jsonl", [shipped])
    append(tmp_path / "own.jsonl", [own])

    def taken(database: Path | None, *, ready: bool) -> list[Record]:
        return list(tuned_records(RPI4, database, None, ready, Silent()).values())

    assert taken(None, ready=True) == [shipped]
    assert taken(None, ready=False) == []
    assert taken(tmp_path / "own.jsonl", ready=True) == [own]


@pytest.mark.parametrize("path", sorted(READY.glob("*.jsonl")), ids=lambda path: path.stem)
def test_kernels_are_written_by_the_records_that_come_with_edgec(path: Path) -> None:
    """Of each template by one; that all of them fit is a test of `tuning_records`."""
    target = load_target(path.stem)
    best = best_records(Database.read(path).fitting(target))
    decisions = RecordedDecisions(best)
    for key in {key.operator: key for key in best}.values():
        read = read_record(best[key], target)
        assert read is not None
        assert decisions(key.operator, read[0], target) == read[1]
        assert TEMPLATES[key.operator].emit(*read, target, "kernel").tasks > 0
    assert decisions.used
