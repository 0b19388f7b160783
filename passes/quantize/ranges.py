"""From activation statistics to the interval that each tensor's grid covers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from graphopt.analysis.activations import Activations
from graphopt.analysis.histogram import TensorStatistics
from graphopt.model.model import Model
from graphopt.passes.quantize.plan import Interval
from graphopt.passes.quantize.units import Kind, Unit, Units

LARGEST = 1e30
"""A tensor that reaches further (e.g. an attention mask of -3.4e38) has no grid that keeps anything else apart."""


@dataclass(frozen=True)
class Ranges:
    """What each tensor's grid covers, and which tensors cannot have one.

    Attributes:
        intervals: tensor name → interval.
        problems: tensor name → why it stays float.
    """

    intervals: Mapping[str, Interval] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)


def observed_tensors(units: Units) -> tuple[str, ...]:
    """Names of the tensors whose statistics decide a grid, in graph order."""
    return tuple(dict.fromkeys(t for unit in units.all for t in (*unit.reads, *unit.writes)))


def find_ranges(model: Model, units: Units, activations: Activations, percentile: float = 100.0) -> Ranges:
    """The interval of every observed tensor.

    Args:
        model: the float model.
        units: its units.
        activations: statistics of ``observed_tensors(units)``, with histograms where ``percentile`` is below 100.
        percentile: share of the values, in per cent, that the interval holds; 100: all (min-max).
    """
    intervals: dict[str, Interval] = {}
    problems: dict[str, str] = {}
    caps = _caps(model, units)
    for name in observed_tensors(units):
        statistics = activations.tensors.get(name)
        problem = _problem(statistics)
        if problem or statistics is None:
            problems[name] = problem
            continue
        low, high = statistics.interval(percentile)
        least, most = caps.get(name, (-math.inf, math.inf))
        interval = Interval(min(max(low, least), most), max(min(high, most), least))
        if interval.low == 0 == interval.high:
            problems[name] = "nothing but zeros is left of its values where they matter"
            continue
        intervals[name] = interval
    return Ranges(intervals, problems)


def _problem(statistics: TensorStatistics | None) -> str:
    if statistics is None:
        return "it holds no float32 numbers"
    if statistics.count == 0:
        return "it was empty in every calibration sample"
    if statistics.nonfinite:
        return "it holds NaN or infinity on the calibration samples"
    if statistics.minimum == 0 == statistics.maximum:
        return "it is zero on every calibration sample"
    if max(-statistics.minimum, statistics.maximum) > LARGEST:
        return f"its values reach {max(-statistics.minimum, statistics.maximum):.3g}: no grid covers them"
    if statistics.maximum - statistics.minimum < 1e-30:
        return "its values are too small for a float32 scale"
    return ""


def _caps(model: Model, units: Units) -> dict[str, tuple[float, float]]:
    """Outside of these bounds no reader tells values apart: below -3 HardSwish gives 0, and so on."""
    caps: dict[str, tuple[float, float]] = {}
    for tensor, readers in units.readers().items():
        found = model.editor.tensor(tensor)
        if found is None or len(model.editor.consumers(found)) != len(readers):
            continue
        if all(unit.kind is Kind.SWISH for unit in readers):
            caps[tensor] = (-3.0, math.inf)
        elif all(unit.kind is Kind.GATE for unit in readers):
            caps[tensor] = _gate_cap(readers[0].head.attrs)
        else:
            offset = _gated_by_itself(model, readers)
            if offset is not None:
                caps[tensor] = (-offset, math.inf)
    return caps


def _gated_by_itself(model: Model, readers: Sequence[Unit]) -> float | None:
    """``b`` where the two readers of x make ``x · clip(x + b, 0, high)``, HardSwish in pieces; else ``None``."""
    sums = [unit for unit in readers if unit.head.op == "Add" and unit.bounds is not None and unit.bounds[0] == 0]
    products = [unit for unit in readers if unit.head.op == "Mul" and len(unit.reads) == 2]
    if len(readers) != 2 or len(sums) != 1 or len(products) != 1 or len(sums[0].reads) != 1:
        return None
    gate = model.editor.tensor(sums[0].writes[0])
    if gate is None or sums[0].writes[0] not in products[0].reads:
        return None
    if [id(node) for node in model.editor.consumers(gate)] != [id(products[0].head)]:
        return None
    constants = (model.editor.constant(tensor) for tensor in sums[0].head.inputs)
    offset = next((value for value in constants if value is not None), None)
    return float(offset.reshape(-1)[0]) if offset is not None and offset.size == 1 and offset.min() > 0 else None


def _gate_cap(attrs: Mapping[str, object]) -> tuple[float, float]:
    alpha, beta = float(str(attrs.get("alpha", 0.2))), float(str(attrs.get("beta", 0.5)))
    return min(-beta / alpha, 0.0), max((1 - beta) / alpha, 0.0)
