"""Walking samples through the part of a model that a layer needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.data.samples import Samples
from graphopt.model.model import Model
from graphopt.progress import Progress
from graphopt.runtime.session import Session, open_session
from graphopt.runtime.target import Target


@dataclass(frozen=True)
class Walk:
    """How samples are walked.

    Attributes:
        samples: what to feed.
        target: threads and custom operators; activations are always taken on the CPU provider.
        seed: for drawing positions; each sample draws the same ones in every walk.
        positions: output positions (rows) taken from each sample.
        progress: where to report.
    """

    samples: Samples
    target: Target
    seed: int
    positions: int
    progress: Progress

    def rng(self, index: int) -> np.random.Generator:
        """The generator for one sample."""
        return np.random.default_rng([self.seed, index])

    def held_out(self, index: int) -> bool:
        """Whether the sample judges a fit instead of taking part in it: every fourth one."""
        return index % 4 == 3

    def open(self, model: Model, tensors: Sequence[str]) -> Session:
        """A session that computes ``tensors`` and nothing that they do not need."""
        return open_session(
            part_of(model, tensors),
            threads=self.target.threads,
            custom_op_libraries=self.target.custom_op_libraries,
        )

    def feeds(self, label: str) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """(index, feed) of each sample."""
        for index, feed in enumerate(self.progress.track(self.samples, label=label, total=len(self.samples))):
            yield index, dict(feed)


def part_of(model: Model, tensors: Sequence[str]) -> Model:
    """A copy of the model that computes the named tensors only.

    Raises:
        KeyError: no such tensor.
    """
    part = model.clone()
    wanted = []
    for name in dict.fromkeys(tensors):
        tensor = part.editor.tensor(name)
        if tensor is None:
            raise KeyError(name)
        wanted.append(tensor)
    part.graph.outputs[:] = wanted
    part.finish()
    return part


def run_needed(session: Session, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a partial model: inputs that it does not have are left out."""
    return session.run({name: feed[name] for name in session.input_names if name in feed})
