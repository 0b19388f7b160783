"""Choosing the channels of every group: by their weights, or by what removing them does to the consumers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from graphopt.analysis.channels import Channels, Group
from graphopt.analysis.channels.factors import Indices
from graphopt.analysis.moments import Moments
from graphopt.model.model import Model
from graphopt.passes.remove_channels.importance import Surgeon, grouped_l2, operate, strongest
from graphopt.passes.remove_channels.sites import Site
from graphopt.passes.remove_channels.streams import Walk, run_needed

WIDEST = 2304
"""Most input columns a layer may have for the surgeon: its time grows with their square, times the channels."""
MEMORY = 256 << 20
"""Bytes of Gram matrices held at once."""

Plan = Sequence[tuple[Group, int]]
"""Groups with the number of channels that each keeps."""


def by_weight(model: Model, channels: Channels, plan: Plan) -> dict[int, Indices]:
    """Keep the channels of largest grouped L2 norm."""
    return {group.number: strongest(grouped_l2(model, channels, group), keep) for group, keep in plan}


def by_error(
    model: Model, channels: Channels, plan: Plan, sites: Sequence[Site], walk: Walk
) -> tuple[dict[int, Indices], list[str]]:
    """Keep the channels whose removal the consumers could make up for least (optimal brain surgeon).

    Returns:
        Kept channels of each group, and the names of the groups that had to go by their weights.
    """
    of_node = {id(site.node): site for site in sites}
    readers: dict[int, list[Site]] = {}
    for group, _ in plan:
        found = [of_node[id(c.node)] for c in group.consumers if id(c.node) in of_node]
        fits = bool(found) and all(_columns(channels, s) <= WIDEST for s in found)
        readers[group.number] = found if fits and _even(channels, group, found) else []
    grams = _grams(model, channels, [s for found in readers.values() for s in found], walk)
    kept: dict[int, Indices] = {}
    plain: list[str] = []
    surgeons: dict[int, dict[int, Surgeon]] = {}
    for site, moments in grams:
        weight = site.matrix(model)
        for group, _ in plan:
            if site in readers[group.number]:
                labels = site.columns(_labels(channels, site, group))
                surgeon = Surgeon(moments.covariance(), weight, labels, _ridge(moments))
                surgeons.setdefault(group.number, {})[id(site)] = surgeon
        for group, keep in plan:
            ready = surgeons.get(group.number, {})
            if ready and len(ready) == len(readers[group.number]):
                kept[group.number] = operate(list(surgeons.pop(group.number).values()), group.size, keep)
    for group, keep in plan:
        if group.number not in kept:
            kept[group.number] = strongest(grouped_l2(model, channels, group), keep)
            plain.append(group.name)
    return kept, plain


def _labels(channels: Channels, site: Site, group: Group) -> Indices:
    return channels.facts.atoms.labels(site.use.axes[site.input_axis()], group.number)


def _columns(channels: Channels, site: Site) -> int:
    axis = site.input_axis()
    return len(site.columns(np.arange(site.use.value.shape[axis])))


def _even(channels: Channels, group: Group, sites: Sequence[Site]) -> bool:
    """Whether every channel has equally many columns in each layer; the surgeon takes out blocks of one size."""
    for site in sites:
        labels = _labels(channels, site, group)
        if len(set(np.bincount(labels[labels >= 0], minlength=group.size).tolist())) != 1:
            return False
    return True


def _ridge(moments: Moments) -> float:
    """Ridge of the surgeon: more where rows are few for the columns."""
    rows_per_column = moments.rows / max(len(moments.sum_x), 1)
    return 1e-3 if rows_per_column >= 3 else 1e-2


def _grams(model: Model, channels: Channels, sites: Sequence[Site], walk: Walk) -> Iterator[tuple[Site, Moments]]:
    """Moments of what each layer sees in the unchanged model, as many layers in one walk as memory allows."""
    todo = list(dict.fromkeys(sites))
    while todo:
        batch, size = [todo.pop(0)], _columns(channels, todo[0] if todo else sites[0]) ** 2 * 8
        while todo and size + (more := _columns(channels, todo[0]) ** 2 * 8) <= MEMORY:
            batch.append(todo.pop(0))
            size += more
        yield from _walk(model, channels, batch, walk)


def _walk(model: Model, channels: Channels, batch: Sequence[Site], walk: Walk) -> Iterator[tuple[Site, Moments]]:
    session = walk.open(model, [name for site in batch for name in (site.source, site.target)])
    sums = {id(site): Moments(_columns(channels, site)) for site in batch}
    for index, feed in walk.feeds("activation statistics"):
        seen = run_needed(session, feed)
        for site in batch:
            positions = site.draw(seen[site.target].shape, walk.positions, walk.rng(index))
            sums[id(site)].add(site.inputs(seen[site.source], positions))
    for site in batch:
        yield site, sums.pop(id(site))
