"""Which channels of a group matter least."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg

from graphopt.analysis.channels import Channels, Group
from graphopt.analysis.channels.factors import Indices
from graphopt.model.model import Model

Matrix = npt.NDArray[np.float64]


def grouped_l2(model: Model, channels: Channels, group: Group) -> Matrix:
    """Squared weights of each channel, over every member of its group.

    Each member (producer rows, consumer columns, normalisation scales) is divided by its own mean first, so that a
    large weight does not drown a small one (Li et al. 2017; grouped: Fang et al. 2023).

    Returns:
        float64 [size], ≥ 0.
    """
    scores = np.zeros(group.size)
    for member in group.members:
        if not member.use.zeroed[0]:
            continue
        value = model.editor.constant(member.use.node.inputs[member.use.index])
        if value is None or value.dtype.kind != "f":
            continue
        labels = channels.labels(member, group.number)
        others = tuple(a for a in range(value.ndim) if a != member.axis)
        squares = np.square(value, dtype=np.float64).sum(axis=others)
        held = labels >= 0
        summed = np.bincount(labels[held], squares[held], minlength=group.size)
        mean = summed.mean()
        if mean > 0:
            scores += summed / mean
    return scores


def strongest(scores: npt.NDArray[Any], count: int) -> Indices:
    """The ``count`` channels of the highest score, ascending; of equal scores the earlier channel stays."""
    order = np.argsort(-scores, kind="stable")
    return np.sort(order[:count]).astype(np.int64)


class Surgeon:
    """Optimal brain surgeon on the inputs of one layer, channel by channel.

    Removing a channel with every other weight refitted changes the layer's output by ``tr(W_cᵀ (M_cc)⁻¹ W_c)``, with
    ``M`` the inverse of the input's covariance (Hassibi & Stork 1993; blocks and one-step updates as in OBC,
    Frantar & Alistarh 2022).

    Args:
        covariance: [p, p], of the layer's input columns.
        weight: [p, outputs].
        labels: int64 [p], the channel of each column; -1 for columns that are not up for removal. Every channel has
            the same number of columns.
        ridge: added to the diagonal, as a share of its mean.
    """

    def __init__(self, covariance: Matrix, weight: Matrix, labels: Indices, ridge: float) -> None:
        p = len(covariance)
        scale = float(np.trace(covariance)) / p or 1.0
        self._inverse = linalg.inv(covariance + ridge * scale * np.eye(p), check_finite=False)
        self._weight = weight.copy()
        self._columns = np.stack([np.flatnonzero(labels == c) for c in range(int(labels.max()) + 1)])
        self._total = float(np.einsum("io,io->", weight, covariance @ weight)) or 1.0

    def losses(self, alive: Indices) -> Matrix:
        """Error of removing each of ``alive`` next, as a share of the output's variance: [len(alive)]."""
        columns = self._columns[alive]
        blocks = self._inverse[columns[:, :, None], columns[:, None, :]]
        rows = self._weight[columns]
        energy = rows @ rows.transpose(0, 2, 1)  # tr(Wᵀ M⁻¹ W) = Σ M⁻¹ ∘ (W Wᵀ): no solve as wide as the outputs
        losses: Matrix = (np.linalg.inv(blocks) * energy).sum((1, 2)) / self._total
        return losses

    def remove(self, channel: int) -> None:
        """Remove a channel and refit the others."""
        gone = self._columns[channel]
        spread = self._inverse[:, gone] @ np.linalg.inv(self._inverse[np.ix_(gone, gone)])
        self._weight -= spread @ self._weight[gone]
        self._inverse -= spread @ self._inverse[gone]


def operate(surgeons: Sequence[Surgeon], size: int, keep: int) -> Indices:
    """Remove the least important channel, by the sum over all consumers, until ``keep`` remain.

    Returns:
        int64 [keep], ascending.
    """
    alive = np.arange(size, dtype=np.int64)
    while len(alive) > keep:
        losses = np.sum([surgeon.losses(alive) for surgeon in surgeons], axis=0)
        least = int(np.argmin(losses))
        for surgeon in surgeons:
            surgeon.remove(int(alive[least]))
        alive = np.delete(alive, least)
    return alive
