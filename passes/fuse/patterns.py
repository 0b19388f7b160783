"""Matching float32 arithmetic backwards from a node, whatever the order and the placement of its factors.

Exporters spell one function in many ways: a factor before or after, on the left or the right, as a product or a
quotient; a clip as Clip, as Min and Max, or as Relu and Min. What these forms share is computed here: a tensor as
``clip(scale · t + shift, low, high)`` of an earlier one (``ramps``), and as a product of tensors and one number
(``products``). Rules compare the result with the function they look for.

Numbers are compared by ``near``: a relative 1e-6, eight float32 roundings. Exporters print constants with seven
digits or more (0.1666667 for 1/6 is off by 2e-7), and a function of slope ≤ 1 moves by at most that share of its
own size, a tenth of what ROUNDING allows. 0.1667 is not 1/6.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.analysis.clipping import clip_bounds
from graphopt.model.domains import in_standard_domain
from graphopt.pipeline.rules import Scope, label

RELATIVE = 1e-6
"""Two constants are one number if they are no farther apart than this, relative to the larger."""
WIDEST = 4.0
"""Largest summands, added up, in a function that spans about 1: their rounding is 2.4e-7 of it at most."""
DEEPEST = 8
"""Scalar steps that are followed backwards; every form known has fewer."""


def near(value: float, wanted: float) -> bool:
    """Whether a constant of the file is the number ``wanted``; zero is met exactly."""
    return math.isclose(value, wanted, rel_tol=RELATIVE)


def is_float32(scope: Scope, tensor: gs.Tensor) -> bool:
    """Whether ``tensor`` is known to be float32."""
    return scope.model.dtype_of(tensor) == np.float32


def scalar(scope: Scope, node: gs.Node, index: int) -> float | None:
    """Operand ``index`` of a two-operand node where it is one finite float32 number that does not enlarge the other."""
    value = scope.constant(node, index)
    if value is None or value.size != 1 or value.dtype != np.float32 or not np.isfinite(value).all():
        return None
    if value.ndim:
        shape = scope.shape(scope.input(node, 1 - index))
        if shape is None or len(shape) < value.ndim:
            return None
    return float(value.reshape(-1)[0])


def operand_and_scalar(scope: Scope, node: gs.Node) -> tuple[gs.Tensor, float] | None:
    """The tensor and the number of a commutative node; ``None`` where it has not exactly one of each."""
    if len(node.inputs) != 2:
        return None
    for index in (1, 0):
        number = scalar(scope, node, index)
        if number is not None and scope.constant(node, 1 - index) is None:
            return node.inputs[1 - index], number
    return None


def producer(scope: Scope, tensor: gs.Tensor) -> gs.Node | None:
    """The standard-domain node that computes a float32 ``tensor``, if one does."""
    node = scope.producer(tensor)
    if node is None or not in_standard_domain(node) or not is_float32(scope, tensor):
        return None
    return node


@dataclass(frozen=True)
class Ramp:
    """``clip(scale · tensor + shift, low, high)``.

    Attributes:
        tensor: what it is a function of.
        scale: factor, not 0.
        shift: summand.
        low: lower bound, -inf for none.
        high: upper bound, inf for none.
        nodes: the nodes that compute it, the last one first.
        spread: the summands' sizes, added up as if none cancelled: what the nodes round is in proportion to it.
    """

    tensor: gs.Tensor
    scale: float = 1.0
    shift: float = 0.0
    low: float = -math.inf
    high: float = math.inf
    nodes: tuple[gs.Node, ...] = ()
    spread: float = 0.0

    @property
    def affine(self) -> bool:
        """Whether nothing is cut off."""
        return self.low == -math.inf and self.high == math.inf

    def times(self, factor: float) -> Ramp:
        """The ramp multiplied by a number other than 0."""
        low, high = sorted((self.low * factor, self.high * factor))
        scale, shift, spread = self.scale * factor, self.shift * factor, self.spread * abs(factor)
        return replace(self, scale=scale, shift=shift, low=low, high=high, spread=spread)

    def is_(self, scale: float, shift: float, low: float, high: float) -> bool:
        """Whether it is this function; bounds may be infinite."""
        return self.is_slope(scale, shift) and near(self.low, low) and near(self.high, high)

    def is_slope(self, scale: float, shift: float) -> bool:
        """Whether these are its factor and summand, and no larger summands cancelled on the way."""
        return near(self.scale, scale) and near(self.shift, shift) and self.spread <= WIDEST

    def after_affine(self, node: gs.Node, tensor: gs.Tensor, scale: float, shift: float) -> Ramp | None:
        """The ramp as a function of ``tensor`` where ``node`` computes ``scale · tensor + shift``."""
        if scale == 0 or not math.isfinite(scale * self.scale):
            return None
        added = self.scale * shift
        return replace(
            self,
            tensor=tensor,
            scale=self.scale * scale,
            shift=self.shift + added,
            nodes=(*self.nodes, node),
            spread=self.spread + abs(added),
        )

    def after_clip(self, node: gs.Node, tensor: gs.Tensor, low: float, high: float) -> Ramp | None:
        """The ramp as a function of ``tensor`` where ``node`` computes ``clip(tensor, low, high)``."""
        if not low <= high:
            return None
        ends = sorted((self.scale * low + self.shift, self.scale * high + self.shift))
        low, high = (min(max(end, self.low), self.high) for end in ends)
        return replace(self, tensor=tensor, low=low, high=high, nodes=(*self.nodes, node))


def ramps(scope: Scope, tensor: gs.Tensor) -> Iterator[Ramp]:
    """``tensor`` as a ramp of itself, then of what it is computed from, step by step backwards."""
    return islice(_ramps(scope, tensor), DEEPEST)


def _ramps(scope: Scope, tensor: gs.Tensor) -> Iterator[Ramp]:
    ramp: Ramp | None = Ramp(tensor)
    while ramp is not None:
        yield ramp
        node = producer(scope, ramp.tensor)
        ramp = None if node is None else _one_back(scope, ramp, node)


def _one_back(scope: Scope, ramp: Ramp, node: gs.Node) -> Ramp | None:
    match node.op:
        case "Add" | "Sum" | "Mul" | "Sub" | "Div" | "Neg":
            step = _affine_step(scope, node)
            return None if step is None else ramp.after_affine(node, *step)
        case "HardSigmoid":
            inner = ramp.after_clip(node, node.inputs[0], 0.0, 1.0)
            alpha, beta = float(node.attrs.get("alpha", 0.2)), float(node.attrs.get("beta", 0.5))
            whole = None if inner is None else inner.after_affine(node, node.inputs[0], alpha, beta)
            return None if whole is None else replace(whole, nodes=(*ramp.nodes, node))
        case _:
            bounds = _bounds(scope, node)
            return None if bounds is None else ramp.after_clip(node, *bounds)


def _affine_step(scope: Scope, node: gs.Node) -> tuple[gs.Tensor, float, float] | None:
    """What a node of scalar arithmetic computes: ``(t, scale, shift)`` for ``scale · t + shift``."""
    if node.op == "Neg":
        return node.inputs[0], -1.0, 0.0
    if node.op in ("Add", "Sum", "Mul"):
        found = operand_and_scalar(scope, node)
        if found is None:
            return None
        return (*found, 0.0) if node.op == "Mul" else (found[0], 1.0, found[1])
    number = scalar(scope, node, 1)
    if number is not None:
        if node.op == "Sub":
            return node.inputs[0], 1.0, -number
        return (node.inputs[0], 1.0 / number, 0.0) if number else None
    number = scalar(scope, node, 0)
    return (node.inputs[1], -1.0, number) if number is not None and node.op == "Sub" else None


def _bounds(scope: Scope, node: gs.Node) -> tuple[gs.Tensor, float, float] | None:
    """What a node cuts off: ``(t, low, high)`` for ``clip(t, low, high)``."""
    if node.op in ("Min", "Max"):
        found = operand_and_scalar(scope, node)
        if found is None:
            return None
        return (found[0], -math.inf, found[1]) if node.op == "Min" else (*found, math.inf)
    bounds = clip_bounds(scope.editor, node)
    return None if bounds is None else (node.inputs[0], *bounds)


@dataclass(frozen=True)
class Product:
    """``scale · factors[0] · factors[1] · …``.

    Attributes:
        scale: the numbers among the factors, multiplied.
        factors: the tensors.
        nodes: the nodes that compute it, the last one first.
    """

    scale: float
    factors: tuple[gs.Tensor, ...]
    nodes: tuple[gs.Node, ...] = ()


def products(scope: Scope, tensor: gs.Tensor, most: int = 2, steps: int = DEEPEST) -> Iterator[Product]:
    """Every reading of ``tensor`` as a product of at most ``most`` tensors, ``steps`` nodes deep; itself first."""
    yield Product(1.0, (tensor,))
    node = producer(scope, tensor) if steps else None
    if node is None or node.op not in ("Mul", "Div", "Neg"):
        return
    step = _affine_step(scope, node)
    if step is not None:
        for inner in products(scope, step[0], most, steps - 1):
            yield Product(inner.scale * step[1], inner.factors, (node, *inner.nodes))
    elif node.op == "Mul" and most > 1 and node.inputs[0] is not node.inputs[1]:
        for left in products(scope, node.inputs[0], most - 1, steps - 1):
            for right in products(scope, node.inputs[1], most - len(left.factors), steps - 1):
                scale, nodes = left.scale * right.scale, (node, *left.nodes, *right.nodes)
                yield Product(scale, left.factors + right.factors, nodes)


def pairs(scope: Scope, tensor: gs.Tensor) -> Iterator[tuple[Product, gs.Tensor, gs.Tensor]]:
    """Every reading of ``tensor`` as a number times two tensors, in both orders of the two."""
    for product in products(scope, tensor):
        if len(product.factors) == 2:
            first, second = product.factors
            yield product, first, second
            yield product, second, first


def obstacle(scope: Scope, root: gs.Node, nodes: Collection[gs.Node]) -> str | None:
    """Why ``nodes`` cannot all go together with their last one, ``root``; ``None`` where they can."""
    inside = {id(node) for node in nodes}
    for node in nodes:
        if not scope.selection.allows(node):
            return f"{label(node)} is left out by only/skip"
        inner = node.outputs[0]
        if node is not root and (
            scope.editor.is_output(inner) or any(id(user) not in inside for user in scope.editor.consumers(inner))
        ):
            return f"the output of {label(node)} has another user or is a graph output"
    return None


def add_like(
    scope: Scope, like: gs.Tensor, op: str, inputs: Sequence[gs.Tensor], name: str, **attrs: float | int | str
) -> gs.Tensor:
    """A new node whose output has the type and shape of ``like``, so that other rules can read them at once."""
    shape = scope.shape(like)
    result = scope.editor.add_node(op, inputs, attrs=attrs, name=name).outputs[0]
    result.dtype = scope.model.dtype_of(like)
    result.shape = None if shape is None else list(shape)
    return result


def put_instead(
    scope: Scope,
    root: gs.Node,
    nodes: Sequence[gs.Node],
    op: str,
    inputs: Sequence[gs.Tensor],
    **attrs: float | int | str,
) -> gs.Node:
    """Let a new node compute the output of ``root``, and remove ``nodes``, of which ``root`` is the last.

    Every node but ``root`` must be used by others of ``nodes`` only (``obstacle``).
    """
    name = f"{label(root)}_{op.lower()}"
    fresh = scope.editor.add_node(op, inputs, attrs=attrs, outputs=[root.outputs[0]], name=name)
    left = list({id(node): node for node in (root, *nodes)}.values())
    while left:
        # A node goes once its readers are gone; what the new node itself reads stays.
        free = [node for node in left if not scope.editor.consumers(node.outputs[0])]
        if not free:
            break
        for node in free:
            scope.remove(node)
        left = [node for node in left if all(node is not gone for gone in free)]
    scope.touch([fresh, *scope.editor.consumers(fresh.outputs[0])])
    return fresh
