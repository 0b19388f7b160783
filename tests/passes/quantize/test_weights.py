"""Weights and biases in integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.quantize.isa import kernels_saturate, largest_pair
from graphopt.passes.quantize.weights import BIAS_LIMIT, dequantized, mean_error, quantize_weight, with_bias

SHAPES = [(8, 4, 3, 3), (6, 1, 3, 3), (5, 7, 1, 1), (4, 3, 5)]


def weight_of(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("axis", [0, 1])
def test_codes_are_symmetric_and_within_half_a_step(shape: tuple[int, ...], axis: int) -> None:
    weight = weight_of(shape)
    result = quantize_weight(weight, axis, 0.02, None)
    assert result.codes.min() >= -127 and result.scales.shape == (shape[axis],)
    view = [1] * weight.ndim
    view[axis] = -1
    assert (np.abs(dequantized(result, axis) - weight) <= result.scales.reshape(view) * 0.5001).all()


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-12, 1e3), st.floats(1e-12, 1e6), st.integers(0, 10))
def test_bias_scales_are_exact_products_and_codes_never_overflow(scale: float, size: float, seed: int) -> None:
    input_scale = float(np.float32(scale))
    weight = weight_of((4, 3, 3, 3), seed) * np.float32(1e-3)
    bias = (np.random.default_rng(seed).standard_normal(4) * size).astype(np.float32)
    result = quantize_weight(weight, 0, input_scale, bias)
    assert result.bias is not None
    assert np.array_equal(result.bias_scales, np.float32(input_scale) * result.scales)
    assert (np.abs(result.bias.astype(np.float64)) <= BIAS_LIMIT * 1.01).all()
    back = result.bias.astype(np.float64) * result.bias_scales
    assert (np.abs(back - bias) <= result.bias_scales * 0.51 + np.abs(bias) * 1e-6).all()


def test_a_dead_channel_keeps_its_bias() -> None:
    weight = weight_of((2, 3, 1, 1))
    weight[1] = 0
    result = quantize_weight(weight, 0, 0.01, np.array([0.5, 0.25], np.float32))
    assert result.bias is not None and (result.scales > 0).all()
    assert result.bias[1] * result.bias_scales[1] == pytest.approx(0.25, rel=1e-6)
    assert quantize_weight(weight, 0, 0.01, None).scales[1] == 1.0


@pytest.mark.parametrize("shape", SHAPES)
def test_with_peaks_no_pair_of_products_leaves_int16(shape: tuple[int, ...]) -> None:
    for seed in range(5):
        weight = weight_of(shape, seed)
        peaks = np.random.default_rng(seed).uniform(20, 255, shape[1])
        codes = quantize_weight(weight, 0, 0.02, None, peaks=peaks).codes.astype(np.float64)
        products = np.moveaxis(codes * peaks.reshape(1, -1, *[1] * (codes.ndim - 2)), 1, -1).reshape(shape[0], -1)
        if products.shape[1] % 2:
            products = np.pad(products, ((0, 0), (0, 1)))
        pairs = products.reshape(shape[0], -1, 2)
        assert np.maximum(pairs, 0).sum(-1).max() <= 32767
        assert np.minimum(pairs, 0).sum(-1).min() >= -32768


def test_low_peaks_cost_no_precision() -> None:
    weight = weight_of((8, 16, 3, 3))
    free = quantize_weight(weight, 0, 0.02, None)
    assert np.array_equal(free.codes, quantize_weight(weight, 0, 0.02, None, peaks=np.full(16, 100.0)).codes)


def test_neighbours_are_paired_along_rows_columns_channels() -> None:
    weight = np.zeros((1, 2, 1, 2), np.float32)
    weight[0, 0, 0, 0] = weight[0, 1, 0, 0] = 1.0  # two channels at one position: neighbours
    assert largest_pair(weight, 0, np.array([255.0, 255.0])) == [510.0]
    weight[0, 1, 0, 0], weight[0, 0, 0, 1] = 0.0, 1.0  # one channel at two positions: not
    assert largest_pair(weight, 0, np.array([255.0, 255.0])) == [255.0]


def test_grouped_convolutions_use_their_own_inputs() -> None:
    weight = np.ones((2, 2, 1, 1), np.float32)
    assert largest_pair(weight, 0, np.array([1.0, 2.0, 3.0, 4.0])).tolist() == [3.0, 7.0]


def test_the_mean_error_is_what_rounding_takes_from_the_mean() -> None:
    rng = np.random.default_rng(2)
    inputs = rng.uniform(0, 1, (500, 6)).astype(np.float32)
    weight = weight_of((6, 3))
    result = quantize_weight(weight, 1, 0.02, np.zeros(3, np.float32))
    rounded = dequantized(result, 1)
    lost = (inputs @ weight - inputs @ rounded).mean(axis=0)
    error = mean_error(weight - rounded, 1, inputs.mean(axis=0))
    assert error is not None and np.allclose(error, lost, atol=1e-5)
    corrected = with_bias(result, error)
    assert corrected.bias is not None
    assert np.allclose(corrected.bias * corrected.bias_scales, lost, atol=1e-4)
    assert mean_error(weight, 1, np.zeros(5)) is None


def test_the_probe_of_this_machine_answers() -> None:
    assert kernels_saturate() in (True, False)
