"""One-pass statistics: exact where they claim to be, and independent of how the values arrive."""

from __future__ import annotations

import sys

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from graphopt.analysis.histogram import MANTISSA_BITS, ChannelStatistics, TensorStatistics, merge_all

Values = npt.NDArray[np.float32]
FLOATS = hnp.arrays(np.float32, st.integers(1, 200), elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False))


def seen(*parts: Values) -> TensorStatistics:
    statistics = TensorStatistics(histogram=True)
    for part in parts:
        statistics.update(part)
    return statistics


def facts(statistics: TensorStatistics) -> tuple[object, ...]:
    quantiles = tuple(statistics.quantile(q) for q in np.linspace(0, 1, 21))
    return statistics.minimum, statistics.maximum, statistics.count, statistics.nonfinite, quantiles


@settings(max_examples=60, deadline=None)
@given(FLOATS, st.floats(0, 1))
def test_a_quantile_lies_within_one_bin_of_the_exact_one(values: Values, q: float) -> None:
    exact = float(np.sort(values)[max(1, int(np.ceil(q * values.size))) - 1])
    found = seen(values).quantile(q)
    assert abs(found - exact) <= abs(exact) * 2.0**-MANTISSA_BITS + 1e-37
    assert values.min() <= found <= values.max()


@settings(max_examples=40, deadline=None)
@given(FLOATS, st.integers(1, 5), st.randoms(use_true_random=False))
def test_neither_order_nor_cutting_nor_merging_changes_anything(values: Values, cuts: int, random: object) -> None:
    whole = seen(values)
    shuffled = values.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    parts = [seen(part) for part in np.array_split(shuffled, cuts) if part.size]
    assert facts(whole) == facts(merge_all(parts)) == facts(merge_all(parts[::-1]))


def test_memory_does_not_grow_with_the_values() -> None:
    few, many = seen(np.ones(1, np.float32)), seen(*(np.full(10_000, v, np.float32) for v in range(50)))
    assert few._counts is not None and many._counts is not None
    assert sys.getsizeof(few._counts) == sys.getsizeof(many._counts) < 150_000


def test_nan_and_infinity_are_counted_apart() -> None:
    statistics = seen(np.array([np.nan, np.inf, -np.inf, 2.0, -1.0], np.float32))
    assert (statistics.nonfinite, statistics.minimum, statistics.maximum) == (3, -1.0, 2.0)
    assert statistics.quantile(1.0) == 2.0


def test_zeros_stay_zero_and_the_middle_interval_cuts_both_tails() -> None:
    values = np.concatenate([np.zeros(98), [-50.0, 1000.0]]).astype(np.float32)
    assert seen(values).interval(100.0) == (-50.0, 1000.0)
    assert seen(values).interval(90.0) == (0.0, 0.0)


def test_the_interval_of_a_normal_distribution() -> None:
    values = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    low, high = seen(values).interval(99.0)
    exact = np.percentile(values, [0.5, 99.5])
    assert np.allclose([low, high], exact, rtol=2.0**-MANTISSA_BITS)


def test_without_a_histogram_there_are_no_quantiles_and_no_mixed_merges() -> None:
    plain = TensorStatistics()
    plain.update(np.ones(3, np.float32))
    assert plain.interval() == (1.0, 1.0)
    with pytest.raises(ValueError, match="no histogram"):
        plain.quantile(0.5)
    with pytest.raises(ValueError, match="with and without"):
        plain.merge(TensorStatistics(histogram=True))


def test_channels_have_their_own_extremes_and_means() -> None:
    values = np.random.default_rng(1).standard_normal((4, 3, 5, 5)).astype(np.float32)
    at_once, merged = ChannelStatistics(1), ChannelStatistics(1)
    at_once.update(values)
    for part in (values[:1], values[1:]):
        one = ChannelStatistics(1)
        one.update(part)
        merged.merge(one)
    for statistics in (at_once, merged):
        assert np.array_equal(statistics.maximum, values.max(axis=(0, 2, 3)))
        assert np.array_equal(statistics.minimum, values.min(axis=(0, 2, 3)))
        assert np.allclose(statistics.mean, values.mean(axis=(0, 2, 3)), atol=1e-6)
        assert np.allclose(statistics.mean_square, np.square(values).mean(axis=(0, 2, 3)), rtol=1e-5)
