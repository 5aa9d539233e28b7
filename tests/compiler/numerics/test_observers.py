import numpy as np
import pytest

from edgec.compiler.numerics.observers import (
    BINS,
    OBSERVERS,
    Histogram,
    ObserverName,
    make_observer,
    mse_range,
    percentile_range,
)

RANDOM = np.random.default_rng(0)
BATCHES = [RANDOM.standard_normal(5000).astype(np.float32) * (1 + i / 4) for i in range(8)]


def seen(name: ObserverName, batches: list[np.ndarray]) -> tuple[float, float]:
    observer = make_observer(name)
    for batch in batches:
        observer.see(batch)
    return observer.range()


def test_min_max_is_that_of_all() -> None:
    every = np.concatenate(BATCHES)
    assert seen("min-max", BATCHES) == (every.min(), every.max())


def test_moving_average_is_the_recursion() -> None:
    low = high = None
    for batch in BATCHES:
        low = batch.min() if low is None else 0.9 * low + 0.1 * batch.min()
        high = batch.max() if high is None else 0.9 * high + 0.1 * batch.max()
    assert seen("moving-average", BATCHES) == pytest.approx((low, high), rel=1e-5)


def test_percentile_agrees_with_numpy_to_a_bin() -> None:
    every = np.concatenate(BATCHES)
    low, high = seen("percentile", BATCHES)
    expected = np.percentile(every, [0.005, 99.995])
    # At this far end the order statistics themselves are some 0.1 apart.
    assert np.allclose((low, high), expected, atol=(every.max() - every.min()) / BINS + 0.2)


def test_mse_is_the_best_of_a_brute_force_search() -> None:
    values = np.concatenate([np.abs(BATCHES[0]), [40.0]]).astype(np.float32)
    low, high = seen("mse", [values])

    def error(top: float) -> float:
        step = top / 255
        return float(np.square(np.clip(np.rint(values / step), 0, 255) * step - values).sum())

    tops = np.linspace(4, 40, 73)
    best = min(error(top) for top in tops)
    assert low == pytest.approx(values.min(), abs=0.05)
    assert error(high) <= best * 1.1


def test_entropy_cuts_an_outlier_and_keeps_the_body() -> None:
    values = np.concatenate([np.maximum(np.concatenate(BATCHES), 0), [1000.0]])
    low, high = seen("entropy", [values.astype(np.float32)])
    assert low == 0
    assert 4 < high < 500


def test_entropy_keeps_values_that_are_few_and_exact() -> None:
    levels = RANDOM.integers(0, 17, 10_000).astype(np.float32) / 16
    assert seen("entropy", [levels]) == pytest.approx((0, 1), abs=2 / BINS)


def test_a_histogram_that_grows_loses_no_count() -> None:
    whole = Histogram(percentile_range)
    for scale in (0.001, 1.0, -300.0, 70.0):
        whole.see(BATCHES[0] * np.float32(scale))
    assert whole.counts.sum() == 4 * BATCHES[0].size
    edges = whole.start + whole.width * np.arange(BINS + 1)
    every = np.concatenate([BATCHES[0] * np.float32(s) for s in (0.001, 1.0, -300.0, 70.0)])
    assert edges[0] <= every.min()
    assert edges[-1] >= every.max()
    # Mass on each side of a bin's edge is exact up to what lies in one bin.
    middle = BINS // 2
    assert abs(whole.counts[:middle].sum() - np.sum(every < edges[middle])) <= (
        whole.counts[middle - 1 : middle + 1].sum()
    )


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("constant", [0.0, 3.0, -2.0])
def test_constants_are_within_the_range(name: ObserverName, constant: float) -> None:
    low, high = seen(name, [np.full(100, constant, np.float32)] * 3)
    assert min(low, 0) <= constant <= max(high, 0)


def test_zeros_before_anything_else_are_counted_where_they_belong() -> None:
    observer = Histogram(mse_range)
    observer.see(np.zeros(1000, np.float32))
    observer.see(np.float32([1.0, 2.0]))
    assert observer.counts.sum() == 1002
    index = int(np.argmax(observer.counts))
    assert (
        observer.start + index * observer.width
        <= 0
        <= (observer.start + (index + 1) * observer.width)
    )
