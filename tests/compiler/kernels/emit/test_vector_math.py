"""The error bounds that compiler/kernels/emit/vector_math.py states, measured against float64."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.kernel_runs import X86_TARGETS, LoadedKernels

from edgec.compiler.kernels.emit.emitter import Emitter
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.emit.vector_math import FUNCTIONS, exp2_below_zero
from edgec.targets import load_target

TINY = float(np.finfo(np.float32).tiny)
BLOCK = 1 << 16

# Largest relative error in units of 2**-23.
BOUNDS = {"exp": 2, "sigmoid": 4, "tanh": 4, "erf": 3}
# The functions that kernels use as well; of the others only a sample is tried.
EVERYWHERE = tuple(BOUNDS)
EXACT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "exp": np.exp,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "erf": np.vectorize(math.erf, otypes=[np.float64]),
}
LIMITS = {"exp": (0, math.inf), "sigmoid": (0, 1), "tanh": (-1, 1), "erf": (-1, 1)}


def points() -> np.ndarray:
    """Every 4096th float32, which has all exponents, and dense ranges where functions bend."""
    every = np.arange(0, 1 << 32, 4096, dtype=np.uint64).astype(np.uint32).view(np.float32)
    dense = [np.linspace(-reach, reach, 150_000) for reach in (0.6, 1.1, 5, 20, 100)]
    around = [center * (1 + np.linspace(-1e-4, 1e-4, 10_001)) for center in (0.55, 1, 4, 87.33)]
    steps = np.concatenate([*dense, *around, *(-x for x in around)]).astype(np.float32)
    return np.concatenate([every[np.isfinite(every)], steps])


POINTS = points()


@pytest.fixture(scope="module", params=X86_TARGETS)
def evaluate(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, np.ndarray], np.ndarray]:
    """Computes a function by name, in vectors or value by value (`exp_1`)."""
    target = load_target(request.param)
    kernels = {}
    for name, function in ((name, FUNCTIONS[name]) for name in EVERYWHERE):
        for lanes in (target.float_lanes, 1):
            e = Emitter(target)
            x, y = e.buffer("x", BLOCK, "float32"), e.buffer("y", BLOCK, "float32")
            with e.tasks() as task:
                e.store(y, task * lanes, function(e.load(x, task * lanes, lanes)))
            key = f"{name}_1" if lanes == 1 else name
            kernels[key] = Kernel(e.function(key), BLOCK // lanes)
    run = LoadedKernels(kernels, request.param, tmp_path_factory.mktemp("math"))

    def compute(name: str, x: np.ndarray) -> np.ndarray:
        padded = np.pad(x, (0, -x.size % BLOCK)).reshape(-1, BLOCK)
        return np.concatenate([run(name, part, size=BLOCK) for part in padded])[: x.size]

    return compute


def relative_error(name: str, x: np.ndarray, actual: np.ndarray) -> float:
    """Largest, in units of 2**-23, where the result is a normal float32."""
    with np.errstate(over="ignore"):
        expected = EXACT[name](x.astype(np.float64))
    normal = (np.abs(expected) >= TINY) & (np.abs(expected) <= np.finfo(np.float32).max)
    normal &= x >= -87.33 if name == "exp" else True
    wide = actual[normal].astype(np.float64)
    return float((np.abs(wide - expected[normal]) / np.abs(expected[normal])).max() * 2**23)


@pytest.mark.parametrize("name", EVERYWHERE)
def test_error_is_within_its_bound(
    name: str, evaluate: Callable[[str, np.ndarray], np.ndarray]
) -> None:
    actual = evaluate(name, POINTS)
    assert relative_error(name, POINTS, actual) <= BOUNDS[name]
    # The bound is no empty promise: three units more somewhere exceed it.
    worse = actual * np.float32(1 + (BOUNDS[name] + 1) * 2**-23)
    assert relative_error(name, POINTS, worse) > BOUNDS[name]


@pytest.mark.parametrize("name", EVERYWHERE)
def test_scalars_are_as_good(name: str, evaluate: Callable[[str, np.ndarray], np.ndarray]) -> None:
    some = POINTS[::7]
    assert relative_error(name, some, evaluate(f"{name}_1", some)) <= BOUNDS[name]


@pytest.mark.parametrize("name", EVERYWHERE)
@pytest.mark.parametrize("lanes", ["", "_1"], ids=["vector", "scalar"])
def test_special_values(
    name: str, lanes: str, evaluate: Callable[[str, np.ndarray], np.ndarray]
) -> None:
    x = np.array([np.nan, -np.inf, np.inf, -3e38, 3e38, 0, -0.0], np.float32)
    result = evaluate(name + lanes, x)
    low, high = LIMITS[name]
    middle = EXACT[name](np.zeros(1))[0]
    assert np.isnan(result[0])
    np.testing.assert_array_equal(result[1:], [low, high, low, high, middle, middle])


@pytest.mark.parametrize("name", EVERYWHERE)
def test_denormal_inputs_and_results(
    name: str, evaluate: Callable[[str, np.ndarray], np.ndarray]
) -> None:
    """A result that is no normal float32 is off by less than the smallest that is."""
    x = np.concatenate([np.linspace(-1.2e-38, 1.2e-38, 1001), np.linspace(-105, -87, 1001)])
    x = x.astype(np.float32)
    exact = EXACT[name](x.astype(np.float64))
    actual = evaluate(name, x)
    error = np.abs(actual.astype(np.float64) - exact)
    assert (error <= np.maximum(TINY * 1.2, BOUNDS[name] * 2.0**-23 * np.abs(exact))).all()
    if name == "exp":
        assert (actual[x < -87.34] == 0).all()


def test_results_never_leave_their_range(
    evaluate: Callable[[str, np.ndarray], np.ndarray],
) -> None:
    for name, (low, high) in LIMITS.items():
        result = evaluate(name, POINTS)
        assert result.min() >= low
        assert result.max() <= high


# Where they are tried, the largest error relative to the result or to `scale`, and values at the
# ends: minus infinity, infinity.
SAMPLED: dict[str, tuple[float, float, float, Callable[[np.ndarray], np.ndarray]]] = {
    "acos": (-1, 1, 4, np.arccos),
    "asin": (-1, 1, 4, np.arcsin),
    "atan": (-50, 50, 4, np.arctan),
    "cos": (-1000, 1000, 4, np.cos),
    "cosh": (-88, 88, 5, np.cosh),
    "nearbyint": (-100, 100, 0, np.rint),
    "round": (-100, 100, 0, np.rint),
    "sin": (-1000, 1000, 4, np.sin),
    "sinh": (-88, 88, 5, np.sinh),
}


def test_functions_of_generic_code(tmp_path: Path) -> None:
    target = load_target("native")
    assert set(SAMPLED) | set(EVERYWHERE) == set(FUNCTIONS)
    size = 1 << 12
    kernels = {}
    for name in SAMPLED:
        e = Emitter(target)
        x, y = e.buffer("x", size, "float32"), e.buffer("y", size, "float32")
        with e.tasks() as task:
            at = task * target.float_lanes
            e.store(y, at, FUNCTIONS[name](e.load(x, at, target.float_lanes)))
        kernels[name] = Kernel(e.function(name), size // target.float_lanes)
    run = LoadedKernels(kernels, "native", tmp_path)
    for name, (low, high, bound, exact) in SAMPLED.items():
        x = np.linspace(low, high, size).astype(np.float32)
        x[:5] = [0.5, -0.5, 1, -1, 0]
        with np.errstate(invalid="ignore"):
            expected = exact(x.astype(np.float64))
        found = run(name, x, size=size).astype(np.float64)
        # Near a zero crossing sine and cosine are as exact as the angle.
        near = np.maximum(np.abs(expected), 1e-3 if name in ("sin", "cos", "acos") else 1e-30)
        error = float((np.abs(found - expected) / near).max() * 2**23)
        assert error <= bound, (name, error)
        x[:3] = [np.nan, np.inf, -np.inf]
        with np.errstate(invalid="ignore"):
            ends = exact(x[:3].astype(np.float64)).astype(np.float32)
        np.testing.assert_allclose(run(name, x, size=size)[:3], ends, 1e-6, err_msg=name)


def test_powers_of_two_below_zero(tmp_path: Path) -> None:
    e = Emitter(load_target(X86_TARGETS[-1]))
    x, y = e.buffer("x", BLOCK, "float32"), e.buffer("y", BLOCK, "float32")
    with e.tasks() as task:
        e.store(y, task * 4, exp2_below_zero(e.load(x, task * 4, 4)))
    run = LoadedKernels({"k": Kernel(e.function("k"), BLOCK // 4)}, X86_TARGETS[-1], tmp_path)
    given = np.linspace(-126, 0, BLOCK).astype(np.float32)
    expected = np.exp2(given.astype(np.float64))
    error = np.abs(run("k", given, size=BLOCK).astype(np.float64) / expected - 1).max() * 2**23
    assert 0.1 < error <= 2
    given[:4] = np.nan, -np.inf, -3e38, -126.1
    result = run("k", given, size=BLOCK)
    assert np.isnan(result[0])
    assert not result[1:4].any()
