"""How many channels each group keeps, and which groups are cut at all."""

from __future__ import annotations

import math
from collections.abc import Iterable

from graphopt.analysis.channels import Channels, Group
from graphopt.analysis.channels.factors import Expr, Sum


def kept_width(size: int, ratio: float, unit: int) -> int:
    """Channels that stay: the wanted share, rounded up to a multiple of ``unit``, at most all.

    Args:
        size: channels of the group.
        ratio: share to remove, 0 … 1.
        unit: kept widths are multiples of it; 1: any width.
    """
    wanted = max(1, math.ceil(size * (1.0 - ratio) - 1e-9))
    return min(size, -(-wanted // unit) * unit)


def unit_of(channels: Channels, group: Group, round_to: int) -> int:
    """Step of the group's own count that makes the narrowest axis it is part of a multiple of ``round_to``.

    A head dimension d on an axis of h·d entries needs only round_to / gcd(round_to, h).
    """
    repeats = [channels.repeats(expr, group.number) for expr in group.axes]
    return round_to // math.gcd(round_to, min(repeats))


def exclusive(channels: Channels, groups: Iterable[Group]) -> tuple[list[Group], list[tuple[Group, Group]]]:
    """Leave out groups that multiply with another one along some axis: cutting both would cut twice.

    Returns:
        The groups that stay, and (left out, the larger one it multiplies with).
    """
    chosen: list[Group] = []
    dropped: list[tuple[Group, Group]] = []
    for group in sorted(groups, key=lambda g: -g.size):
        rival = next((c for c in chosen if any(_multiply(channels, e, group, c) for e in group.axes)), None)
        if rival is None:
            chosen.append(group)
        else:
            dropped.append((group, rival))
    return chosen, dropped


def _multiply(channels: Channels, expr: Expr, one: Group, other: Group) -> bool:
    atoms = channels.facts.atoms
    factors = atoms.resolve(expr)
    with_one = {i for i, f in enumerate(factors) if one.number in set(atoms.leaves((f,)))}
    with_other = {i for i, f in enumerate(factors) if other.number in set(atoms.leaves((f,)))}
    if with_one and with_other and with_one != with_other:
        return True
    return any(_multiply(channels, part, one, other) for f in factors if isinstance(f, Sum) for part in f.parts)
