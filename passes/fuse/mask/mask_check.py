"""Whether a model with softer attention masks may be kept: measured on masks of every kind.

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
from graphopt.passes.fuse.mask.mask_fill import Masked, places
from graphopt.passes.fuse.mask.masks import FILL
from graphopt.pipeline.contract import PassContext
from graphopt.pipeline.rules import Array, Limits, Scope
from graphopt.runtime.session import Session, open_session
from graphopt.validation.metrics import sqnr_db

LEAST_DB = 100.0
LEAST_MARGIN = 20.0
"""A masked position must have less than exp(-20) = 2e-9 of the weight of the row's largest unmasked one. MiniLM: 27."""
MOST_FEEDS = 4

_SHAPE_ONLY = frozenset(("Shape", "Size"))


def accept(ctx: PassContext, before: Model, after: Model) -> str | None:
    """Why a model with softer masks is not as good as the model before, or ``None``.

    Args:
        ctx: the pass's context; its feeds, and variations of them, are run.
        before: without softer masks.
        after: with them.

    Raises:
        RuntimeFailure: GO-603, a model does not open.
    """
    if ctx.feeds is None:
        return "softer masks are believed only where the model can be run"
    if ctx.feeds.synthetic:
        # How far scores reach is a matter of real inputs; on others too little would be seen of it.
        return "softer masks are judged on real samples only"
    scope = Scope(before, ctx.selection, Limits(0), target=ctx.target)
    found = list(places(scope))
    reference, candidate = (_open(model, ctx) for model in (before, after))
    watched = _open(before, ctx, sorted({t.name for one in found for t in (one.scores, one.joint.outputs[0])}))
    inputs = mask_inputs(before, found)
    for number in range(min(len(ctx.feeds), MOST_FEEDS)):
        for what, feed in variations(ctx.feeds[number], inputs):
            reason = _judged(reference, candidate, feed) or _close(watched, found, feed)
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


def _open(model: Model, ctx: PassContext, extra: Sequence[str] = ()) -> Session:
    target = ctx.target
    return open_session(
        model,
        provider=target.provider,
        threads=target.threads,
        optimization="none",
        custom_op_libraries=target.custom_op_libraries,
        extra_outputs=extra,
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
            return f"softer masks leave output {name} at {figure:.1f} dB, {LEAST_DB:g} dB are asked for"
    return ""


def _fidelity(value: Array, other: Array) -> float:
    if not isinstance(value, np.ndarray):
        return math.inf  # sequences of tensors are compared by the manager
    if value.dtype.kind == "f":
        return sqnr_db(value, other)
    return math.inf if np.array_equal(value, other) else -math.inf


def _close(watched: Session, found: Sequence[Masked], feed: Feed) -> str:
    """Which scores let a masked position come close to the others; empty where none do."""
    try:
        values = watched.run(feed)
    except RuntimeFailure:
        return ""
    for one in found:
        scores = values[one.scores.name]
        gap = worst_gap(scores, values[one.joint.outputs[0].name], added=one.added)
        if FILL + gap > -LEAST_MARGIN:
            return f"masked scores exceed the others by {gap:.1f}, at {one.softmax.name}"
    return ""


def worst_gap(scores: Array, masked: Array, *, added: bool) -> float:
    """By how much the largest masked score of a row exceeds its largest unmasked one; -inf where nothing is masked.

    Args:
        scores: float ``[..., positions]``.
        masked: the same with the mask, of the shape of the two broadcast together.
        added: the mask was added; else it stands in the place of the scores, which then count as 0.
    """
    whole = np.broadcast_to(scores, masked.shape).astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        out = (masked - whole < FILL) if added else (masked != whole)
    rows = out.any(axis=-1) & ~out.all(axis=-1)
    if not rows.any():
        return -math.inf
    largest = np.where(out, -np.inf, masked).max(axis=-1)[rows]
    hidden = np.where(out, whole if added else 0.0, -np.inf).max(axis=-1)[rows]
    return float((hidden - largest).max())
