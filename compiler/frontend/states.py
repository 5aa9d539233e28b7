"""Find the states of a model: inputs whose next values are outputs."""

import re
from collections.abc import Sequence

from edgec.compiler.errors import ShapeError, did_you_mean
from edgec.compiler.ir.signature import Signature, State, TensorSpec

# By the name of an input, that of its output: what exporters of transformers (Optimum, ONNX Runtime
# GenAI) and Silero VAD (versions 4 and 5) call them.
_EXPORTED = (
    (re.compile(r"past_key_values\.(.+)"), r"present.\1"),
    (re.compile(r"past_length"), "present_length"),
    (re.compile(r"state"), "stateN"),
    (re.compile(r"([hc])"), r"\1n"),
)


def find_states(signature: Signature, asked: Sequence[State] | None) -> tuple[State, ...]:
    """Return the states of a model.

    Args:
        signature: its inputs and outputs.
        asked: the states that the user named; None looks for names that exporters give them, where
            shape and dtype of input and output agree.

    Raises:
        ShapeError: a state names no input or output, or theirs do not agree.
    """
    inputs = {spec.name: spec for spec in signature.inputs}
    outputs = {spec.name: spec for spec in signature.outputs}
    if asked is None:
        named = (_exported(name) for name in inputs)
        return tuple(
            state
            for state in named
            if state is not None
            and state.output in outputs
            and _agree(inputs[state.input], outputs[state.output])
        )
    for state in asked:
        for kind, name, known in (
            ("input", state.input, inputs),
            ("output", state.output, outputs),
        ):
            if name not in known:
                raise ShapeError(
                    f"--state {state}: {name!r} is no {kind} of the model"
                    f"{did_you_mean(name, known)} ({kind}s: {', '.join(known)})"
                )
        before, after = inputs[state.input], outputs[state.output]
        if not _agree(before, after):
            raise ShapeError(
                f"--state {state}: {before} and {after} are of different shape or dtype; the next "
                "value of a state is like the one before (caches of a decoder that grow by Concat: "
                "--context N)"
            )
    return tuple(asked)


def _agree(before: TensorSpec, after: TensorSpec) -> bool:
    return None not in before.shape and (before.shape, before.dtype) == (after.shape, after.dtype)


def _exported(name: str) -> State | None:
    for pattern, output in _EXPORTED:
        match = pattern.fullmatch(name)
        if match:
            return State(name, match.expand(output))
    return None
