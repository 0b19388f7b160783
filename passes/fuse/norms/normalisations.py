"""Normalisations in arithmetic: centred or not, divided by the root of a mean square, scaled and shifted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.model.domains import in_standard_domain
from graphopt.passes.fuse.patterns import operand_and_scalar, producer, scalar
from graphopt.pipeline.rules import Array, Dims, Scope, fits_into

Nodes = tuple[gs.Node, ...]


@dataclass(frozen=True)
class Normalised:
    """``(x - mean(x)) / sqrt(mean((x - mean(x))²) + epsilon)``, or without both means of x.

    Attributes:
        x: what is normalised.
        axes: over which axes, none negative.
        rank: of x.
        epsilon: what keeps the root from zero.
        centred: whether the mean is taken off.
        scale: constant factor inside the form, ``None`` for none.
        shift: constant summand inside the form, ``None`` for none.
        nodes: the nodes that compute it, the last one first.
    """

    x: gs.Tensor
    axes: tuple[int, ...]
    rank: int
    epsilon: float
    centred: bool
    scale: Array | None
    shift: Array | None
    nodes: Nodes


@dataclass(frozen=True)
class _Deviation:
    """``sqrt(mean(base²) + epsilon)`` over ``axes`` of ``base``, or one over it, times ``scale``."""

    base: gs.Tensor
    axes: tuple[int, ...]
    epsilon: float
    nodes: Nodes
    scale: Array | None = None


def normalised(scope: Scope, node: gs.Node) -> Normalised | None:
    """What a Div, Mul or Add normalises, if it is the last node of such a form."""
    if node.op == "Add":
        return _factored_out(scope, node)
    for dividend, deviation in _quotients(scope, node):
        nodes = (node, *deviation.nodes)
        if dividend is deviation.base:
            centre = _centre(scope, dividend)
            if centre is None or centre[1] != deviation.axes:
                return _result(scope, dividend, deviation, centred=False, nodes=nodes)
        found = _common_centre(scope, dividend, deviation)
        if found is not None:
            return _result(scope, found[0], deviation, centred=True, nodes=(*nodes, *found[1]))
    return None


def _result(
    scope: Scope, x: gs.Tensor, deviation: _Deviation, *, centred: bool, nodes: Nodes, shift: Array | None = None
) -> Normalised | None:
    shape = scope.shape(x)
    if shape is None:
        return None
    axes = tuple(sorted(axis % len(shape) for axis in deviation.axes))
    return Normalised(x, axes, len(shape), deviation.epsilon, centred, deviation.scale, shift, nodes)


def _quotients(scope: Scope, node: gs.Node) -> Iterator[tuple[gs.Tensor, _Deviation]]:
    """Dividend and deviation of a Div, or of a Mul with one over the deviation (perhaps scaled)."""
    if node.op == "Div":
        deviation = _deviation(scope, node.inputs[1], 0.5)
        if deviation is not None:
            yield node.inputs[0], deviation
        return
    for index in (0, 1):
        deviation = _scaled_inverse(scope, node.inputs[index])
        if deviation is not None:
            yield node.inputs[1 - index], deviation


def _scaled_inverse(scope: Scope, tensor: gs.Tensor) -> _Deviation | None:
    """One over a deviation, or its product with a constant."""
    plain = _deviation(scope, tensor, -0.5)
    node = producer(scope, tensor)
    if plain is not None or node is None or node.op != "Mul":
        return plain
    for index in (0, 1):
        scale = scope.constant(node, index)
        inverse = None if scale is None else _deviation(scope, node.inputs[1 - index], -0.5)
        if inverse is not None:
            return _Deviation(inverse.base, inverse.axes, inverse.epsilon, (node, *inverse.nodes), scale)
    return None


def _deviation(scope: Scope, tensor: gs.Tensor, power: float) -> _Deviation | None:
    """``tensor`` as a mean square plus epsilon, to the power 0.5 or -0.5."""
    node = producer(scope, tensor)
    if node is None:
        return None
    if node.op == "Pow":
        exponent = scalar(scope, node, 1)
        return _mean_square(scope, node.inputs[0], (node,)) if exponent == power else None
    if power > 0:
        return _mean_square(scope, node.inputs[0], (node,)) if node.op == "Sqrt" else None
    inverted = node.op == "Reciprocal" or (node.op == "Div" and scalar(scope, node, 0) == 1.0)
    root = producer(scope, node.inputs[-1]) if inverted else None
    return _mean_square(scope, root.inputs[0], (node, root)) if root is not None and root.op == "Sqrt" else None


def _mean_square(scope: Scope, tensor: gs.Tensor, nodes: Nodes) -> _Deviation | None:
    """``tensor`` as ``mean(base²) + epsilon``."""
    summed = producer(scope, tensor)
    found = operand_and_scalar(scope, summed) if summed is not None and summed.op == "Add" else None
    if summed is None or found is None or not 0 < found[1] <= 1:
        return None
    mean = _mean(scope, found[0])
    square = None if mean is None else producer(scope, mean[0])
    if mean is None or square is None:
        return None
    base = square.inputs[0]
    squared = (square.op == "Pow" and scalar(scope, square, 1) == 2.0) or (
        square.op == "Mul" and square.inputs[1] is base
    )
    return _Deviation(base, mean[1], found[1], (*nodes, summed, mean[2], square)) if squared else None


def _mean(scope: Scope, tensor: gs.Tensor) -> tuple[gs.Tensor, tuple[int, ...], gs.Node] | None:
    """What a ReduceMean that keeps its axes is taken of, over which axes, and the node."""
    node = producer(scope, tensor)
    if node is None or node.op != "ReduceMean" or node.attrs.get("keepdims", 1) != 1:
        return None
    axes, shape = scope.ints(node, 1, "axes"), scope.shape(node.inputs[0])
    if not axes or shape is None:
        return None
    return node.inputs[0], tuple(sorted({axis % len(shape) for axis in axes})), node


def _centre(scope: Scope, tensor: gs.Tensor) -> tuple[gs.Tensor, tuple[int, ...], Nodes] | None:
    """``tensor`` as x less its mean: x, the axes, the nodes."""
    node = producer(scope, tensor)
    mean = _mean(scope, node.inputs[1]) if node is not None and node.op == "Sub" else None
    if node is None or mean is None or mean[0] is not node.inputs[0]:
        return None
    return mean[0], mean[1], (node, mean[2])


def _common_centre(scope: Scope, dividend: gs.Tensor, deviation: _Deviation) -> tuple[gs.Tensor, Nodes] | None:
    """The tensor x and the nodes that centre it, where dividend and deviation are of the same centred x.

    Some exporters write the difference twice.
    """
    upper, lower = _centre(scope, dividend), _centre(scope, deviation.base)
    if upper is None or lower is None or upper[0] is not lower[0]:
        return None
    return (upper[0], (*upper[2], *lower[2])) if upper[1] == lower[1] == deviation.axes else None


def _factored_out(scope: Scope, node: gs.Node) -> Normalised | None:
    """``x · i + (b - mean(x) · i)`` with i one over the deviation, as TensorFlow's batch_normalization writes it."""
    for index in (0, 1):
        product, offset = (producer(scope, node.inputs[i]) for i in (index, 1 - index))
        if product is None or offset is None or product.op != "Mul" or offset.op != "Sub":
            continue
        shift, taken = scope.constant(offset, 0), producer(scope, offset.inputs[1])
        if shift is None or taken is None or taken.op != "Mul":
            continue
        for side in (0, 1):
            found = _of_factors(scope, product.inputs[side], product.inputs[1 - side], taken)
            if found is not None:
                x, deviation, inner = found
                nodes = (node, product, offset, taken, *deviation.nodes, *inner)
                return _result(scope, x, deviation, centred=True, nodes=nodes, shift=shift)
    return None


def _of_factors(
    scope: Scope, x: gs.Tensor, inverse: gs.Tensor, taken: gs.Node
) -> tuple[gs.Tensor, _Deviation, Nodes] | None:
    deviation = _scaled_inverse(scope, inverse)
    centre = None if deviation is None else _centre(scope, deviation.base)
    if deviation is None or centre is None or centre[0] is not x or centre[1] != deviation.axes:
        return None
    for index in (0, 1):
        mean = _mean(scope, taken.inputs[index])
        if mean is not None and mean[0] is x and mean[1] == centre[1] and taken.inputs[1 - index] is inverse:
            return x, deviation, (*centre[2], mean[2])
    return None


@dataclass(frozen=True)
class Tail:
    """Constant scale and shift of a normalised tensor, as its operator takes them.

    Attributes:
        scale: factors; ones where there are none.
        shift: summands; ``None`` where there are none.
        nodes: the Mul and Add behind the form that apply them.
    """

    scale: Array
    shift: Array | None
    nodes: Nodes


Fit = Callable[[Array], Array | None]


def tail(
    scope: Scope, norm: Normalised, fit: Fit, size: tuple[int, ...], ops: tuple[str, ...] = ("Mul", "Add")
) -> Tail | None:
    """The scale and shift inside and behind a form; ``None`` where those inside do not suit the operator.

    Args:
        scope: the model.
        norm: the form.
        fit: turns a constant operand into a parameter of the operator, or gives ``None`` where it is none.
        size: shape of the parameter.
        ops: what the operator can take in.
    """
    given = [value for value in (norm.scale, norm.shift) if value is not None]
    if not all(_keeps_shape(value, scope.shape(norm.x)) for value in given):
        return None
    inner = [None if value is None else fit(value) for value in (norm.scale, norm.shift)]
    if sum(own is not None for own in inner) < len(given):
        return None
    scale, shift = inner
    nodes: list[gs.Node] = []
    last = norm.nodes[0]
    for op in ops:
        if (op == "Mul" and (scale is not None or shift is not None)) or shift is not None:
            continue
        found = _next(scope, last, op, fit)
        if found is not None:
            last = found[0]
            nodes.append(last)
            scale, shift = (found[1], shift) if op == "Mul" else (scale, found[1])
    return Tail(np.ones(size, np.float32) if scale is None else scale, shift, tuple(nodes))


def _next(scope: Scope, node: gs.Node, op: str, fit: Fit) -> tuple[gs.Node, Array] | None:
    """The one user of a node, where it is an ``op`` with a constant that fits."""
    result = node.outputs[0]
    users = scope.editor.consumers(result)
    if len(users) != 1 or users[0].op != op or not in_standard_domain(users[0]) or scope.editor.is_output(result):
        return None
    user = users[0]
    index = constant_index(scope, user)
    value = None if index is None else scope.constant(user, index)
    if index is None or value is None or not scope.selection.allows(user) or not scope.can_bypass(user, 1 - index):
        return None
    own = fit(value) if _keeps_shape(value, scope.shape(result)) else None
    return None if own is None else (user, own)


def _keeps_shape(value: Array, shape: Dims | None) -> bool:
    """Whether a constant operand is float32 and provably widens no tensor of ``shape``, in rank or extent."""
    return value.dtype == np.float32 and fits_into(value.shape, shape)


def constant_index(scope: Scope, node: gs.Node) -> int | None:
    """Which operand of a two-operand node is the constant one, if one is."""
    return next((index for index in (0, 1) if scope.constant(node, index) is not None), None)


def trailing(norm: Normalised) -> bool:
    """Whether the axes are the last ones."""
    return norm.axes == tuple(range(norm.axes[0], norm.rank))
