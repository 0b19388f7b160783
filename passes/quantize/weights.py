"""Weights and biases in integers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphopt.passes.quantize.isa import PAIR_LIMIT, largest_pair
from graphopt.passes.quantize.units import Kind, Unit

WEIGHT_LEVELS = 127
"""Codes of a symmetric int8 weight are -127 … 127."""
BIAS_LIMIT = 2.0**30
"""Largest bias code: half of int32's range is left to the products it is added to (33,000 of them at their largest)."""
SMALLEST_PRODUCT = 1e-30
"""Least product of input and weight scale: far from float32's denormals."""


@dataclass(frozen=True)
class IntegerWeight:
    """A weight, per output channel symmetric, and the bias on the grid that its kernel assumes.

    Attributes:
        codes: int8, the weight's shape.
        scales: float32 [channels], > 0.
        bias: int32 [channels]; ``None``: no bias.
        bias_scales: float32 [channels], each exactly float32(input scale · weight scale).
    """

    codes: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]
    bias: npt.NDArray[np.int32] | None
    bias_scales: npt.NDArray[np.float32]


def quantize_weight(
    weight: npt.NDArray[np.float32],
    axis: int,
    input_scale: float,
    bias: npt.NDArray[np.float32] | None,
    *,
    limit_pairs: bool = False,
) -> IntegerWeight:
    """Round a weight to symmetric int8 per channel, and its bias to int32.

    A channel's scale is what its largest weight needs (absmax / 127) or what its bias needs to stay within
    ``BIAS_LIMIT`` codes, whichever is larger: a channel of zeros with a bias gets its scale from the bias. With
    ``limit_pairs`` it is also wide enough that no kernel can saturate: only the channels that need it lose precision.

    Args:
        weight: any rank.
        axis: the axis of output channels.
        input_scale: scale of the activation that the weight is multiplied with; > 0, representable as float32.
        bias: [channels].
        limit_pairs: let no two neighbouring codes of one sign add up to more than ``PAIR_LIMIT``.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(axis=others) if weight.size else np.zeros(weight.shape[axis], np.float32)
    need = largest.astype(np.float64) / WEIGHT_LEVELS
    if limit_pairs and weight.size:
        need = np.maximum(need, largest_pair(weight, axis) / PAIR_LIMIT)
    if bias is not None:
        need = np.maximum(need, np.abs(bias, dtype=np.float64) / (BIAS_LIMIT * input_scale))
    scales = np.where(need > 0, np.maximum(need, SMALLEST_PRODUCT / input_scale), 1.0).astype(np.float32)
    shape = [1] * weight.ndim
    shape[axis] = -1
    codes = np.rint(weight / scales.reshape(shape)).clip(-WEIGHT_LEVELS, WEIGHT_LEVELS).astype(np.int8)
    bias_scales = np.float32(input_scale) * scales
    bias_codes = None
    if bias is not None:
        bias_codes = np.rint(bias.astype(np.float64) / bias_scales).astype(np.int32)
    return IntegerWeight(codes, scales, bias_codes, bias_scales)


def channel_axis(unit: Unit) -> int:
    """The axis of output channels of a convolution's or linear layer's weight."""
    return 0 if unit.kind is Kind.CONV or unit.head.attrs.get("transB", 0) else 1


def adds_pairs(unit: Unit, weight: npt.NDArray[np.float32]) -> bool:
    """Whether the unit's kernel may add pairs of products in int16; that of a depthwise convolution does not."""
    groups = unit.head.attrs.get("group", 1) if unit.kind is Kind.CONV else 0
    return not (groups == weight.shape[0] and weight.shape[1] == 1)


def rounded_weight(
    unit: Unit, weight: npt.NDArray[np.float32], axis: int, *, limit_pairs: bool
) -> npt.NDArray[np.float32]:
    """What the weight becomes in integers, as floats (without what its bias would ask for)."""
    result = quantize_weight(weight, axis, 1.0, None, limit_pairs=limit_pairs and adds_pairs(unit, weight))
    shape = [1] * weight.ndim
    shape[axis] = -1
    return np.asarray(result.codes * result.scales.reshape(shape), np.float32)
