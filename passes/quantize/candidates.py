"""Rule-based placements, in the order in which they are tried."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from graphopt.model.model import Model
from graphopt.passes.quantize.placement import settle, stems
from graphopt.passes.quantize.units import HEAVY, Unit, Units

SPLITS = 3
"""How many of the highest resolutions are tried in float, at most."""


def default_placement(units: Units, possible: Collection[str]) -> frozenset[str]:
    """Everything that stands between integer neighbours."""
    return settle(units, possible)


def candidates(model: Model, units: Units, possible: Collection[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """Sets of units worth measuring, each with a label.

    Args:
        model: the float model.
        units: its units.
        possible: names of the units that may become integer.
    """
    whole = default_placement(units, possible)
    yield "all", whole
    first = stems(units, lambda unit: _input_channels(model, unit))
    yield "all but the first convolution", settle(units, whole - first)
    sizes = {unit.name: _resolution(model, unit) for unit in units.all}
    for limit in sorted({s for s in sizes.values() if s > 1}, reverse=True)[:SPLITS]:
        low = {name for name in whole if sizes[name] < limit}
        yield f"all below {limit} positions a channel", settle(units, low)
    heavy = {unit.name for unit in units.all if unit.kind in HEAVY}
    yield "convolutions and linear layers", settle(units, whole & heavy)


def _input_channels(model: Model, unit: Unit) -> int:
    weight = model.editor.constant(unit.head.inputs[1])
    return 0 if weight is None else int(weight.shape[1] * unit.head.attrs.get("group", 1))


def _resolution(model: Model, unit: Unit) -> int:
    """Positions per channel of what the unit writes; 1 where the shape is not that of a picture, or open."""
    shape = model.shape_of(unit.nodes[-1].outputs[0])
    if shape is None or len(shape) != 4 or not all(isinstance(d, int) for d in shape[2:]):
        return 1
    return int(str(shape[2])) * int(str(shape[3]))
