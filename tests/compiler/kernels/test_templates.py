"""Traits of templates fit their workloads and each other."""

import dataclasses

import pytest

from edgec.compiler.kernels.emit.epilogue import UNARY
from edgec.compiler.kernels.templates import TEMPLATES
from edgec.compiler.numerics.activations import ACTIVATIONS, BY_OPERATOR


@pytest.mark.parametrize("operator", TEMPLATES)
def test_the_epilogue_is_a_field_of_the_workload(operator: str) -> None:
    template = TEMPLATES[operator]
    names = {field.name for field in dataclasses.fields(template.workload)}
    assert template.epilogue in {"", *names}


@pytest.mark.parametrize("operator", TEMPLATES)
def test_integers_are_requantized_in_an_epilogue(operator: str) -> None:
    template = TEMPLATES[operator]
    if template.accumulator == "int32":
        assert template.epilogue
        assert template.bias is not None
    assert template.accumulator == "int32" or not template.fixed_point


def test_a_sparse_form_or_the_reason_why_there_is_none() -> None:
    for template in TEMPLATES.values():
        assert not (template.sparse and template.why_dense)
        assert template.sparse in {"", *TEMPLATES}
    packed = {name for name, template in TEMPLATES.items() if template.weight_size is not None}
    stated = {name for name, t in TEMPLATES.items() if t.sparse or t.why_dense}
    assert packed <= stated


def test_every_activation_has_numbers_and_code() -> None:
    assert set(ACTIVATIONS) <= set(UNARY)
    assert all(name.endswith("_number") for name in set(UNARY) - set(ACTIVATIONS))
    assert len(BY_OPERATOR) == len(ACTIVATIONS)
