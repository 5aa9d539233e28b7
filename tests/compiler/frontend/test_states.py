"""Which inputs are states: by the names that exporters give them, or as the user says."""

from collections.abc import Mapping

import pytest

from edgec.compiler.errors import ShapeError
from edgec.compiler.frontend.states import find_states
from edgec.compiler.ir.signature import Signature, State, TensorSpec

Shapes = Mapping[str, tuple[int | None, ...]]


def signature(inputs: Shapes, outputs: Shapes, dtype: str = "float32") -> Signature:
    return Signature(
        tuple(TensorSpec(name, shape, "float32") for name, shape in inputs.items()),
        tuple(TensorSpec(name, shape, dtype) for name, shape in outputs.items()),
    )


@pytest.mark.parametrize(
    ("given", "result"),
    [
        ("past_key_values.0.key", "present.0.key"),
        ("past_key_values.11.value", "present.11.value"),
        ("past_length", "present_length"),
        ("state", "stateN"),
        ("h", "hn"),
    ],
)
def test_names_of_exporters(given: str, result: str) -> None:
    shapes = {given: (1, 2, 8)}
    found = signature({"x": (1, 3), **shapes}, {"y": (1, 3), result: (1, 2, 8)})
    assert find_states(found, None) == (State(given, result),)
    assert find_states(found, ()) == ()


@pytest.mark.parametrize(
    "found",
    [
        # A cache that grows by concatenation, one of another dtype, and names that only look alike.
        signature({"past_key_values.0.key": (1, 2, 8)}, {"present.0.key": (1, 2, 9)}),
        signature({"past_key_values.0.key": (1, 2, 8)}, {"present.0.key": (1, 2, 8)}, "float16"),
        signature({"past_key_values.0.key": (1, 2, None)}, {"present.0.key": (1, 2, None)}),
        signature({"past_key_values.0.key": (1, 2, 8)}, {"present.1.key": (1, 2, 8)}),
        signature({"states": (2,)}, {"statesN": (2,)}),
    ],
    ids=["grows", "dtype", "unknown", "other", "name"],
)
def test_no_state(found: Signature) -> None:
    assert find_states(found, None) == ()


def test_what_is_asked_for() -> None:
    found = signature({"x": (3,), "h": (4,)}, {"y": (3,), "h2": (4,)})
    assert find_states(found, [State("h", "h2")]) == (State("h", "h2"),)
    for state, message in (
        (State("g", "h2"), "--state g=h2: 'g' is no input of the model (inputs: x, h)"),
        (State("h", "h3"), "'h3' is no output of the model; did you mean h2?"),
        (State("h", "y"), "h [4] float32 and y [3] float32 are of different shape or dtype"),
    ):
        with pytest.raises(ShapeError) as error:
            find_states(found, [state])
        assert message in str(error.value)
