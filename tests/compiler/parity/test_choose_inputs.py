"""Generated inputs: in the domain of the model if that can be guessed, else advice."""

from pathlib import Path

import numpy as np
import pytest
from support.onnx_graphs import make_model, node, save
from support.tampered import Tampered

from edgec.compiler import compile_model, verify_bundle
from edgec.compiler.errors import ModelFileError
from edgec.compiler.ir.signature import Tensors, TensorSpec
from edgec.compiler.parity.choose_inputs import choose_inputs, liveliest_sample, nan_advice
from edgec.compiler.support.progress import Silent

SPECS = [TensorSpec("x", (2, 3), "float32")]


def test_the_first_domain_without_nan_is_taken() -> None:
    inputs, outputs = choose_inputs(SPECS, 0, {}, lambda fed: {"y": np.log(np.abs(fed["x"]))})
    assert (inputs["x"] < 0).any()
    assert not nan_advice(SPECS, outputs)

    def logarithm(fed: Tensors) -> Tensors:
        with np.errstate(all="ignore"):
            return {"y": np.log(fed["x"])}

    inputs, outputs = choose_inputs(SPECS, 0, {}, logarithm)
    assert (inputs["x"] > 0).all()
    assert not nan_advice(SPECS, outputs)


def test_a_model_that_no_generated_input_suits() -> None:
    def refused(fed: Tensors) -> dict[str, np.ndarray]:
        raise ModelFileError("the original graph cannot be run")

    with pytest.raises(ModelFileError, match=r"cannot be run; .* --input x=FILE.npy \(x \[2,3\]"):
        choose_inputs(SPECS, 0, {}, refused)


class Heard(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, text: str) -> None:
        self.said.append(text)


def test_a_compile_of_nan_says_which_option_to_give(tmp_path: Path) -> None:
    """The square root of numbers below -3 is no number in any domain that is tried."""
    model = save(
        make_model(
            [node("Add", ["x", "low"], ["z"]), node("Sqrt", ["z"], ["y"])],
            {"x": [5, 7]},
            ["y"],
            {"low": np.float32(-30).reshape(())},
        ),
        tmp_path,
    )
    heard = Heard()
    bundle = compile_model(model, output=tmp_path / "b.edgec", progress=heard)
    assert any("NaN for 35 of 35 values of y" in said for said in heard.said)
    assert any("--input x=FILE.npy (x [5,7] float32)" in said for said in heard.said)

    def zeros(fed: Tensors) -> Tensors:
        return {"y": np.zeros((5, 7), np.float32)}

    (output,) = verify_bundle(bundle, model=model, session=Tampered(zeros)).outputs
    assert not output.passed
    inputs = {"x": np.full((5, 7), 55, np.float32)}
    assert verify_bundle(bundle, model=model, inputs=inputs).passed
    assert not verify_bundle(bundle, model=model, inputs=inputs, session=Tampered(zeros)).passed
    right = {"y": np.full((5, 7), 5, np.float32)}
    assert verify_bundle(bundle, inputs=inputs, expected=right).passed
    wrong = {"y": np.full((5, 7), 5.1, np.float32)}
    assert not verify_bundle(bundle, inputs=inputs, expected=wrong).passed


def test_the_sample_with_the_largest_outputs_is_taken() -> None:
    samples = [{"x": np.full((2, 3), size, np.float32)} for size in (1e-6, 0.5, 0.4)]

    def found(fed: Tensors) -> dict[str, np.ndarray]:
        return {"y": fed["x"], "index": np.array([7]), "none": 0 * fed["x"]}

    assert liveliest_sample(samples, found) is samples[1]
    assert liveliest_sample(samples[::-1], found) is samples[1]

    def refused(fed: Tensors) -> dict[str, np.ndarray]:
        raise AssertionError

    assert liveliest_sample(samples[:1], refused) is samples[0]
