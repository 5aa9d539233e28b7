"""The harness of the conformance run says the truth; the whole run is a job of its own."""

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from conformance.attempt import run_edgec
from conformance.cases import Case, Outcome, load_cases
from conformance.comparison import difference
from conformance.known import (
    KNOWN,
    Known,
    check_known,
    read_known,
    update_known,
    write_known,
)
from conformance.rival import run_onnxruntime
from conformance.worker import Workers


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    return {case.name: case for case in load_cases()}


@pytest.fixture(scope="module")
def outcomes(cases: dict[str, Case]) -> dict[str, Outcome]:
    add = cases["test_add"]
    (total,) = add.expected
    altered = total.copy()
    altered[-1, -1, -1] *= 1.01
    selected = [
        add,
        cases["test_matmul_2d"],
        cases["test_relu"],
        cases["test_cast_FLOAT_to_BFLOAT16"],
        cases["test_clip_example"],
        cases["test_reshape_negative_dim"],
        cases["test_softplus_expanded_ver18"],
        cases["test_expand_shape_model1"],
        cases["test_sequence_insert_at_back"],
        replace(add, name="altered", expected=[altered]),
        replace(add, name="reshaped", expected=[total[None]]),
        replace(add, name="widened", expected=[total.astype(np.float64)]),
        replace(add, name="missing", expected=[]),
    ]
    with Workers(run_edgec, 1) as workers:
        return workers.run(selected, 60)


@pytest.mark.parametrize("name", ["test_add", "test_matmul_2d", "test_relu"])
def test_passes(outcomes: dict[str, Outcome], name: str) -> None:
    assert outcomes[name].status == "pass", outcomes[name].message
    assert outcomes[name].frozen == []
    assert not outcomes[name].folded


def test_passes_in_low_precision(outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["test_cast_FLOAT_to_BFLOAT16"]
    assert outcome.status == "pass", outcome.message


def test_says_what_was_frozen(outcomes: dict[str, Outcome]) -> None:
    for name, frozen in (("test_clip_example", []), ("test_reshape_negative_dim", ["shape"])):
        outcome = outcomes[name]
        assert outcome.status == "pass", outcome.message
        assert outcome.frozen == frozen


def test_refuses_what_is_no_tensor(outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["test_sequence_insert_at_back"]
    assert outcome.status == "refused"
    assert outcome.message.endswith("edgec compiles tensors")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("altered", r"output 0: 1 of 60 values differ, .* at \[2, 3, 4\]"),
        ("reshaped", r"shape \[3, 4, 5\], expected \[1, 3, 4, 5\]"),
        ("widened", "dtype float32, expected float64"),
        ("missing", "1 outputs, expected 0"),
    ],
)
def test_negative_control(outcomes: dict[str, Outcome], name: str, message: str) -> None:
    assert outcomes[name].status == "wrong"
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(outcomes[name].message)


def aborts_or_hangs(case: Case) -> Outcome:
    if case.name == "test_add":
        os.abort()
    if case.name == "test_relu":
        time.sleep(60)
    return Outcome("pass")


def test_loses_only_the_case_that_dies(cases: dict[str, Case]) -> None:
    selected = [cases[name] for name in ("test_abs", "test_add", "test_relu", "test_tanh")]
    with Workers(aborts_or_hangs, 1) as workers:
        outcomes = workers.run(selected, 1)
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        "test_abs": "pass",
        "test_add": "crash",
        "test_relu": "timeout",
        "test_tanh": "pass",
    }
    assert outcomes["test_add"].message.startswith("killed by SIGABRT")
    assert outcomes["test_relu"].message == "took over 1 s"


@pytest.mark.parametrize(
    "name", ["test_add", "test_castlike_FLOAT_to_FLOAT8E4M3FN", "test_sequence_insert_at_back"]
)
def test_onnxruntime_passes(cases: dict[str, Case], name: str) -> None:
    outcome = run_onnxruntime(cases[name])
    assert outcome.status == "pass", outcome.message


def test_covers_every_official_case(cases: dict[str, Case]) -> None:
    kinds = {case.kind for case in cases.values()}
    assert kinds == {"node", "simple", "pytorch-converted", "pytorch-operator", "real"}
    assert cases["test_reversesequence_time"].core
    assert cases["test_resnet50"].core
    for name in ("test_adam", "test_sequence_insert_at_back", "test_equal_string"):
        assert not cases[name].core
    if onnx.__version__.startswith("1.23."):
        assert (len(cases), sum(case.core for case in cases.values())) == (2036, 1927)


def test_difference() -> None:
    nan = np.array([1, np.nan, np.inf], np.float32)
    assert difference(nan, nan.copy(), 1e-3, 1e-7) == ""
    assert "nan instead of 1.0" in difference(nan[1:2], nan[:1], 1e-3, 1e-7)
    assert difference(np.float32(1.0009), np.float32(1), 1e-3, 1e-7) == ""
    assert "differ" in difference(np.float32(1.0011), np.float32(1), 1e-3, 1e-7)
    assert difference([nan], [nan], 0, 0) == ""
    assert difference([nan], [nan, nan], 0, 0) == "not the expected sequence"


def test_known_failures(cases: dict[str, Case], tmp_path: Path) -> None:
    names = ["test_abs", "test_add", "test_relu", "test_tanh"]
    selected = [cases[name] for name in names]
    known = {
        "test_abs": Known("refused", "by hand"),
        "test_add": Known("refused", "was refused"),
        "test_relu": Known("wrong", "is fixed by now"),
    }
    refused = "1 node cannot be compiled: Tanh (node): the operator is not supported"
    outcomes = {
        "test_abs": Outcome("refused", "other words"),
        "test_add": Outcome("crash", "build: InternalError: no"),
        "test_relu": Outcome("pass"),
        "test_tanh": Outcome("refused", refused),
    }
    assert check_known(known, outcomes) == [
        "test_add is crash, listed as refused: build: InternalError: no",
        "test_relu passes; remove it from the list (--update)",
        f"test_tanh is refused: {refused}",
    ]
    updated = update_known(known, selected, outcomes)
    assert updated == {
        "test_abs": Known("refused", "by hand"),
        "test_add": Known("crash", "build: InternalError: no"),
        "test_tanh": Known("refused", "Tanh: the operator is not supported"),
    }
    assert check_known(updated, outcomes) == []
    write_known(tmp_path / "known.toml", updated)
    assert read_known(tmp_path / "known.toml") == updated


def test_the_committed_list_names_cases(cases: dict[str, Case]) -> None:
    known = read_known(KNOWN)
    assert known
    if f"onnx {onnx.__version__}." in KNOWN.read_text():
        assert set(known) <= set(cases)
    assert all(item.why for item in known.values())
