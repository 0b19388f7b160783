"""Measures what placements are made of: times per unit, and noise per tensor and weight."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from graphopt.analysis.noise import NoiseProbe, Rounding
from graphopt.data.samples import Array, Feed, Samples
from graphopt.model.model import Model
from graphopt.passes.quantize.cut import Costs
from graphopt.passes.quantize.emit import emit
from graphopt.passes.quantize.plan import Grid, Plan, smoothed_name
from graphopt.passes.quantize.units import HEAVY, Kind, Unit, Units
from graphopt.passes.quantize.weights import (
    channel_axis,
    dequantized,
    in_integers,
    kernel_input,
    kernel_multiplier,
    mean_error,
    node_weight,
)
from graphopt.progress import Progress
from graphopt.runtime.profile import Profile, profile
from graphopt.runtime.target import Target

_MOST_NOISE_SAMPLES = 6
_TESTED_SHARE = 0.5
"""Runs that group testing takes, per rounding; seen: 0.3 to 0.6."""
_NEGLIGIBLE = 0.02
"""Share of the target's noise below which a group is not looked into."""
_LOOK_BACK = 4


def measure_times(
    model: Model,
    units: Units,
    template: Plan,
    possible: frozenset[str],
    feed: Feed,
    *,
    elements: Mapping[str, float],
    target: Target,
) -> Costs:
    """Times of every unit, all float and all integer.

    Args:
        model: the float model.
        units: its units.
        template: ranges and the like.
        possible: names of the units that may become integer.
        feed: the sample to run.
        elements: tensor name → elements.
        target: where to run.

    Raises:
        RuntimeFailure: GO-603 or GO-604, one of the two does not open or run.
    """
    floats, swallowed = _float_times(model, units, profile(model, feed, target=target))
    whole = model.clone()
    owners = emit(whole, replace(template, integer=possible))
    times = profile(whole, feed, target=target)
    integers: dict[str, float] = dict.fromkeys(possible, 0.0)
    for tensor, node in times.nodes.items():
        if owners.get(tensor) in integers:
            integers[owners[tensor]] += node.milliseconds
    return Costs(floats, integers, elements, swallowed=swallowed)


def _float_times(model: Model, units: Units, times: Profile) -> tuple[dict[str, float], dict[str, str]]:
    """Time of each unit, and which unit's convolution took it in."""
    owner = {t.name: unit for unit in units.all for node in unit.nodes for t in node.outputs if not t.is_empty()}
    found: dict[str, float] = {unit.name: 0.0 for unit in units.all}
    for tensor, node in times.nodes.items():
        unit = owner.get(tensor)
        if unit is None:
            continue
        if node.op.split("+")[0] == "Conv" and unit.kind is not Kind.CONV:
            # A fused convolution is named after the last node that it took in.
            unit = _convolution_before(unit, units) or unit
        found[unit.name] += node.milliseconds
    producers = units.producers()
    swallowed: dict[str, str] = {}
    for unit in units.all:
        before = [producers[t] for t in unit.reads if t in producers and producers[t].kind is Kind.CONV]
        if unit.kind not in HEAVY and before and found[unit.name] == 0.0:
            swallowed[unit.name] = before[0].name
    return found, swallowed


def _convolution_before(unit: Unit, units: Units) -> Unit | None:
    producers = units.producers()
    frontier = [unit]
    for _ in range(_LOOK_BACK):
        before = [producers[t] for u in frontier for t in u.reads if t in producers]
        hit = next((u for u in before if u.kind is Kind.CONV), None)
        if hit is not None:
            return hit
        frontier = before
    return None


def measure_noise(
    model: Model,
    units: Units,
    template: Plan,
    possible: Collection[str],
    samples: Samples,
    costs: Costs,
    *,
    seconds: float,
    target_db: float,
    target: Target,
    progress: Progress,
) -> Costs:
    """``costs`` with noises.

    Args:
        model: the float model.
        units: its units.
        template: ranges and the like.
        possible: names of the units that may become integer.
        samples: calibration samples.
        costs: what is known already.
        seconds: time to spend, about.
        target_db: SQNR that matters: tensors far below it are measured together.
        target: where to run.
        progress: where to report.

    Raises:
        RuntimeFailure: GO-603 or GO-604, the probe does not open or run.
    """
    chosen = [unit for unit in units.all if unit.name in possible]
    tensors, weights = _roundings(model, units, chosen, template), _weights(model, chosen, template)
    probe = NoiseProbe(model, tensors, weights, target=target)
    probe.run_exact(samples[0])
    started = time.perf_counter()
    probe.run_exact(samples[0])
    each = (time.perf_counter() - started) * probe.roundings * _TESTED_SHARE
    count = min(_MOST_NOISE_SAMPLES, len(samples), max(1, int(seconds / each)))
    step = max(1, len(samples) // count)
    by_tensor, by_weight = probe.measure(
        samples.take(list(range(0, step * count, step))),
        negligible=_NEGLIGIBLE * 10 ** (-target_db / 10),
        deadline=started + seconds,
        progress=progress,
    )
    owner = {unit.head.outputs[0].name: unit.name for unit in chosen}
    return replace(
        costs,
        tensor_noise=_inherited(units, by_tensor),
        weight_noise={owner[output]: noise for output, noise in by_weight.items()},
    )


def _roundings(model: Model, units: Units, chosen: Collection[Unit], template: Plan) -> dict[str, Rounding]:
    """Grids of all tensors that a placement can round; what inherits its codes is rounded where they come from."""
    producers = units.producers()
    # A smoothed tensor's other readers round it as it is; nearly all of what it feeds are layers.
    divided = {unit.reads[0] for unit in chosen if kernel_input(unit, template) != unit.reads[0]}
    found: dict[str, Rounding] = {}
    for tensor in dict.fromkeys(t for unit in chosen for t in (*unit.reads, *unit.writes)):
        producer = producers.get(tensor)
        tensor_object = model.editor.tensor(tensor)
        if tensor not in template.ranges or (producer is not None and producer.kind in (Kind.MOVE, Kind.SCALE)):
            continue
        if tensor_object is None or model.editor.is_output(tensor_object):
            continue
        found[tensor] = _rounding(tensor, template, smooth=tensor in divided)
    return found


def _rounding(tensor: str, template: Plan, *, smooth: bool) -> Rounding:
    if not smooth:
        grid = Grid.covering(template.ranges[tensor])
        return Rounding(grid.scale, grid.zero)
    grid = Grid.covering(template.ranges[smoothed_name(tensor)])
    return Rounding(tuple(grid.scale * factor for factor in template.smoothing[tensor]), grid.zero)


def _weights(model: Model, chosen: Collection[Unit], template: Plan) -> dict[str, dict[int, Array]]:
    """What the constants of each layer round to, by the output of the node that holds them."""
    found: dict[str, dict[int, Array]] = {}
    for unit in chosen:
        if unit.kind not in HEAVY:
            continue
        weight, axis = node_weight(model, unit), channel_axis(unit)
        rounded = _rounded(unit, weight, template)
        values: dict[int, Array] = {1: rounded}
        mean = template.channel_mean.get(unit.reads[0])
        error = None if mean is None else mean_error(weight - rounded, axis, np.asarray(mean))
        if error is not None and unit.head.op != "MatMul":
            bias = model.editor.constant(unit.head.inputs[2]) if len(unit.head.inputs) > 2 else None
            # The node multiplies the product with alpha and what it adds with beta.
            alpha, beta = (float(unit.head.attrs.get(name, 1.0)) for name in ("alpha", "beta"))
            moved = error * np.float32(alpha / (beta or 1.0))
            values[2] = moved if bias is None else (bias.reshape(-1) + moved).astype(np.float32)
        found[unit.head.outputs[0].name] = values
    return found


def _rounded(unit: Unit, weight: Array, template: Plan) -> Array:
    """What the node's weight becomes in integers, as floats; what its bias would ask for is left out."""
    grid = Grid.covering(template.ranges[kernel_input(unit, template)])
    _, result = in_integers(unit, weight, template, grid, None)
    return np.asarray(dequantized(result, channel_axis(unit)) / kernel_multiplier(unit, template), np.float32)


def _inherited(units: Units, noise: Mapping[str, float]) -> dict[str, float]:
    """The noise of a tensor whose codes come from another one is the other's."""
    found = dict(noise)
    for unit in units.all:
        if unit.kind in (Kind.MOVE, Kind.SCALE) and unit.reads[0] in found:
            for tensor in unit.writes:
                found.setdefault(tensor, found[unit.reads[0]])
    return found
