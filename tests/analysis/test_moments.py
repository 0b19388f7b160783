"""Second moments: equal to the products they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx.reference import ReferenceEvaluator

from graphopt.analysis import moments
from graphopt.analysis.moments import Moments, Window, sample_positions


def made(seed: int, rows: int = 50, inputs: int = 4, targets: int = 3) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, inputs)) + 1
    return x.astype(np.float32), rng.standard_normal((rows, targets)).astype(np.float32)


@pytest.mark.parametrize("chunk", [1, 7, 2048])
def test_chunks_add_up_to_the_whole(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "CHUNK", chunk)
    x, t = made(0)
    sums = Moments(4, 3)
    for start in range(0, 50, 5):
        sums.add(x[start : start + 5], t[start : start + 5])
    np.testing.assert_allclose(sums.gram, x.T.astype(float) @ x, rtol=1e-5)
    np.testing.assert_allclose(sums.cross, x.T.astype(float) @ t, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(sums.covariance(), np.cov(x.T, bias=True) * 50, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(sums.mean_x(), x.mean(0), rtol=1e-5)
    assert sums.variance() == pytest.approx(50 * t.var(0).sum(), rel=1e-5)


def test_moments_of_two_sets_add_and_columns_can_be_picked() -> None:
    (x, t), (y, u) = made(1), made(2)
    one, other, both = Moments(4, 3), Moments(4, 3), Moments(4, 3)
    one.add(x, t)
    other.add(y, u)
    both.add(np.concatenate([x, y]), np.concatenate([t, u]))
    np.testing.assert_allclose((one + other).gram, both.gram, rtol=1e-5)
    assert (one + other).rows == 100
    part = both.select(np.array([0, 2]), np.array([1]))
    np.testing.assert_allclose(part.cross, both.cross[[0, 2]][:, [1]])
    assert part.rows == 100 and part.sum_t.shape == (1,)


@given(seed=st.integers(0, 10**6))
def test_the_error_follows_from_the_moments_alone(seed: int) -> None:
    x, t = made(seed)
    rng = np.random.default_rng(seed)
    weight, bias = rng.standard_normal((4, 3)), rng.standard_normal(3)
    sums = Moments(4, 3)
    sums.add(x, t)
    assert sums.error(weight, bias) == pytest.approx(float(((x @ weight + bias - t) ** 2).sum()), rel=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    low=st.integers(0, 2),
    seed=st.integers(0, 99),
)
def test_patches_times_the_weight_are_the_convolution(
    kernel: int, stride: int, dilation: int, low: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, 3, 7, 9)).astype(np.float32)
    weight = rng.standard_normal((4, 3, kernel, kernel)).astype(np.float32)
    node = helper.make_node(
        "Conv", ["x", "w"], ["y"], strides=[stride] * 2, dilations=[dilation] * 2, pads=[low, 1, low, 1]
    )
    y = np.asarray(ReferenceEvaluator(node).run(None, {"x": x, "w": weight})[0])  # type: ignore[index]
    window = Window((kernel,) * 2, (stride,) * 2, (dilation,) * 2, (low, 1), (low, 1))
    positions = sample_positions(y.shape[2:], 10, rng)
    rows = window.patches(x, positions) @ weight.reshape(4, -1).T
    wanted = y[:, :, positions[0], positions[1]].transpose(0, 2, 1).reshape(-1, 4)
    np.testing.assert_allclose(rows, wanted, rtol=1e-3, atol=1e-4)


def test_positions_are_distinct_and_all_where_few() -> None:
    rng = np.random.default_rng(0)
    rows, columns = sample_positions((5, 7), 12, rng)
    assert len({(r, c) for r, c in zip(rows.tolist(), columns.tolist(), strict=True)}) == 12
    assert len(sample_positions((2, 3), 64, rng)[0]) == 6
