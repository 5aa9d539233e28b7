"""The program that takes some inputs, and what padding makes of those that none takes."""

import numpy as np
import pytest

from edgec.compiler.errors import TensorInputError
from edgec.compiler.ir.signature import Signature, TensorSpec
from edgec.compiler.runtime.programs import Programs, cut


def line(width: int) -> Signature:
    """A reader of lines: a step for each 8 columns."""
    return Signature(
        (TensorSpec("x", (1, 3, 16, width), "float32"),),
        (TensorSpec("y", (1, width // 8, 5), "float32"), TensorSpec("all", (1, 5), "float32")),
    )


PROGRAMS = Programs({"160": line(160), "320": line(320)})


def image(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def test_the_exact_fit() -> None:
    assert PROGRAMS.fitting(image(1, 3, 16, 320))[0] == 1
    number, checked = PROGRAMS.fitting({"x": image(1, 3, 16, 160)})
    assert (number, list(checked)) == (0, ["x"])


@pytest.mark.parametrize(
    "inputs",
    [image(1, 3, 16, 200), {"z": image(1, 3, 16, 160)}, {}, image(1, 3, 16, 160).astype("f8")],
    ids=["shape", "name", "nothing", "dtype"],
)
def test_no_fit_says_what_there_is(inputs: object) -> None:
    with pytest.raises(TensorInputError, match=r"there are 160 \(x \[1,3,16,160\] float32\); 320"):
        PROGRAMS.fitting(inputs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("width", "full", "steps"), [(100, 160, 13), (160, 160, 20), (161, 320, 21)]
)
def test_padding(width: int, full: int, steps: int) -> None:
    """Zeros behind the columns; outputs of as many steps as there are columns for are cut."""
    padded, shapes = PROGRAMS.padded(image(1, 3, 16, width))
    assert padded["x"].shape == (1, 3, 16, full)
    assert padded["x"].sum() == 3 * 16 * width
    assert not padded["x"][..., width:].any()
    results = {"y": np.arange(full // 8 * 5).reshape(1, -1, 5), "all": image(1, 5)}
    found = cut(results, shapes)
    np.testing.assert_array_equal(found["y"], results["y"][:, :steps])
    assert found["all"].shape == (1, 5)


@pytest.mark.parametrize("shape", [(1, 3, 16, 321), (1, 3, 15, 100), (1, 3, 100)])
def test_what_no_program_holds(shape: tuple[int, ...]) -> None:
    """Height is the same in all programs, so nothing is added to it."""
    with pytest.raises(TensorInputError, match="no program of this bundle takes x"):
        PROGRAMS.padded(image(*shape))
