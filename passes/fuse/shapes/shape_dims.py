"""Which of an operator's output dimensions are which of its input's, for `shape_facts`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

from graphopt.passes.fuse.shapes.symbols import Term

if TYPE_CHECKING:
    from graphopt.passes.fuse.shapes.shape_facts import ShapeFacts

Found = list[list[Term | None] | None]
"""Of each output the dimensions; ``None``: nothing can be said, about a dimension or about all of them."""
Carrier = Callable[[gs.Node, "ShapeFacts"], Found]

_NOTHING: Found = []
_FAR = 2**31 - 1
"""Exporters write this, or more, for "to the end"."""


def _sizes(node: gs.Node, index: int, facts: ShapeFacts) -> tuple[Term, ...] | None:
    tensor = facts.scope.input(node, index)
    return None if tensor is None else facts.dims(tensor)


def _same(node: gs.Node, facts: ShapeFacts) -> Found:
    sizes = _sizes(node, 0, facts)
    return _NOTHING if sizes is None else [list(sizes)]


def broadcast(shapes: Sequence[Sequence[Term]], facts: ShapeFacts) -> list[Term]:
    """The dimensions of shapes broadcast against each other."""
    rank = max((len(shape) for shape in shapes), default=0)
    result: list[Term] = [1] * rank
    for shape in shapes:
        for back, size in enumerate(reversed(shape), 1):
            result[-back] = facts.algebra.joined(result[-back], size)
    return result


def _broadcast(node: gs.Node, facts: ShapeFacts) -> Found:
    shapes = [_sizes(node, index, facts) for index in range(len(node.inputs))]
    known = [shape for shape in shapes if shape is not None]
    return _NOTHING if len(known) != len(shapes) else [list(broadcast(known, facts))]


def _matmul(node: gs.Node, facts: ShapeFacts) -> Found:
    left, right = _sizes(node, 0, facts), _sizes(node, 1, facts)
    if left is None or right is None or len(left) < 2 or len(right) < 2:
        return _NOTHING
    return [[*broadcast([left[:-2], right[:-2]], facts), left[-2], right[-1]]]


def _gemm(node: gs.Node, facts: ShapeFacts) -> Found:
    left, right = _sizes(node, 0, facts), _sizes(node, 1, facts)
    if left is None or right is None or len(left) != 2 or len(right) != 2:
        return _NOTHING
    return [[left[bool(node.attrs.get("transA", 0))], right[not node.attrs.get("transB", 0)]]]


def _transpose(node: gs.Node, facts: ShapeFacts) -> Found:
    sizes = _sizes(node, 0, facts)
    if sizes is None:
        return _NOTHING
    return [[sizes[axis] for axis in node.attrs.get("perm", range(len(sizes) - 1, -1, -1))]]


def _concat(node: gs.Node, facts: ShapeFacts) -> Found:
    shapes = [_sizes(node, index, facts) for index in range(len(node.inputs))]
    first = shapes[0]
    if not first:
        return _NOTHING
    axis, result = int(node.attrs["axis"]) % len(first), list[Term | None](first)
    result[axis] = 0
    for shape in shapes:
        so_far = result[axis]
        result[axis] = None if shape is None or so_far is None else facts.algebra.add(so_far, shape[axis])
    return [result]


def _gather(node: gs.Node, facts: ShapeFacts) -> Found:
    sizes, picks = _sizes(node, 0, facts), _sizes(node, 1, facts)
    if sizes is None or picks is None or not sizes:
        return _NOTHING
    axis = int(node.attrs.get("axis", 0)) % len(sizes)
    return [[*sizes[:axis], *picks, *sizes[axis + 1 :]]]


def _axes(node: gs.Node, index: int, facts: ShapeFacts) -> list[int] | None:
    axes = facts.scope.ints(node, index, "axes")
    return None if axes is None else list(axes)


def _unsqueeze(node: gs.Node, facts: ShapeFacts) -> Found:
    sizes, axes = _sizes(node, 0, facts), _axes(node, 1, facts)
    if sizes is None or axes is None:
        return _NOTHING
    rank = len(sizes) + len(axes)
    new, own = {axis % rank for axis in axes}, iter(sizes)
    return [[1 if axis in new else next(own) for axis in range(rank)]] if len(new) == len(axes) else _NOTHING


def _squeeze(node: gs.Node, facts: ShapeFacts) -> Found:
    sizes, axes = _sizes(node, 0, facts), _axes(node, 1, facts)
    if not sizes or axes is None:
        return _NOTHING
    gone = {axis % len(sizes) for axis in axes}
    return [[size for axis, size in enumerate(sizes) if axis not in gone]]


def _flatten(node: gs.Node, facts: ShapeFacts) -> Found:
    sizes, axis = _sizes(node, 0, facts), int(node.attrs.get("axis", 1))
    if sizes is None:
        return _NOTHING
    cut = axis + len(sizes) if axis < 0 else axis
    return [[facts.algebra.product(sizes[:cut]), facts.algebra.product(sizes[cut:])]]


def _reshape(node: gs.Node, facts: ShapeFacts) -> Found:
    sizes, target = _sizes(node, 0, facts), _target(node, facts)
    if target is None:
        return _NOTHING
    copies = not node.attrs.get("allowzero", 0)
    result: list[Term | None] = []
    for place, wanted in enumerate(target):
        if sizes is None:
            own: Term | None = None
        else:  # behind the last axis a 0 has nothing to copy, and is refused
            own = sizes[place] if place < len(sizes) else 0
        result.append(_wanted(wanted, own, copies, facts))
    if sizes is not None and target.count(-1) == 1:
        result[target.index(-1)] = _rest(sizes, [e for k, e in enumerate(result) if target[k] != -1], facts)
    return [result]


def _target(node: gs.Node, facts: ShapeFacts) -> list[Term] | None:
    if "shape" in node.attrs:
        return [int(v) for v in node.attrs["shape"]]
    tensor = facts.scope.input(node, 1)
    value = None if tensor is None else facts.value(tensor)
    return None if value is None else list(value.flat)


def _wanted(wanted: Term, own: Term | None, copies: bool, facts: ShapeFacts) -> Term | None:
    if isinstance(wanted, int):
        return None if wanted == -1 else own if wanted == 0 and copies else wanted
    # A computed -1 infers, and a computed 0 copies, which changes nothing where the input's own size is 0 then, too.
    if not facts.algebra.is_count(wanted):
        return None
    harmless = not copies or (own is not None and facts.algebra.quotient(own, wanted) is not None)
    return wanted if harmless else None


def _rest(sizes: Sequence[Term], others: Sequence[Term | None], facts: ShapeFacts) -> Term | None:
    known = [other for other in others if other is not None]
    if len(known) != len(others):
        return None
    divisor = facts.algebra.product(known)
    return None if divisor == 0 else facts.algebra.quotient(facts.algebra.product(sizes), divisor)


def _expand(node: gs.Node, facts: ShapeFacts) -> Found:
    sizes, target = _sizes(node, 0, facts), _target(node, facts)
    if sizes is None or target is None or not all(facts.algebra.is_count(wanted) for wanted in target):
        return _NOTHING
    return [list(broadcast([sizes, target], facts))]


def _of_shape(node: gs.Node, facts: ShapeFacts) -> Found:
    target = _target_of(node, 0, facts)
    return _NOTHING if target is None else [list(target)]


def _target_of(node: gs.Node, index: int, facts: ShapeFacts) -> list[Term] | None:
    tensor = facts.scope.input(node, index)
    value = None if tensor is None else facts.value(tensor)
    return None if value is None else list(value.flat)


def _range(node: gs.Node, facts: ShapeFacts) -> Found:
    bounds = [_target_of(node, index, facts) for index in range(3)]
    if bounds[0] != [0] or bounds[2] != [1] or bounds[1] is None or not facts.algebra.is_count(bounds[1][0]):
        return _NOTHING
    return [[bounds[1][0]]]


def _slice(node: gs.Node, facts: ShapeFacts) -> Found:
    sizes = _sizes(node, 0, facts)
    starts = facts.scope.ints(node, 1, "starts")
    if not sizes or starts is None:
        return _NOTHING
    axes = facts.scope.ints(node, 3, "axes")
    if axes is None:
        if facts.scope.input(node, 3) is not None:
            return _NOTHING
        axes = tuple(range(len(starts)))
    ends = facts.scope.ints(node, 2, "ends")
    steps = (1,) * len(axes) if facts.scope.input(node, 4) is None else facts.scope.ints(node, 4)
    result = list[Term | None](sizes)
    for place, axis in enumerate(axes):
        step = 0 if steps is None else steps[place]
        result[axis] = None if ends is None else _sliced(sizes[axis], starts[place], ends[place], step)
    return [result]


def _sliced(size: Term, start: int, end: int, step: int) -> Term | None:
    if step < 1:
        return None
    if isinstance(size, int):
        return len(range(*slice(start, end, step).indices(size)))
    return size if start == 0 and end >= _FAR and step == 1 else None


def _reduce(node: gs.Node, facts: ShapeFacts) -> Found:
    sizes, axes = _sizes(node, 0, facts), _axes(node, 1, facts)
    if not sizes or (axes is None and facts.scope.input(node, 1) is not None):
        return _NOTHING
    if not axes and node.attrs.get("noop_with_empty_axes", 0):
        return [list(sizes)]
    gone = {axis % len(sizes) for axis in axes} if axes else set(range(len(sizes)))
    keeps = node.attrs.get("keepdims", 1)
    return [[1 if axis in gone else size for axis, size in enumerate(sizes) if keeps or axis not in gone]]


def _window(node: gs.Node, facts: ShapeFacts) -> Found:
    """Conv and pools: the batch goes through; a 1x1 window without stride and pads keeps the picture's size."""
    sizes = _sizes(node, 0, facts)
    if sizes is None or len(sizes) < 3:
        return _NOTHING
    weight = _sizes(node, 1, facts) if node.op == "Conv" else None
    channels = weight[0] if weight else (sizes[1] if node.op != "Conv" else None)
    plain = weight is not None and all(size == 1 for size in weight[2:]) and not any(node.attrs.get("pads", ()))
    plain = plain and all(stride == 1 for stride in node.attrs.get("strides", ()))
    return [[sizes[0], channels, *(size if plain else None for size in sizes[2:])]]


def _global_pool(node: gs.Node, facts: ShapeFacts) -> Found:
    sizes = _sizes(node, 0, facts)
    return _NOTHING if sizes is None else [[*sizes[:2], *(1 for _ in sizes[2:])]]


_KEEPS_SHAPE = (
    "Abs Acos Asin Atan BatchNormalization Cast Ceil Celu Clip Cos CumSum DequantizeLinear Dropout Elu Erf Exp Floor "
    "Gelu HardSigmoid HardSwish Identity InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Log LogSoftmax "
    "LRN Mish Neg Not PRelu QuantizeLinear RMSNormalization Reciprocal Relu Round ScatterElements ScatterND Selu "
    "Sigmoid Sign Sin Softmax Softplus Softsign Sqrt Tan Tanh ThresholdedRelu Trilu"
)
_BROADCASTS = "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or Pow Sub Sum Where Xor"
_REDUCES = (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare"
)
DIMS: dict[str, Carrier] = {
    **dict.fromkeys(_KEEPS_SHAPE.split(), _same),
    **dict.fromkeys(_BROADCASTS.split(), _broadcast),
    **dict.fromkeys(_REDUCES.split(), _reduce),
    **dict.fromkeys(("AveragePool", "Conv", "MaxPool"), _window),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _global_pool),
    "Concat": _concat,
    "ConstantOfShape": _of_shape,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Range": _range,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
