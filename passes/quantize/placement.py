"""Which sets of units make sense: what has no grid stays float, and light units follow their neighbours."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from graphopt.passes.quantize.ranges import Ranges
from graphopt.passes.quantize.units import HEAVY, Kind, Unit, Units


def quantizable(units: Units, ranges: Ranges, allowed: Callable[[Unit], bool]) -> tuple[frozenset[str], dict[str, str]]:
    """Units that can be made integer, and why the others cannot.

    Args:
        units: all units.
        ranges: their tensors' intervals and problems.
        allowed: what the user's `only` and `skip` say.

    Returns:
        Names of the units, and unit name → reason for those that calibration rules out.
    """
    names: set[str] = set()
    reasons: dict[str, str] = {}
    for unit in units.all:
        if not allowed(unit):
            continue
        problem = next((t for t in (*unit.reads, *unit.writes) if t in ranges.problems), None)
        if problem is None:
            names.add(unit.name)
        else:
            reasons[unit.name] = f"tensor {problem!r}: {ranges.problems[problem]}"
    return frozenset(names), reasons


def settle(units: Units, wanted: Collection[str]) -> frozenset[str]:
    """Drop light units that do not stand between integer neighbours, until none is left.

    An Add, Mul, Concat, pooling or movement alone costs more in codes than in floats: it stays only where all it reads
    comes from integer units and something integer reads it.
    """
    chosen = set(wanted)
    producers, readers = units.producers(), units.readers()
    while True:
        dropped = [u.name for u in units.all if u.name in chosen and not _pays(u, chosen, producers, readers)]
        if not dropped:
            return frozenset(chosen)
        chosen.difference_update(dropped)


def _pays(unit: Unit, chosen: set[str], producers: Mapping[str, Unit], readers: Mapping[str, list[Unit]]) -> bool:
    if unit.kind in HEAVY:
        return True
    before = all(t in producers and producers[t].name in chosen for t in unit.reads)
    after = any(reader.name in chosen for t in unit.writes for reader in readers.get(t, ()))
    return before and after


def stems(units: Units, input_channels: Callable[[Unit], int]) -> frozenset[str]:
    """Convolutions with at most four input channels that read no other unit: the integer kernel may lose there."""
    producers = units.producers()
    return frozenset(
        unit.name
        for unit in units.all
        if unit.kind is Kind.CONV and input_channels(unit) <= 4 and unit.reads[0] not in producers
    )
