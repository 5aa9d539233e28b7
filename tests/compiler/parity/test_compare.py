import numpy as np
import pytest

from edgec.compiler.errors import ParityError
from edgec.compiler.parity.compare import Tolerance, compare, scale_of, tolerance_for

TOLERANCE = Tolerance(relative=1e-4, absolute=1e-6)


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_equal_outputs_pass() -> None:
    y = values(4, 100)
    report = compare({"y": y}, {"y": y.copy()}, TOLERANCE)
    assert report.passed
    assert report.outputs[0].sqnr_db == np.inf


def test_rounding_passes_and_its_size_is_reported() -> None:
    y = values(4, 100)
    report = compare({"y": y}, {"y": y * np.float32(1 + 1e-6)}, TOLERANCE)
    assert report.passed
    assert 0 < report.outputs[0].allowed_share < 0.1
    assert 110 < report.outputs[0].sqnr_db < 130


def test_one_wrong_value_fails_and_is_located() -> None:
    y = values(4, 100)
    wrong = y.copy()
    wrong[2, 7] += 0.01
    report = compare({"y": y}, {"y": wrong}, TOLERANCE)
    with pytest.raises(ParityError, match=r"parity failed here: y: .* at \[2, 7\]"):
        report.check("here")


def test_small_values_are_judged_by_their_own_scale() -> None:
    boxes, scores = np.full((1, 1, 100), 320, np.float32), np.full((1, 1, 100), 0.5, np.float32)
    expected = np.concatenate([boxes, scores], axis=1)
    wrong = expected.copy()
    wrong[0, 1, 3] += 0.01
    # 0.01 would be within 1e-4 of the boxes.
    assert not compare({"y": expected}, {"y": wrong}, TOLERANCE).passed


def test_slices_too_short_to_have_a_scale_share_one() -> None:
    assert scale_of(np.array([[1e-9, 1.0, -3.0]])).max() == 3.0


@pytest.mark.parametrize(
    ("actual", "problem"),
    [
        ({}, "is missing"),
        ({"y": values(4, 99)}, r"shape \[4, 99\], expected \[4, 100\]"),
        ({"y": values(4, 100).astype(np.float64)}, "dtype float64, expected float32"),
        ({"y": np.full((4, 100), np.nan, np.float32)}, "nan instead of"),
        ({"y": np.full((4, 100), np.inf, np.float32)}, "inf instead of"),
        ({"y": values(4, 100), "z": values(1)}, "z: is not an output"),
    ],
    ids=["missing", "shape", "dtype", "nan", "inf", "extra"],
)
def test_failures(actual: dict[str, np.ndarray], problem: str) -> None:
    report = compare({"y": values(4, 100)}, actual, TOLERANCE)
    with pytest.raises(ParityError, match=problem):
        report.check("here")


def test_nan_must_be_where_it_is_expected() -> None:
    expected = np.array([1, np.nan, 3], np.float32)
    assert compare({"y": expected}, {"y": expected.copy()}, TOLERANCE).passed
    for actual in ([1, 2, 3], [1, np.nan, np.nan], [1, np.nan, 4]):
        assert not compare({"y": expected}, {"y": np.array(actual, np.float32)}, TOLERANCE).passed


def test_equal_infinities_pass() -> None:
    y = np.array([np.inf, -np.inf, 1], np.float32)
    assert compare({"y": y}, {"y": y.copy()}, TOLERANCE).passed


def test_integers_must_be_equal() -> None:
    y = np.arange(10)
    wrong = y.copy()
    wrong[3] += 1
    assert compare({"y": y}, {"y": y.copy()}, TOLERANCE).passed
    assert compare({"y": y}, {"y": wrong}, TOLERANCE).problems() == "y: 1 of 10 values differ"


def test_empty_and_scalar_outputs() -> None:
    empty, scalar = np.zeros((0, 3), np.float32), np.float32(2).reshape(())
    assert compare({"a": empty, "b": scalar}, {"a": empty, "b": scalar}, TOLERANCE).passed


def test_tolerance_grows_with_depth_and_with_a_coarser_dtype() -> None:
    assert tolerance_for("float32", 100).relative == 10 * tolerance_for("float32", 1).relative
    assert tolerance_for("float16", 1).relative > 1000 * tolerance_for("float32", 1).relative


@pytest.mark.parametrize(("noise", "passes"), [(0.05, True), (0.2, False)])
def test_a_graph_that_quantizes_may_pick_other_codes(noise: float, passes: bool) -> None:
    y = values(4, 100)
    other = y + np.float32(noise) * np.random.default_rng(1).standard_normal(y.shape)
    tolerance = tolerance_for("float32", 9, quantizes=True)
    report = compare({"y": y}, {"y": other.astype(np.float32)}, tolerance)
    assert report.passed is passes
    assert (report.outputs[0].allowed_share <= 1) is passes
    strict = tolerance_for("float32", 9)
    assert not compare({"y": y}, {"y": other.astype(np.float32)}, strict).passed
