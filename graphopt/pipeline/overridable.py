"""Initializers that are also graph inputs: what they are, and what a model gains once they are constants.

Since IR version 4 such an initializer is an input with a default value. The runtime must be ready for another value, so
it can neither fold the initializer nor fuse its layer, nor lay it out ahead of time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from graphopt.data.samples import Samples
from graphopt.errors import GraphoptError
from graphopt.model.model import Model
from graphopt.runtime.latency import PairedLatency, measure_pair
from graphopt.runtime.session import Session, open_session
from graphopt.runtime.target import Target
from graphopt.validation.feeds import prepare_feeds

GAIN_SECONDS = 10.0
"""Longest measurement of what freezing would bring: it is advice, not a verdict."""
_TIMED_FEEDS = 4


@dataclass(frozen=True)
class Listing:
    """The initializers of a model that are also inputs.

    Attributes:
        names: theirs, in the order of the inputs.
        every: every weight of the model is among them: the habit of exporters from the days of IR version 3, not an
            interface that somebody chose.
    """

    names: tuple[str, ...]
    every: bool


def listing(model: Model) -> Listing:
    """Which initializers are also inputs, and whether that is a habit.

    It is where a layer's weight (rank 2 or more) is listed, and no initializer in use is left out. Integers
    of 64 bits (shapes, axes, indices) do not count: tools that worked on the file later leave them unlisted.
    """
    names = tuple(spec.name for spec in model.interface.overridable)
    layers = any(len(spec.shape or ()) >= 2 for spec in model.interface.overridable)
    return Listing(names, layers and not any(_is_unlisted_weight(model, name) for name in _initializers(model)))


def freeze(model: Model, names: Iterable[str]) -> None:
    """Make inputs with a default value constants; a name that is none is an error of the editor."""
    wanted = set(names)
    for tensor in [t for t in model.graph.inputs if t.name in wanted]:
        model.editor.freeze_input(tensor)


def freezing_gain(
    model: Model, names: Iterable[str], feeds: Samples, target: Target, *, max_seconds: float = GAIN_SECONDS
) -> PairedLatency | None:
    """Time ``model`` against itself with ``names`` frozen, in interleaved pairs.

    Args:
        model: left as it is.
        names: inputs with a default value.
        feeds: on which the model runs; those that give a value for one of ``names`` cannot be used.
        target: its first provider and its threads are used.
        max_seconds: longest measurement.

    Returns:
        The measurement, the model as it is being the baseline; ``None`` where one of the two does not run.
    """
    frozen = model.clone()
    wanted = tuple(names)
    freeze(frozen, wanted)
    try:
        frozen.finish()
        sessions = _open(model, target), _open(frozen, target)
        return measure_pair(*sessions, feeds.first(_TIMED_FEEDS), max_seconds=min(max_seconds, GAIN_SECONDS))
    except GraphoptError:
        return None


def inspect_gain(model: Model) -> PairedLatency | None:
    """What freezing everything that can be overridden would bring, on seeded synthetic inputs, CPU, one thread.

    Returns:
        The measurement; ``None`` where there is nothing to freeze or the model does not run on synthetic inputs.
    """
    names, target = listing(model).names, Target()
    feeds = prepare_feeds(model, None, seed=0, target=target).feeds if names else None
    return None if feeds is None else freezing_gain(model, names, feeds, target)


def describe_gain(gain: PairedLatency, count: int) -> str:
    """The measurement of freezing ``count`` inputs in a few words, with the flag that does it."""
    speed = f"{gain.ratio:.2f} [{gain.low:.2f}, {gain.high:.2f}] times as fast"
    doubt = "" if gain.conclusive else ", inconclusive"
    return f"{speed} with these {count} inputs frozen (--freeze-initializers){doubt}"


def _initializers(model: Model) -> list[str]:
    return [constant.name for constant in model.graph.envelope.constants]


def _is_unlisted_weight(model: Model, name: str) -> bool:
    tensor = model.editor.tensor(name)
    if tensor is None or model.dtype_of(tensor) == np.int64:
        return False
    return bool(model.editor.consumers(tensor))


def _open(model: Model, target: Target) -> Session:
    return open_session(
        model, provider=target.provider, threads=target.threads, custom_op_libraries=target.custom_op_libraries
    )
