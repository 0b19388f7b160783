"""Calibration: ranges from samples, once with and once without those that judge placements."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from graphopt.analysis.activations import Activations, observe
from graphopt.data.samples import Samples
from graphopt.errors import ModelError
from graphopt.model.model import Model
from graphopt.passes.quantize.placement import quantizable
from graphopt.passes.quantize.plan import Plan, smoothed_name
from graphopt.passes.quantize.prepare import prepare
from graphopt.passes.quantize.ranges import Ranges, find_ranges, observed_tensors
from graphopt.passes.quantize.units import HEAVY, Units, find_units
from graphopt.passes.quantize.weights import activation_axis
from graphopt.pipeline.contract import PassContext, Refusal
from graphopt.pipeline.nested import nested_skips

HELD_OUT = 16
"""Calibration samples, at most, that judge placements instead of setting ranges."""
LEAST_TO_SPLIT = 24
"""With fewer samples than this, all of them do both."""
_EVERY = 4


@dataclass(frozen=True)
class Work:
    """A float clone of the candidate in the form that units are found in.

    Attributes:
        model: the clone, prepared.
        units: its units.
        allowed: names of the units that the user lets this pass touch.
    """

    model: Model
    units: Units
    allowed: frozenset[str]


@dataclass(frozen=True)
class Statistics:
    """What one set of samples says.

    Attributes:
        ranges: interval of every tensor.
        activations: the statistics behind them.
    """

    ranges: Ranges
    activations: Activations

    def plan(self, *, limit_pairs: bool) -> Plan:
        """A plan with these ranges and nothing integer yet."""
        channels = self.activations.channels if limit_pairs else {}
        high = {name: part.maximum.tolist() for name, part in channels.items() if part.count}
        return Plan(frozenset(), self.ranges.intervals, limit_pairs, high)

    def means(self, smoothing: Mapping[str, Sequence[float]]) -> Mapping[str, Sequence[float]]:
        """Mean of each channel, of the tensors as they are and divided by their smoothing factors."""
        found: dict[str, Sequence[float]] = {}
        for name, part in self.activations.channels.items():
            if part.count:
                # Rounded to float32: sums in another order of samples must give the same bytes.
                mean = part.mean.astype(np.float32)
                found[name] = mean.tolist()
                if name in smoothing:
                    found[smoothed_name(name)] = (mean / np.asarray(smoothing[name], np.float32)).tolist()
        return found


@dataclass(frozen=True)
class Calibrated:
    """Statistics of all samples, of all but the held-out ones, and what they rule out.

    Attributes:
        whole: statistics of all samples: the result's ranges.
        rest: without the held-out ones: the ranges of placements on trial.
        fitting: the samples behind ``rest``.
        held_out: samples that judge placements.
        possible: names of the units that may become integer.
        reasons: node → why it stays float.
    """

    whole: Statistics
    rest: Statistics
    fitting: Samples
    held_out: Samples
    possible: frozenset[str]
    reasons: Mapping[str, str]

    def without(self, names: Collection[str], reason: str) -> Calibrated:
        """The same without these units, for this reason."""
        return replace(
            self, possible=self.possible - set(names), reasons={**self.reasons, **dict.fromkeys(sorted(names), reason)}
        )

    @property
    def elements(self) -> Mapping[str, float]:
        """Tensor name → elements in one sample."""
        return self.whole.activations.elements


def left_out(ctx: PassContext) -> frozenset[str]:
    """Names of the tensors of nodes that the user keeps from this pass; they stay the same in clones."""
    nodes = (node for node in ctx.editor.nodes() if not ctx.selection.allows(node))
    return frozenset(tensor.name for node in nodes for tensor in node.outputs)


def prepared(ctx: PassContext) -> Work:
    """A prepared clone of the candidate.

    Raises:
        Refusal: the opset cannot be raised.
    """
    blocked = left_out(ctx)
    model = ctx.model.clone()
    try:
        prepare(model, blocked)
    except ModelError as error:
        raise Refusal(f"the opset cannot be raised to 13: {error.what}", error.where) from error
    units = find_units(model)
    # A Relu or Clip goes wherever its layer goes.
    allowed = frozenset(
        unit.name
        for unit in units.all
        if not any(t.name in blocked for n in unit.nodes if n.op not in ("Relu", "Clip") for t in n.outputs)
    )
    return Work(model, units, allowed)


def calibrate(work: Work, ctx: PassContext, percentile: float, *, split: bool) -> Calibrated:
    """Observe the model on its calibration samples.

    Args:
        work: the float model.
        ctx: samples, target and progress.
        percentile: share of the values that ranges cover, per cent; 100: all.
        split: hold samples back, where there are enough.

    Raises:
        RuntimeFailure: GO-603 or GO-604, the model does not open or run.
    """
    samples = ctx.samples
    assert samples is not None
    held = list(range(min(HELD_OUT, len(samples))))
    if split and len(samples) >= LEAST_TO_SPLIT:
        held = list(range(_EVERY - 1, len(samples), _EVERY))[:HELD_OUT]
        fitting = samples.take([i for i in range(len(samples)) if i not in held])
        rest = _observed(work, ctx, fitting, percentile)
        whole = rest.merged(_observed(work, ctx, samples.take(held), percentile))
    else:
        fitting = samples
        rest = whole = _observed(work, ctx, samples, percentile)
    both = [Statistics(find_ranges(work.model, work.units, a, percentile), a) for a in (whole, rest)]
    possible, reasons = quantizable(work.units, both[1].ranges, lambda unit: unit.name in work.allowed)
    still, more = quantizable(work.units, both[0].ranges, lambda unit: unit.name in possible)
    named = work.units.named()
    told = {name: reason for name, reason in {**reasons, **more}.items() if named[name].kind in HEAVY}
    inside = nested_skips(work.model, ctx.selection, lambda node: node.op in ("Conv", "Gemm", "MatMul"))
    reasons = {**work.units.refused, **{skip.where: skip.reason for skip in inside}, **told}
    return Calibrated(both[0], both[1], fitting, samples.take(held), still, reasons)


def _observed(work: Work, ctx: PassContext, samples: Samples, percentile: float) -> Activations:
    axes: dict[str, int] = {}
    clashing: set[str] = set()
    for unit in work.units.all:
        if unit.kind in HEAVY and axes.setdefault(unit.reads[0], activation_axis(unit)) != activation_axis(unit):
            clashing.add(unit.reads[0])
    return observe(
        work.model,
        observed_tensors(work.units),
        samples,
        histograms=percentile < 100,
        channel_axes={name: axis for name, axis in axes.items() if name not in clashing},
        target=ctx.target,
        progress=ctx.progress,
    )
