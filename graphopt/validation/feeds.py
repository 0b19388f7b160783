"""A few feeds that the source model is known to run on: the user's samples, or else seeded synthetic inputs.

A dynamic dimension says nothing about the sizes that work. They are tried from a printed list until the
model runs.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.blackbox import doing
from graphopt.data.samples import Feed, Samples
from graphopt.data.synthetic import dynamic_dims, synthetic_samples
from graphopt.errors import GraphoptError, RuntimeFailure, SampleError
from graphopt.model.interface import Interface, TensorSpec
from graphopt.model.model import Model
from graphopt.runtime.session import Session, open_session
from graphopt.runtime.target import Target
from graphopt.validation.batches import larger_batch

if TYPE_CHECKING:
    from graphopt.model.model import Interface, TensorSpec

SIZES = (32, 64, 48, 16, 128, 224, 256, 8, 512, 640, 100, 1024, 16000, 4, 2, 1)
"""Sizes that dynamic dimensions are tried with, in this order; batch dimensions are 1."""

PICTURE_SIZE = 160
"""Tried first where height and width of a picture are dynamic: on very small pictures, steep output functions turn
rounding noise into large differences (measured on a text detector: 0.14 of the output at 32 pixels, 7e-5 at 160)."""

MOST_ELEMENTS = 2**26
"""Guesses with a larger input are not made: 256 MiB of float32."""

_TRANSPARENT = frozenset(
    (
        *("Cast", "Concat", "Expand", "Flatten", "Identity", "Reshape"),
        *("Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
    )
)
"""Operators that hand index values on unchanged."""

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class PreparedFeeds:
    """Feeds for the checks, or why there are none.

    Attributes:
        feeds: the feeds; ``None``: the source cannot be run.
        reason: why it cannot be run; empty otherwise.
        larger: two of them as one batch, where the source runs on that too.
        shapes: shapes of the synthetic inputs that worked.
        tried: sizes of dynamic dimensions that were tried, in order.
    """

    feeds: Samples | None
    reason: str = ""
    larger: Feed | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    tried: tuple[int, ...] = ()


@doing("a first run of the source")
def prepare_feeds(
    model: Model,
    samples: Samples | None,
    *,
    seed: int,
    target: Target,
    dims: Mapping[str, int] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    count: int = 2,
) -> PreparedFeeds:
    """Find feeds that the source model runs on.

    Args:
        model: the source.
        samples: the user's samples; ``None`` or empty: synthetic inputs are made.
        seed: of the synthetic inputs.
        target: its first provider runs the model, runtime optimizations off.
        dims: sizes of dynamic dimensions by name, ``INPUT.AXIS`` for those without; they win over what would be tried.
        shapes: whole shapes by input name; they win over ``dims``.
        count: how many synthetic feeds to make.

    Returns:
        The feeds; or the reason why the source does not run, which is no error: such a model can still be
        rewritten by passes that are safe without a check.
    """
    try:
        session = open_session(
            model,
            provider=target.provider,
            threads=target.threads,
            optimization="none",
            custom_op_libraries=target.custom_op_libraries,
            light=True,
        )
    except RuntimeFailure as error:
        return PreparedFeeds(None, str(error))
    if samples is not None and len(samples):
        failure = _failure(session, samples)
        found = PreparedFeeds(None, failure) if failure else PreparedFeeds(samples)
    else:
        found = _search(model, session, seed, dict(dims or {}), dict(shapes or {}), count)
    return found if found.feeds is None else replace(found, larger=_larger(model, session, found.feeds))


def _larger(model: Model, session: Session, feeds: Samples) -> Feed | None:
    feed = larger_batch(model.interface, feeds)
    return None if feed is None or _failure(session, [feed]) else feed


def _search(
    model: Model, session: Session, seed: int, dims: Mapping[str, int], shapes: Shapes, count: int
) -> PreparedFeeds:
    _require_known(model.interface, dims)
    bounds = index_bounds(model)
    sizes = implied_sizes(model) | dict(dims)
    tried: dict[int, None] = {}
    reason = ""
    for size, guess in _guesses(model.interface, sizes, shapes):
        if any(math.prod(shape) > MOST_ELEMENTS for name, shape in guess.items() if name not in shapes):
            continue
        tried[size] = None
        try:
            feeds = synthetic_samples(model.interface, seed=seed, dims=sizes, shapes=guess, bounds=bounds, count=count)
        except SampleError as error:
            if dims or shapes:
                raise
            failure = str(error)
        else:
            failure = _failure(session, feeds)
        if not failure:
            return PreparedFeeds(feeds, shapes=guess, tried=tuple(tried))
        reason = reason or failure
    return PreparedFeeds(None, "; ".join(_reasons(model.interface, reason, tried)), tried=tuple(tried))


def _reasons(interface: Interface, reason: str, tried: Collection[int]) -> Iterator[str]:
    """Why no inputs could be made up, and what to do."""
    yield reason or f"inputs of more than {MOST_ELEMENTS:,} elements are not made up"
    if any(spec.kind != "tensor" for spec in interface.inputs):
        yield "give real samples with --data MODULE:FUNCTION, which may yield lists and None"
    elif not dynamic_dims(interface):
        yield "give real samples with --data"
    else:
        if tried:
            yield f"sizes of dynamic dimensions tried: {', '.join(str(size) for size in tried)}"
        yield "give real samples with --data, or sizes with --dim NAME=SIZE or --shape INPUT=1x3x224x224"


def _require_known(interface: Interface, dims: Mapping[str, int]) -> None:
    known = dynamic_dims(interface)
    unknown = [name for name in dims if name not in known]
    if unknown:
        listed = ", ".join(known) or "none"
        raise SampleError("GO-402", f"no input has a dynamic dimension {unknown[0]!r}", hint=f"dimensions: {listed}")


def _failure(session: Session, feeds: Sequence[Feed]) -> str:
    """Why the first feed does not run; empty if it does."""
    try:
        session.run(feeds[0])
    except GraphoptError as error:
        return str(error)
    return ""


def _guesses(
    interface: Interface, dims: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[int, Shapes]]:
    """Complete shapes of all inputs, each guess once, with the size that dynamic dimensions have in it."""
    seen: list[Shapes] = []
    pictures = any(_is_picture(spec) for spec in interface.inputs)
    for size in (PICTURE_SIZE, *SIZES) if pictures else SIZES:
        for states in (False, True):
            guess = {
                spec.name: _shape(spec, size, interface.inputs, dims, states)
                for spec in interface.inputs
                if spec.shape is not None
            }
            guess |= shapes
            if guess not in seen:
                seen.append(guess)
                yield size, guess


def _is_picture(spec: TensorSpec) -> bool:
    """Rank 4 with two dynamic dimensions besides the batch."""
    shape = spec.shape or ()
    return len(shape) == 4 and sum(not isinstance(dim, int) for dim in shape[1:]) == 2


def _shape(
    spec: TensorSpec, size: int, inputs: Sequence[TensorSpec], dims: Mapping[str, int], states: bool
) -> tuple[int, ...]:
    """One input's shape: batch 1, other dynamic dimensions ``size``.

    Args:
        spec: the input.
        size: of dynamic dimensions.
        inputs: all inputs; a name that stands first in one of them is a batch dimension in all.
        dims: sizes by name; a dimension without one is called ``INPUT.AXIS``.
        states: take a single unnamed dimension in the middle for a batch dimension, as recurrent states have
            it.
    """
    batch = {s.shape[0] for s in inputs if s.shape and isinstance(s.shape[0], str)}
    shape = spec.shape or ()
    dynamic = [axis for axis, dim in enumerate(shape) if not isinstance(dim, int)]
    sizes = []
    for axis, dim in enumerate(shape):
        if isinstance(dim, int):
            sizes.append(dim)
        elif (dim or f"{spec.name}.{axis}") in dims:
            sizes.append(dims[dim or f"{spec.name}.{axis}"])
        elif axis == 0 or dim in batch or (states and dynamic == [axis] and 0 < axis < len(shape) - 1):
            sizes.append(1)
        else:
            sizes.append(size)
    return tuple(sizes)


def implied_sizes(model: Model) -> dict[str, int]:
    """Sizes of dynamic dimensions that a layer's weight fixes: the channels of a Conv, the columns of a product.

    Returns:
        Dimension name, or ``INPUT.AXIS`` for one without, → size.
    """
    found: dict[str, int] = {}
    for spec in model.interface.inputs:
        tensor = model.editor.tensor(spec.name)
        if tensor is None or not spec.shape:
            continue
        for node in model.editor.consumers(tensor):
            fixed = _contracted(model, node, tensor, len(spec.shape))
            dim = spec.shape[fixed[0]] if fixed is not None else 0
            if fixed is not None and not isinstance(dim, int):
                found.setdefault(dim or f"{spec.name}.{fixed[0]}", fixed[1])
    return found


def _contracted(model: Model, node: gs.Node, tensor: gs.Tensor, rank: int) -> tuple[int, int] | None:
    """The axis of ``tensor`` that ``node`` contracts with a weight, and its size; ``None``: it does not."""
    if len(node.inputs) < 2 or node.inputs[0] is not tensor:
        return None
    weight = model.shape_of(node.inputs[1])
    if not weight or not all(isinstance(size, int) for size in weight):
        return None
    sizes = [int(size) for size in weight if isinstance(size, int)]
    if node.op == "Conv" and rank > 1:
        return 1, sizes[1] * int(node.attrs.get("group", 1))
    if node.op == "ConvTranspose" and rank > 1:
        return 1, sizes[0]
    if node.op == "MatMul" and len(sizes) > 1:
        return rank - 1, sizes[-2]
    if node.op == "Gemm" and not node.attrs.get("transA", 0):
        return 1, sizes[1] if node.attrs.get("transB", 0) else sizes[0]
    return None


def index_bounds(model: Model) -> dict[str, tuple[int, int]]:
    """Ranges of integer inputs that serve as indices: input name → (least, largest), both inclusive.

    Follows each integer input through operators that hand values on, to the Gather or OneHot that it indexes.
    """
    bounds: dict[str, tuple[int, int]] = {}
    for tensor in model.graph.inputs:
        if tensor.dtype is None or np.dtype(tensor.dtype).kind not in "iu":
            continue
        highest = [high for node, index in _reached(model, tensor) if (high := _limit(model, node, index))]
        if highest:
            bounds[tensor.name] = (0, min(highest) - 1)
    return bounds


def _reached(model: Model, tensor: gs.Tensor) -> Iterator[tuple[gs.Node, int]]:
    """Nodes that read ``tensor``, or a copy of its values, with the input they read it on."""
    stack, seen = [tensor], {id(tensor)}
    while stack:
        current = stack.pop()
        for node in model.editor.consumers(current):
            for index, given in enumerate(node.inputs):
                if given is current:
                    yield node, index
            if node.op in _TRANSPARENT:
                fresh = [o for o in node.outputs if id(o) not in seen]
                seen.update(id(o) for o in fresh)
                stack.extend(fresh)


def _limit(model: Model, node: gs.Node, index: int) -> int | None:
    """How many different indices ``node`` takes on this input; ``None``: it does not index by it."""
    if node.op == "Gather" and index == 1:
        shape = model.shape_of(node.inputs[0])
        axis = int(node.attrs.get("axis", 0))
        size = shape[axis] if shape and -len(shape) <= axis < len(shape) else None
        return size if isinstance(size, int) else None
    if node.op == "OneHot" and index == 0:
        depth = model.editor.constant(node.inputs[1])
        return int(depth.ravel()[0]) if depth is not None and depth.size else None
    return None
