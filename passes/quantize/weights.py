"""Weights and biases in integers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from graphopt.model.model import Model
from graphopt.passes.quantize.isa import PAIR_LIMIT, largest_pair
from graphopt.passes.quantize.plan import Grid, Plan, RoundedWeight, smoothed_name
from graphopt.passes.quantize.units import Kind, Unit

WEIGHT_LEVELS = 127
"""Codes of a symmetric int8 weight are -127 … 127."""
BIAS_LIMIT = 2.0**30
"""Largest bias code: half of int32's range is left to the products it is added to (33,000 of them at their largest)."""
PEAK_MARGIN = 1.1
"""Other samples may exceed a channel's calibrated maximum by this factor before its kernel can saturate."""
SCALE_FACTORS = tuple(1.0 + 0.01 * step for step in range(26))
"""How much wider than need be a weight's scale may become if that lessens its rounding error."""
SMALLEST_PRODUCT = 1e-30
"""Least product of input and weight scale: far from float32's denormals."""


@dataclass(frozen=True, eq=False)
class IntegerWeight(RoundedWeight):
    """A weight in integers and the bias on the grid that its kernel assumes.

    Attributes:
        bias: int32 [channels]; ``None``: no bias.
        bias_scales: float32 [channels], each exactly float32(input scale · weight scale).
    """

    bias: npt.NDArray[np.int32] | None
    bias_scales: npt.NDArray[np.float32]


def quantize_weight(
    weight: npt.NDArray[np.float32],
    axis: int,
    input_scale: float,
    bias: npt.NDArray[np.float32] | None,
    *,
    peaks: npt.NDArray[np.float64] | None = None,
) -> IntegerWeight:
    """Round a weight to symmetric int8 per channel, and its bias to int32.

    A channel's scale is what its largest weight needs (absmax / 127) or what its bias needs to stay within
    ``BIAS_LIMIT`` codes, whichever is larger: a channel of zeros with a bias gets its scale from the bias. With
    ``peaks`` it is also wide enough that no kernel can saturate: only the channels that need it lose precision.

    Args:
        weight: any rank.
        axis: the axis of output channels.
        input_scale: scale of the activation that the weight is multiplied with; > 0, representable as float32.
        bias: [channels].
        peaks: largest activation code of each input channel, where the kernel adds pairs of products in int16.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(axis=others) if weight.size else np.zeros(weight.shape[axis], np.float32)
    need = largest.astype(np.float64) / WEIGHT_LEVELS
    if peaks is not None and weight.size:
        need = np.maximum(need, largest_pair(weight, axis, peaks) / PAIR_LIMIT)
    if bias is not None:
        need = np.maximum(need, np.abs(bias, dtype=np.float64) / (BIAS_LIMIT * input_scale))
    least = np.where(need > 0, np.maximum(need, SMALLEST_PRODUCT / input_scale), 1.0)
    scales = _luckiest(weight, axis, least)
    codes = _codes(weight, axis, scales).astype(np.int8)
    return _with_bias(RoundedWeight(codes, scales), input_scale, bias)


def _with_bias(weight: RoundedWeight, input_scale: float, bias: npt.NDArray[np.float32] | None) -> IntegerWeight:
    bias_scales = np.float32(input_scale) * weight.scales
    codes = None if bias is None else np.rint(bias.astype(np.float64) / bias_scales).astype(np.int32)
    return IntegerWeight(weight.codes, weight.scales, codes, bias_scales)


def _luckiest(weight: npt.NDArray[np.float32], axis: int, least: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Per channel, the scale of least squared rounding error among some that are at least as wide as need be.

    Convolutions over few values have too few weights for rounding errors to average out: a slightly wider scale may
    happen to hit the large ones.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    shape = [1] * weight.ndim
    shape[axis] = -1
    best = least.astype(np.float32)
    error = np.full(best.shape, np.inf)
    for factor in SCALE_FACTORS:
        scales = (least * factor).astype(np.float32)
        rounded = _codes(weight, axis, scales) * scales.reshape(shape)
        found = np.square(weight - rounded, dtype=np.float64).sum(axis=others)
        better = found < error
        best, error = np.where(better, scales, best), np.where(better, found, error)
    return np.asarray(best, np.float32)


def _codes(weight: npt.NDArray[np.float32], axis: int, scales: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    shape = [1] * weight.ndim
    shape[axis] = -1
    codes = np.rint(weight / scales.reshape(shape))
    return np.asarray(codes.clip(-WEIGHT_LEVELS, WEIGHT_LEVELS), np.float32)


def channel_axis(unit: Unit) -> int:
    """The axis of output channels of a convolution's or linear layer's weight."""
    return 0 if unit.kind is Kind.CONV or unit.head.attrs.get("transB", 0) else 1


def node_weight(model: Model, unit: Unit) -> npt.NDArray[np.float32]:
    """The weight of a convolution or linear layer, as its node has it."""
    weight = model.editor.constant(unit.head.inputs[1])
    assert weight is not None
    return weight


def by_inputs(model: Model, unit: Unit) -> npt.NDArray[np.float32]:
    """The weight of a linear layer, [inputs, outputs]."""
    weight = node_weight(model, unit)
    return weight if channel_axis(unit) == 1 else weight.T


def adds_pairs(unit: Unit, weight: npt.NDArray[np.float32]) -> bool:
    """Whether the unit's kernel may add pairs of products in int16; that of a depthwise convolution does not."""
    groups = unit.head.attrs.get("group", 1) if unit.kind is Kind.CONV else 0
    return not (groups == weight.shape[0] and weight.shape[1] == 1)


def activation_axis(unit: Unit) -> int:
    """The axis of input channels of what a convolution or linear layer reads."""
    return 1 if unit.kind is Kind.CONV else -1


def kernel_input(unit: Unit, plan: Plan) -> str:
    """What the plan calls the activation that the kernel multiplies with the weight."""
    tensor = unit.reads[0]
    return smoothed_name(tensor) if unit.kind is Kind.LINEAR and tensor in plan.smoothing else tensor


def kernel_multiplier(unit: Unit, plan: Plan) -> npt.NDArray[np.float32]:
    """What the node's weight is multiplied with before it is rounded: Gemm's alpha, and smoothing; broadcasts to it."""
    alpha = float(unit.head.attrs.get("alpha", 1.0)) if unit.head.op == "Gemm" else 1.0
    factors = plan.smoothing.get(unit.reads[0]) if unit.kind is Kind.LINEAR else None
    if factors is None:
        return np.array(alpha, np.float32)
    row = np.asarray(factors, np.float32) * np.float32(alpha)
    return row[:, None] if channel_axis(unit) == 1 else row[None, :]


def peak_codes(unit: Unit, weight: npt.NDArray[np.float32], plan: Plan, grid: Grid) -> npt.NDArray[np.float64] | None:
    """The largest code of each input channel, with a margin; ``None``: the plan or the kernel does not ask for it."""
    if not plan.limit_pairs or not adds_pairs(unit, weight):
        return None
    per_group = weight.shape[1] if unit.kind is Kind.CONV else weight.size // weight.shape[channel_axis(unit)]
    inputs = per_group * (unit.head.attrs.get("group", 1) if unit.kind is Kind.CONV else 1)
    high = plan.channel_high.get(kernel_input(unit, plan))
    if high is None or len(high) != inputs:
        return np.full(inputs, 255.0)
    codes = np.maximum(np.asarray(high, np.float64), 0.0) * PEAK_MARGIN / grid.scale + grid.zero
    return np.asarray(codes.clip(0, 255), np.float64)


def dequantized(weight: RoundedWeight, axis: int) -> npt.NDArray[np.float32]:
    """The values that an integer weight stands for."""
    shape = [1] * weight.codes.ndim
    shape[axis] = -1
    return np.asarray(weight.codes * weight.scales.reshape(shape), np.float32)


def mean_error(
    difference: npt.NDArray[np.float32], axis: int, mean: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32] | None:
    """What rounding a weight takes from the mean of each output channel; padding is neglected.

    Args:
        difference: weight less rounded weight.
        axis: the axis of output channels.
        mean: mean of each input channel.

    Returns:
        [channels]; ``None`` where the means do not fit the weight.

    Source: Nagel et al., Data-Free Quantization through Weight Equalization and Bias Correction (2019), with measured
    means.
    """
    channels = np.moveaxis(difference, axis, 0).astype(np.float64)
    outputs, inputs = channels.shape[:2]
    groups, rest = divmod(mean.size, inputs)
    if rest or groups == 0 or outputs % groups:
        return None
    per_input = channels.reshape(outputs, inputs, -1).sum(axis=2)
    means = np.repeat(mean.reshape(groups, inputs), outputs // groups, axis=0)
    return np.asarray((per_input * means).sum(axis=1), np.float32)


def in_integers(
    unit: Unit,
    weight: npt.NDArray[np.float32],
    plan: Plan,
    grid: Grid,
    bias: npt.NDArray[np.float32] | None,
) -> tuple[npt.NDArray[np.float32], IntegerWeight]:
    """What a layer's kernel multiplies with: as floats, and in integers.

    Args:
        unit: the layer.
        weight: as its node has it.
        plan: decides multiplier, peaks and codes.
        grid: of what the kernel reads.
        bias: [channels], in the kernel's unit.
    """
    whole = weight * kernel_multiplier(unit, plan)
    given, axis = plan.weights.get(unit.name), channel_axis(unit)
    if given is not None:
        given = _for_bias(given, axis, grid.scale, bias)
        if _bias_fits(given, grid.scale, bias):
            return whole, _with_bias(given, grid.scale, bias)
    peaks = peak_codes(unit, whole, plan, grid)
    return whole, quantize_weight(whole, axis, grid.scale, bias, peaks=peaks)


def _for_bias(
    weight: RoundedWeight, axis: int, input_scale: float, bias: npt.NDArray[np.float32] | None
) -> RoundedWeight:
    """The same weight; channels of zeros get the scale that their bias wants, since any will do for them."""
    others = tuple(i for i in range(weight.codes.ndim) if i != axis)
    dead = ~weight.codes.any(axis=others)
    if bias is None or not dead.any():
        return weight
    need = np.maximum(np.abs(bias, dtype=np.float64) / BIAS_LIMIT, SMALLEST_PRODUCT) / input_scale
    return RoundedWeight(weight.codes, np.where(dead & (bias != 0), need, weight.scales).astype(np.float32))


def _bias_fits(weight: RoundedWeight, input_scale: float, bias: npt.NDArray[np.float32] | None) -> bool:
    """Whether a bias fits the scales that a weight was rounded on."""
    products = input_scale * weight.scales.astype(np.float64)
    return bool(products.min() >= SMALLEST_PRODUCT) and (
        bias is None or bool(np.all(np.abs(bias) <= BIAS_LIMIT * products))
    )


def with_bias(weight: IntegerWeight, bias: npt.NDArray[np.float32]) -> IntegerWeight:
    """The same weight with another bias, on the same scales."""
    codes = np.rint(bias.astype(np.float64) / weight.bias_scales).clip(-(2**31) + 1, 2**31 - 1).astype(np.int32)
    return replace(weight, bias=codes)
