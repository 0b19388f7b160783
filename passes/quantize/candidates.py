"""Rule-based placements."""

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


def without_stems(model: Model, units: Units, whole: frozenset[str]) -> frozenset[str]:
    """``whole`` without the convolutions that read the picture itself."""
    return settle(units, whole - stems(units, lambda unit: _input_channels(model, unit)))


def split_placements(model: Model, units: Units, whole: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """``whole`` without the highest resolutions, then its convolutions and linear layers alone; each with a label.

    Args:
        model: the float model.
        units: its units.
        whole: the placement to start from.
    """
    sizes = {unit.name: _resolution(model, unit) for unit in units.all}
    coarse = {name: size.bit_length() // 2 for name, size in sizes.items()}
    for limit in sorted({c for name, c in coarse.items() if sizes[name] > 1}, reverse=True)[:SPLITS]:
        low = {name for name in whole if coarse[name] < limit}
        yield f"all below {4**limit // 2} positions a channel", settle(units, low)
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
