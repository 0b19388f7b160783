"""The values of small integer tensors, in numbers and symbols, for `shape_facts`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from graphopt.passes.fuse.shapes.symbols import Term

if TYPE_CHECKING:
    from graphopt.passes.fuse.shapes.shape_facts import ShapeFacts

Elements = npt.NDArray[Any]
Evaluate = Callable[[gs.Node, "ShapeFacts"], "Elements | None"]

_MOST = 64
_INTS = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)


def _objects(items: list[Any]) -> Elements:
    array = np.empty(len(items), object)
    array[:] = items
    return array


def _input(node: gs.Node, index: int, facts: ShapeFacts) -> Elements | None:
    tensor = facts.scope.input(node, index)
    return None if tensor is None else facts.value(tensor)


def _shape(node: gs.Node, facts: ShapeFacts) -> Elements | None:
    sizes = facts.dims(node.inputs[0])
    if sizes is None or len(sizes) > _MOST:
        return None
    return _objects(list(sizes[node.attrs.get("start", 0) : node.attrs.get("end", len(sizes))]))


def _size(node: gs.Node, facts: ShapeFacts) -> Elements | None:
    sizes = facts.dims(node.inputs[0])
    return None if sizes is None else _objects([facts.algebra.product(sizes)]).reshape(())


def _passed(node: gs.Node, facts: ShapeFacts) -> Elements | None:
    return _input(node, 0, facts)


def _cast(node: gs.Node, facts: ShapeFacts) -> Elements | None:
    value = _input(node, 0, facts)
    if value is None or node.attrs["to"] not in _INTS or any(isinstance(e, bool) or e is None for e in value.flat):
        return None
    narrow = node.attrs["to"] == onnx.TensorProto.INT32
    return None if narrow and not all(_is_narrow(e, facts) for e in value.flat) else value


def _is_narrow(element: Term, facts: ShapeFacts) -> bool:
    """Whether 32 bits hold an element: a number that fits, or one dimension (of 2^31 no tensor was seen)."""
    if isinstance(element, int):
        return abs(element) < 2**31
    return len(element.terms) == 1 and element.terms[0][1] == 1 and facts.algebra.is_count(element)


def _gather(node: gs.Node, facts: ShapeFacts) -> Elements | None:
    value, picks = _input(node, 0, facts), facts.scope.constant(node, 1)
    if value is None or picks is None or value.ndim == 0:
        return None
    axis = int(node.attrs.get("axis", 0))
    length = value.shape[axis]
    if picks.size > _MOST or ((picks < -length) | (picks >= length)).any():
        return None
    return np.asarray(np.take(value, picks % max(length, 1), axis=axis), object)


def _slice(node: gs.Node, facts: ShapeFacts) -> Elements | None:
    value = _input(node, 0, facts)
    starts, ends = facts.scope.ints(node, 1, "starts"), facts.scope.ints(node, 2, "ends")
    if value is None or starts is None or ends is None:
        return None
    axes: tuple[int, ...] | None = tuple(range(len(starts)))
    steps: tuple[int, ...] | None = (1,) * len(starts)
    if "axes" in node.attrs or facts.scope.input(node, 3) is not None:
        axes = facts.scope.ints(node, 3, "axes")
    if facts.scope.input(node, 4) is not None:
        steps = facts.scope.ints(node, 4)
    if axes is None or steps is None or 0 in steps:
        return None
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        window: list[Any] = [slice(None)] * value.ndim
        window[axis] = _bounds(start, end, step, value.shape[axis])
        value = value[tuple(window)]
    return value


def _bounds(start: int, end: int, step: int, length: int) -> slice:
    """Python's slice for an operator's bounds; they differ where a backward one runs past the front."""
    if step < 0 and end < -length:
        return slice(start, None, step)
    return slice(start, end, step)


def _concat(node: gs.Node, facts: ShapeFacts) -> Elements | None:
    parts = [_input(node, index, facts) for index in range(len(node.inputs))]
    known = [part for part in parts if part is not None]
    if len(known) != len(parts) or sum(part.size for part in known) > _MOST:
        return None
    return np.concatenate(known, axis=int(node.attrs["axis"]))


def _reshaped(node: gs.Node, facts: ShapeFacts) -> Elements | None:
    """Reshape, Squeeze, Unsqueeze, Flatten: the elements in the shape that is known of the output."""
    value, sizes = _input(node, 0, facts), facts.dims(node.outputs[0])
    if value is None or sizes is None or not all(isinstance(size, int) for size in sizes):
        return None
    total = int(np.prod([size for size in sizes if isinstance(size, int)], dtype=np.int64))
    return value.reshape([size for size in sizes if isinstance(size, int)]) if total == value.size else None


def _transpose(node: gs.Node, facts: ShapeFacts) -> Elements | None:
    value = _input(node, 0, facts)
    return None if value is None else np.transpose(value, node.attrs.get("perm"))


def _elementwise(function: Callable[[ShapeFacts, Any, Any], Any]) -> Evaluate:
    def evaluate(node: gs.Node, facts: ShapeFacts) -> Elements | None:
        left, right = _input(node, 0, facts), _input(node, 1, facts)
        if left is None or right is None or len(node.inputs) != 2:
            return None
        if any(isinstance(e, bool) or e is None for side in (left, right) for e in side.flat):
            return None
        first, second = np.broadcast_arrays(left, right)
        if first.size > _MOST:
            return None
        results = [function(facts, a, b) for a, b in zip(first.flat, second.flat, strict=True)]
        if function is not _equal and any(result is None for result in results):
            return None
        return _objects(results).reshape(first.shape)

    return evaluate


def _equal(facts: ShapeFacts, a: Term, b: Term) -> bool | None:
    return facts.algebra.equal(a, b)


def _where(node: gs.Node, facts: ShapeFacts) -> Elements | None:
    parts = [_input(node, index, facts) for index in range(3)]
    known = [part for part in parts if part is not None]
    if len(known) != 3:
        return None
    test, yes, no = np.broadcast_arrays(*known)
    triples = list(zip(test.flat, yes.flat, no.flat, strict=True))
    if test.size > _MOST or not all(isinstance(e, bool) or a == b for e, a, b in triples):
        return None
    picked = [a if e else b for e, a, b in triples]
    return _objects(picked).reshape(test.shape)


def _negated(node: gs.Node, facts: ShapeFacts) -> Elements | None:
    value = _input(node, 0, facts)
    if value is None:
        return None
    return _objects([facts.algebra.sub(0, e) for e in value.flat]).reshape(value.shape)


def _filled(node: gs.Node, facts: ShapeFacts) -> Elements | None:
    sizes = facts.ints(node.inputs[0])
    given = node.attrs.get("value")
    if sizes is None or not isinstance(given, gs.Constant) or given.values.dtype.kind != "i":
        return None
    if min(sizes, default=1) < 0 or np.prod(sizes, dtype=np.float64) > _MOST:
        return None
    return np.full(sizes, int(given.values.reshape(-1)[0]), object)


def _expanded(node: gs.Node, facts: ShapeFacts) -> Elements | None:
    value, sizes = _input(node, 0, facts), facts.dims(node.outputs[0])
    fixed = [size for size in sizes or () if isinstance(size, int)]
    if value is None or sizes is None or len(fixed) != len(sizes) or np.prod(fixed, dtype=np.float64) > _MOST:
        return None
    return np.array(np.broadcast_to(value, fixed), object)


def _range(node: gs.Node, facts: ShapeFacts) -> Elements | None:
    bounds = [facts.ints(node.inputs[index]) for index in range(3)]
    if any(bound is None or len(bound) != 1 for bound in bounds):
        return None
    steps = range(*(bound[0] for bound in bounds if bound is not None)) if bounds[2] != [0] else range(0)
    return _objects(list(steps)) if 0 < len(steps) <= _MOST else None


def _product(node: gs.Node, facts: ShapeFacts) -> Elements | None:
    """ReduceProd over everything."""
    value, sizes = _input(node, 0, facts), facts.dims(node.outputs[0])
    if value is None or value.ndim != 1 or sizes is None or any(size != 1 for size in sizes):
        return None
    return _objects([facts.algebra.product(value.flat)]).reshape([1] * len(sizes))


def _mod(node: gs.Node, facts: ShapeFacts) -> Elements | None:
    """Mod as Python and ONNX's default have it: with ``fmod`` the sign is the dividend's."""
    return None if node.attrs.get("fmod", 0) else _elementwise(_modulo)(node, facts)


def _modulo(facts: ShapeFacts, a: Term, b: Term) -> Term | None:
    return None if b == 0 else facts.algebra.function("mod", lambda x, y: x % y, a, b)


VALUES: dict[str, Evaluate] = {
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), _reshaped),
    "Add": _elementwise(lambda facts, a, b: facts.algebra.add(a, b)),
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _filled,
    "Div": _elementwise(lambda facts, a, b: facts.algebra.div(a, b)),
    "Equal": _elementwise(_equal),
    "Expand": _expanded,
    "Gather": _gather,
    "Identity": _passed,
    "Max": _elementwise(lambda facts, a, b: facts.algebra.function("max", max, *_sorted(a, b))),
    "Min": _elementwise(lambda facts, a, b: facts.algebra.function("min", min, *_sorted(a, b))),
    "Mod": _mod,
    "Mul": _elementwise(lambda facts, a, b: facts.algebra.mul(a, b)),
    "Neg": _negated,
    "Range": _range,
    "ReduceProd": _product,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Sub": _elementwise(lambda facts, a, b: facts.algebra.sub(a, b)),
    "Transpose": _transpose,
    "Where": _where,
}


def _sorted(a: Term, b: Term) -> list[Term]:
    return sorted((a, b), key=repr)
