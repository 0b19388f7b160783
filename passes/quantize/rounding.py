"""Rounding that makes up for itself: each weight's error is taken over by the weights that are not rounded yet.

Rows of a linear layer's weight (one an input) are rounded one after the other; the rest then moves so that the layer's
output on the calibration samples changes least (optimal brain surgeon, Hassibi, Stork 1993; for quantization GPTQ,
Frantar et al. 2022). Inputs of much power come first. Cost: one run a sample to gather the second moments of the
inputs, then per layer O(inputs³ + inputs²·outputs), about 0.1 s for 384 × 1536. Expected: 1 to 2 dB at the output of a
smoothed transformer, more where many positions hold nearly the same (padding); nothing to lose at run time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import LinAlgError, cholesky
from scipy.linalg.lapack import dtrtri

from graphopt.analysis.activations import walk_values
from graphopt.analysis.moments import Matrix, Moments
from graphopt.data.samples import Samples
from graphopt.model.model import Model
from graphopt.passes.quantize.isa import PAIR_LIMIT, largest_pair
from graphopt.passes.quantize.plan import Grid, Plan, RoundedWeight
from graphopt.passes.quantize.units import Kind, Unit, Units
from graphopt.passes.quantize.weights import (
    WEIGHT_LEVELS,
    by_inputs,
    channel_axis,
    dequantized,
    in_integers,
    kernel_input,
    node_weight,
    peak_codes,
)
from graphopt.progress import Progress
from graphopt.runtime.target import Target

DAMPING = 0.1
"""Share of the mean diagonal that is added to it: few samples say little about directions they hardly fill."""
WIDEST = 4096
"""Layers with more inputs are rounded to the nearest: their moments alone would take 128 MiB."""
MEMORY = 256 << 20
"""Bytes of moments gathered in one walk through the samples."""
_BLOCK = 64
_OUTPUTS = 1024
"""Outputs rounded at once: they know nothing of each other, and what is on the way takes 16 bytes a weight."""


def rounded_layers(
    model: Model,
    units: Units,
    plan: Plan,
    names: Collection[str],
    samples: Samples,
    *,
    target: Target,
    progress: Progress,
) -> Mapping[str, RoundedWeight]:
    """Weights of linear layers, rounded so that errors make up for each other.

    Args:
        model: the float model.
        units: its units.
        plan: ranges and smoothing of what they read.
        names: the units that may become integer; others are passed over.
        samples: calibration samples.
        target: where to run.
        progress: where to report.

    Returns:
        Unit name → codes and their scales.

    Raises:
        RuntimeFailure: GO-603 or GO-604, the model does not open or run.
    """
    layers: dict[str, list[Unit]] = {}
    for unit in units.all:
        if unit.kind is Kind.LINEAR and unit.name in names:
            layers.setdefault(unit.reads[0], []).append(unit)
    found: dict[str, RoundedWeight] = {}
    for tensor, moments in _moments(model, layers, samples, target, progress):
        factors = np.asarray(plan.smoothing.get(tensor, 1.0))
        order = Order.of(moments.gram / np.multiply.outer(factors, factors))
        if order is not None:
            found |= {unit.name: _rounded(model, unit, plan, order) for unit in layers[tensor]}
    return found


@dataclass(frozen=True)
class Order:
    """In which order a layer's inputs are rounded, and how errors spread to those that follow.

    Attributes:
        inputs: their indices, those of most power first.
        factor: [inputs, inputs], upper triangular U with UᵀU = gram⁻¹ in that order.
    """

    inputs: npt.NDArray[np.int64]
    factor: Matrix

    @staticmethod
    def of(gram: Matrix) -> Order | None:
        """``None`` where moments Σ x·xᵀ, [inputs, inputs], are of no use: no power, or not finite."""
        power = np.diag(gram)
        damping = DAMPING * float(power.mean())
        if not np.isfinite(gram).all() or damping <= 0:
            return None
        order = np.argsort(-power, kind="stable")
        damped = gram[np.ix_(order, order)] + damping * np.eye(len(gram))
        try:
            # The mirror image of a lower factor of the mirror image is an upper one; U is its inverse.
            upper = cholesky(damped[::-1, ::-1], lower=True)[::-1, ::-1]
            return Order(order, np.asarray(dtrtri(upper, lower=0)[0], np.float64))
        except LinAlgError:
            return None


def compensated_codes(
    weight: npt.NDArray[np.floating[Any]], scales: npt.NDArray[np.float32], order: Order
) -> npt.NDArray[np.int8]:
    """Codes whose errors make up for each other.

    Args:
        weight: [inputs, outputs].
        scales: [outputs].
        order: of the inputs.

    Returns:
        [inputs, outputs].
    """
    codes = np.empty(weight.shape, np.int8)
    for start in range(0, weight.shape[1], _OUTPUTS):
        part = slice(start, start + _OUTPUTS)
        codes[order.inputs, part] = _codes_in_order(weight[order.inputs, part].astype(np.float64), scales[part], order)
    return codes


def _codes_in_order(left: Matrix, scales: npt.NDArray[np.float32], order: Order) -> Matrix:
    """Codes of rows that stand in order; ``left`` is used up."""
    factor = order.factor
    codes = np.zeros_like(left)
    for start in range(0, len(left), _BLOCK):
        end = min(start + _BLOCK, len(left))
        errors = np.zeros((end - start, left.shape[1]))
        for row in range(start, end):
            codes[row] = np.rint(left[row] / scales).clip(-WEIGHT_LEVELS, WEIGHT_LEVELS)
            errors[row - start] = (left[row] - codes[row] * scales) / factor[row, row]
            left[row + 1 : end] -= np.outer(factor[row, row + 1 : end], errors[row - start])
        left[end:] -= factor[start:end, end:].T @ errors
    return codes


def _rounded(model: Model, unit: Unit, plan: Plan, order: Order) -> RoundedWeight:
    axis, grid = channel_axis(unit), Grid.covering(plan.ranges[kernel_input(unit, plan)])
    whole, nearest = in_integers(unit, node_weight(model, unit), plan, grid, None)
    codes = compensated_codes(whole if axis == 1 else whole.T, nearest.scales, order)
    made = RoundedWeight(codes if axis == 1 else codes.T, nearest.scales)
    peaks = peak_codes(unit, whole, plan, grid)
    return made if peaks is None else _pairs_kept(made, nearest, axis, peaks)


def _pairs_kept(made: RoundedWeight, nearest: RoundedWeight, axis: int, peaks: Matrix) -> RoundedWeight:
    """``made`` where its pairs stay within what the kernel can add, ``nearest`` in the other output channels."""
    reach = [largest_pair(dequantized(weight, axis), axis, peaks) for weight in (made, nearest)]
    kept = np.expand_dims(reach[0] <= np.maximum(reach[1], PAIR_LIMIT * made.scales), 1 - axis)
    return RoundedWeight(np.where(kept, made.codes, nearest.codes), made.scales)


def _moments(
    model: Model, layers: Mapping[str, Sequence[Unit]], samples: Samples, target: Target, progress: Progress
) -> Iterator[tuple[str, Moments]]:
    """Second moments of each tensor's rows, as many tensors in one walk as memory allows."""
    widths = {tensor: len(by_inputs(model, found[0])) for tensor, found in layers.items()}
    for batch in _batches({tensor: width for tensor, width in widths.items() if width <= WIDEST}):
        sums = {tensor: Moments(widths[tensor]) for tensor in batch}
        walk = walk_values(model, batch, samples, target)
        for values in progress.track(walk, label="gathering moments", total=len(samples)):
            for tensor, value in values.items():
                sums[tensor].add(value.reshape(-1, widths[tensor]))
        for tensor in batch:
            yield tensor, sums.pop(tensor)


def _batches(widths: Mapping[str, int]) -> Iterator[list[str]]:
    batch: list[str] = []
    for tensor, width in widths.items():
        if batch and sum(8 * widths[t] ** 2 for t in batch) + 8 * width**2 > MEMORY:
            yield batch
            batch = []
        batch.append(tensor)
    if batch:
        yield batch
