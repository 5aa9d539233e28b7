"""Factors that were fitted: what they say, for which processors, and how far off they are."""

import numpy as np
import pytest

from edgec.compiler.predict.correction import (
    UNMEASURED,
    Fit,
    TemplateFit,
    correct,
    fit_for,
    fits,
    scales_of,
)
from edgec.compiler.predict.features import FEATURES, StepFeatures
from edgec.compiler.predict.predict import known_records
from edgec.targets import load_target


def features(kind: str, counted: bool = True, **values: float) -> StepFeatures:
    row = np.array([values.get(name, 0.0) for name in FEATURES])
    return StepFeatures(kind, row, counted, values.get("cycles", 0.0))


def a_fit() -> Fit:
    def template(**factors: float) -> TemplateFit:
        return TemplateFit(factors=factors, low=0.5, high=2.0, calls=9)

    return Fit(
        unit="ns",
        architecture="riscv64",
        vector_bits=0,
        target="toy",
        clock_ghz=1.0,
        machine="a toy",
        date="2026-11-30",
        trained=("a", "b"),
        held_out=("c",),
        templates={
            "conv": template(multiply_add=2.0, call=10.0),
            "any": template(load=1.0),
            "uncounted": template(cycles=3.0),
        },
        within=0.9,
        models={"c": 1.07},
    )


def test_an_estimate_is_a_sum_with_a_bar() -> None:
    found = a_fit().estimate(features("conv", multiply_add=5, call=1, load=7))
    assert (found.value, found.low, found.high) == (20.0, 10.0, 40.0)
    assert a_fit().estimate(features("pool", load=7, call=1)).value == 7
    # What is not known in this way is taken for its template.
    assert a_fit().estimate(features("conv grouped", multiply_add=5, call=1)).value == 20
    # Without counts the analytic model's cycles are what is known.
    assert a_fit().estimate(features("conv", counted=False, cycles=4)).value == 12
    assert "whole models within 7%" in a_fit().describe()


def test_without_a_fit_the_analytic_model_stands_with_a_wide_bar() -> None:
    target = load_target("riscv64")
    found = correct(features("conv", cycles=1e6), target)
    value = 1e6 / target.clock_ghz * 1e-6
    low, high = UNMEASURED
    assert found.time.value == pytest.approx(value)
    assert (found.time.low, found.time.high) == pytest.approx((value * low, value * high))
    assert found.instructions == 0


def test_fits_that_come_with_edgec_are_whole() -> None:
    known = fits()
    assert known
    for fit in known:
        assert "any" in fit.templates
        assert not set(fit.trained) & set(fit.held_out)
        assert set(fit.models) == set(fit.held_out)
        for template in fit.templates.values():
            assert set(template.factors) <= set(FEATURES)
            assert template.low <= 1 <= template.high


def test_vectors_of_one_width_are_alike() -> None:
    found = fit_for(load_target("x86-64-v4"), "ns")
    assert found is not None
    assert (found.architecture, found.vector_bits) == ("x86_64", 512)
    assert fit_for(load_target("x86-64-v2"), "ns") is None


def test_records_of_a_target_correct_the_analytic_model() -> None:
    """Those that come with edgec for AVX2: kernels without a record take as much longer."""
    target = load_target("x86-64-v3")
    best = known_records(target)
    assert fit_for(target, "ns") is None
    scales = scales_of(best, target)
    assert "conv" in scales
    found = correct(features("conv", cycles=1e6), target, scales)
    plain = 1e6 / target.clock_ghz * 1e-6
    assert found.time.value == pytest.approx(plain * scales["conv"].value)
    assert found.time.low <= found.time.value <= found.time.high
    emulated = {key: r.model_copy(update={"emulated": True}) for key, r in best.items()}
    assert scales_of(emulated, target) == {}
