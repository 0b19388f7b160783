"""Whether a model with a floor under its masked scores may be kept: tried on masks of every kind.

Feeds of real text rarely mask a whole row. So the inputs that the masks are computed from are varied as well: all of
them 0, all 1, and half of each row 0, whichever of the two it is that masks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.data.samples import Feed
from graphopt.errors import RuntimeFailure
from graphopt.model.model import Model
from graphopt.passes.fuse.mask.masks import Masked, places
from graphopt.pipeline.contract import PassContext
from graphopt.pipeline.rules import Array, Limits, Scope
from graphopt.runtime.session import Session, open_session
from graphopt.validation.metrics import sqnr_db

LEAST_DB = 100.0
MOST_FEEDS = 4

_SHAPE_ONLY = frozenset(("Shape", "Size"))


def accept(ctx: PassContext, before: Model, after: Model) -> str | None:
    """Why a model with floors under its masked scores is not as good as the model before, or ``None``.

    Args:
        ctx: the pass's context; its feeds, and variations of them, are run.
        before: without floors.
        after: with them.

    Raises:
        RuntimeFailure: GO-603, a model does not open.
    """
    if ctx.feeds is None:
        return "believed only where the model can be run"
    inputs = mask_inputs(before, list(places(Scope(before, ctx.selection, Limits(0), target=ctx.target))))
    reference, candidate = (_open(model, ctx) for model in (before, after))
    for number in range(min(len(ctx.feeds), MOST_FEEDS)):
        for what, feed in variations(ctx.feeds[number], inputs):
            reason = _judged(reference, candidate, feed)
            if reason:
                return f"{reason} ({what})"
    return None


def mask_inputs(model: Model, found: Sequence[Masked]) -> list[str]:
    """Names of the inputs whose values, not only shapes, masks are computed from."""
    given = {id(tensor): tensor.name for tensor in model.graph.inputs}
    stack = [one.mask for one in found]
    seen: set[int] = set()
    names: dict[str, None] = {}
    while stack:
        tensor = stack.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        if id(tensor) in given:
            names[given[id(tensor)]] = None
        node = model.editor.producer(tensor)
        if isinstance(node, gs.Node) and node.op not in _SHAPE_ONLY:
            stack.extend(t for t in node.inputs if not t.is_empty())
    return list(names)


def variations(feed: Feed, inputs: Sequence[str]) -> Iterator[tuple[str, Feed]]:
    """The feed itself, and with whole and half masks."""
    yield "the feed as it is", feed
    for what, low, high in (("all 0", 0, 0), ("all 1", 1, 1), ("the second half 0", 1, 0), ("the second half 1", 0, 1)):
        changed: dict[str, Array] = dict(feed)
        for name in inputs:
            value = np.asarray(feed[name]) if name in feed else None
            if value is None or value.dtype.kind not in "biuf" or value.ndim == 0:
                continue
            fresh = np.full(value.shape, low, value.dtype)
            fresh[..., value.shape[-1] // 2 :] = high
            changed[name] = fresh
        if any(changed[name] is not feed[name] for name in feed):
            yield f"mask inputs {what}", changed


def _open(model: Model, ctx: PassContext) -> Session:
    target = ctx.target
    return open_session(
        model,
        provider=target.provider,
        threads=target.threads,
        optimization="none",
        custom_op_libraries=target.custom_op_libraries,
    )


def _judged(reference: Session, candidate: Session, feed: Feed) -> str:
    """What is wrong with the candidate's outputs; empty where nothing is, or the reference does not run either."""
    try:
        expected = reference.run(feed)
    except RuntimeFailure:
        return ""
    try:
        outputs = candidate.run(feed)
    except RuntimeFailure as error:
        return str(error)
    for name, value in expected.items():
        figure = _fidelity(value, outputs[name])
        if figure < LEAST_DB:
            return f"the floor leaves output {name} at {figure:.1f} dB, {LEAST_DB:g} dB are asked for"
    return ""


def _fidelity(value: Array, other: Array) -> float:
    if not isinstance(value, np.ndarray):
        return math.inf  # sequences of tensors are compared by the manager
    if value.dtype.kind == "f":
        return sqnr_db(value, other)
    return math.inf if np.array_equal(value, other) else -math.inf
