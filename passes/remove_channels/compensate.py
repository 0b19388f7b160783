"""Refit the layers behind removed channels in closed form, from the input of the model to its output.

Each layer is fitted by ridge regression: what it sees in the pruned model so far, to what it gave in the original, so
that a later layer also absorbs what earlier ones could not (sequential, asymmetric reconstruction: He et al. 2017;
Zhang et al. 2016). The ridge pulls towards the *original* weights: where samples are few, a pull towards zero destroys
the model, a pull towards what was trained only leaves it uncompensated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg

from graphopt.analysis.moments import Moments
from graphopt.model.model import Model
from graphopt.passes.remove_channels.sites import Site
from graphopt.passes.remove_channels.streams import Walk, run_needed
from graphopt.passes.remove_channels.surgery import Removal, output_axis

Array = npt.NDArray[Any]
Matrix = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

Join = tuple[str, str]
"""A residual Add: its output, and its input that does not come from the layer."""
MEMORY = 128 << 20
"""Bytes of targets kept from one walk through the original model."""
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Ridges tried, as shares of the mean diagonal of the input's covariance; held-out rows choose."""


@dataclass(frozen=True)
class Refit:
    """What refitting one layer did.

    Attributes:
        where: the layer.
        before: error of the masked layer on held-out rows, as a share of the target's variance.
        after: the same after refitting; equal to ``before`` where the refit was dropped.
        ridge: the chosen ridge; ``inf``: only the bias was changed.
        kept: whether the refit was kept.
    """

    where: str
    before: float
    after: float
    ridge: float
    kept: bool


@dataclass(frozen=True)
class Fit:
    """New weights of one layer."""

    weight: Matrix
    bias: Matrix
    ridge: float


def compensate(
    original: Model, removal: Removal, sites: Sequence[Site], walk: Walk, ridges: Sequence[float]
) -> list[Refit]:
    """Refit ``sites``, in graph order, inside a masked model.

    Args:
        original: the model before masking.
        removal: the masked model and what stays in it.
        sites: the layers to refit, nodes of the masked model.
        walk: the samples.
        ridges: ridges to choose from; empty: only biases are corrected.
    """
    done: list[Refit] = []
    todo = list(sites)
    while todo:
        batch = _batch(removal.model, todo, walk)
        joins = {
            id(s): _join(removal.model, s, {id(later.node) for later in todo[k + 1 :]}) for k, s in enumerate(batch)
        }
        goals = _goals(original, batch, joins, walk)
        for site in batch:
            label = f"refit {len(done) + 1}/{len(sites)}"
            sums = _gather(removal.model, site, joins[id(site)], goals.pop(id(site)), walk, label)
            done.append(_refit(removal, site, sums, ridges))
        todo = todo[len(batch) :]
    return done


def _batch(model: Model, todo: Sequence[Site], walk: Walk) -> list[Site]:
    """The next layers whose targets fit into memory together, at least one."""
    batch, size = [todo[0]], _bytes(model, todo[0], walk)
    for site in todo[1:]:
        size += _bytes(model, site, walk)
        if size > MEMORY:
            break
        batch.append(site)
    return batch


def _bytes(model: Model, site: Site, walk: Walk) -> int:
    outputs = int(site.matrix(model).shape[1])
    return 4 * outputs * walk.positions * len(walk.samples)


def _goals(
    original: Model, batch: Sequence[Site], joins: Mapping[int, Join | None], walk: Walk
) -> dict[int, list[Array]]:
    """What each layer should give: rows for each sample, from one walk through the original."""
    names = {id(site): join[0] if (join := joins[id(site)]) else site.target for site in batch}
    session = walk.open(original, list(names.values()))
    goals: dict[int, list[Array]] = {id(site): [] for site in batch}
    for index, feed in walk.feeds("targets"):
        seen = run_needed(session, feed)
        for site in batch:
            goal = seen[names[id(site)]]
            positions = site.draw(goal.shape, walk.positions, walk.rng(index))
            goals[id(site)].append(site.targets(goal, positions))
    return goals


def _gather(
    masked: Model, site: Site, join: Join | None, goals: list[Array], walk: Walk, label: str
) -> tuple[Moments, Moments]:
    """Moments of (what the layer sees now, what it should give): over fitting and over held-out samples."""
    session = walk.open(masked, [site.source, site.target, *([] if join is None else [join[1]])])
    inputs, outputs = site.matrix(masked).shape
    sums = (Moments(inputs, outputs), Moments(inputs, outputs))
    for index, feed in walk.feeds(label):
        seen = run_needed(session, feed)
        positions = site.draw(seen[site.target].shape, walk.positions, walk.rng(index))
        goal = goals[index]
        if join is not None:
            goal = goal - site.targets(seen[join[1]], positions)
        sums[walk.held_out(index)].add(site.inputs(seen[site.source], positions), goal)
    return sums


def _refit(removal: Removal, site: Site, sums: tuple[Moments, Moments], ridges: Sequence[float]) -> Refit:
    weight = site.matrix(removal.model)
    columns, alive_out = _alive(removal, site)
    fitting, judging = (moments.select(columns, alive_out) for moments in sums)
    plain = weight[np.ix_(columns, alive_out)]
    offset = site.offset(removal.model)[alive_out]
    fit, before, after = choose(fitting, judging, plain, offset, ridges, intercept=site.bias is not None)
    variance = (judging if judging.rows else fitting).variance()
    if fit is None or variance <= 0:
        return Refit(site.name, before / max(variance, 1e-30), before / max(variance, 1e-30), 0.0, False)
    fresh = np.zeros_like(weight)
    fresh[np.ix_(columns, alive_out)] = fit.weight
    push = np.zeros(weight.shape[1])
    push[alive_out] = fit.bias - offset
    site.write(removal, fresh, push)
    return Refit(site.name, before / variance, after / variance, fit.ridge, True)


def _alive(removal: Removal, site: Site) -> tuple[Indices, Indices]:
    """(columns of the layer's matrix whose channels stay, outputs that stay)."""
    axis = site.input_axis()
    entries = removal.channels.remaining(site.use.axes[axis], removal.kept)
    held = np.isin(site.columns(np.arange(site.use.value.shape[axis])), entries)
    outputs = removal.channels.remaining(site.use.axes[output_axis(site.use)], removal.kept)
    return np.flatnonzero(held), outputs


def _join(masked: Model, site: Site, pending: set[int]) -> Join | None:
    """The residual Add behind a layer as (its output, its other input), where that other input is final by now.

    Fitting to the sum minus the pruned model's own shortcut lets the layer also make up for what the shortcut lost.
    """
    output = site.node.outputs[0]
    readers = masked.editor.consumers(output)
    if len(readers) != 1 or readers[0].op != "Add" or masked.editor.is_output(output):
        return None
    add = readers[0]
    others = [t for t in add.inputs if t is not output]
    if len(others) != 1 or masked.editor.constant(others[0]) is not None:
        return None
    shape = masked.shape_of(output)
    if shape is None or masked.shape_of(others[0]) != shape or _depends(masked, others[0], pending):
        return None
    return str(add.outputs[0].name), str(others[0].name)


def _depends(model: Model, tensor: object, nodes: set[int]) -> bool:
    stack, seen = [tensor], set()
    while stack:
        node = model.editor.producer(stack.pop())
        if node is None or id(node) in seen:
            continue
        if id(node) in nodes:
            return True
        seen.add(id(node))
        stack.extend(node.inputs)
    return False


def choose(
    fitting: Moments, judging: Moments, plain: Matrix, offset: Matrix, ridges: Sequence[float], *, intercept: bool
) -> tuple[Fit | None, float, float]:
    """The best fit by held-out error, refitted on all rows; ``None`` where nothing beats the plain weights.

    Args:
        fitting: moments to fit on.
        judging: moments to judge on; where they hold no rows, the fitting rows judge.
        plain: [inputs, outputs], the weights as they are.
        offset: [outputs], the bias as it is.
        ridges: candidates; the bias alone is always one.
        intercept: whether the layer takes a bias.

    Returns:
        (fit, held-out error of the plain weights, held-out error of the fit).
    """
    judge = judging if judging.rows else fitting
    if not fitting.rows:
        return None, 0.0, 0.0
    before = judge.error(plain, offset)
    best: float | None = None
    lowest = before * (1 - 1e-6)
    for ridge in (np.inf, *ridges):
        fit = solve(fitting, plain, offset, ridge, intercept=intercept)
        error = judge.error(fit.weight, fit.bias)
        if error < lowest:
            best, lowest = ridge, error
    if best is None:
        return None, before, before
    return solve(fitting + judging, plain, offset, best, intercept=intercept), before, lowest


def solve(moments: Moments, plain: Matrix, offset: Matrix, ridge: float, *, intercept: bool) -> Fit:
    """Ridge regression towards ``plain``, the intercept free.

    Args:
        moments: of rows (x [inputs], t [outputs]).
        plain: [inputs, outputs], what the ridge pulls to.
        offset: [outputs], the bias where there is no intercept to fit.
        ridge: share of the mean diagonal of the covariance; ``inf``: the weights stay.
        intercept: fit a bias.
    """
    weight = plain
    if np.isfinite(ridge):
        if intercept:
            gram, cross = moments.covariance(), moments.cross_covariance()
        else:
            gram, cross = moments.gram, moments.cross - np.outer(moments.sum_x, offset)
        p = len(gram)
        scale = ridge * float(np.trace(gram)) / p or 1.0
        system = gram + scale * np.eye(p)
        residual = cross - gram @ plain
        try:
            weight = plain + linalg.solve(system, residual, assume_a="pos", check_finite=False)
        except linalg.LinAlgError:
            return Fit(plain, offset, float("inf"))
    bias = moments.mean_t() - moments.mean_x() @ weight if intercept else offset
    return Fit(weight, bias, ridge)
