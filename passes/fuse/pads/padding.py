"""What a Pad node, and the window of a Conv or pool, say about padding; shared by rules."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from graphopt.analysis.clipping import clip_bounds
from graphopt.model.domains import in_standard_domain
from graphopt.pipeline.rules import Scope

_NEVER_NEGATIVE = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softmax", "Softplus", "Exp", "Abs", "ReduceL2"})
_PASSES_SIGN_ON = frozenset({"AveragePool", "Flatten", "GlobalAveragePool", "GlobalMaxPool", "Identity", "MaxPool"})
_PASSES_SIGN_ON |= {"Reshape", "Squeeze", "Transpose", "Unsqueeze"}
_KEEPS_SHAPE = frozenset({"BatchNormalization", "Cast", "Clip", "Elu", "HardSigmoid", "HardSwish", "Identity"})
_KEEPS_SHAPE |= {"LeakyRelu", "Mish", "Neg", "Relu", "Selu", "Sigmoid", "Softplus", "Tanh"}
_LOOK_BACK = 8


@dataclass(frozen=True)
class ConstantPad:
    """A Pad in constant mode whose amounts and value are known.

    Attributes:
        begins: elements put before each axis of the input, ≥ 0.
        ends: elements put behind each axis.
        value: what they hold.
    """

    begins: tuple[int, ...]
    ends: tuple[int, ...]
    value: float

    def spatial(self) -> list[int] | None:
        """Begins, then ends, of all axes behind batch and channel; ``None`` where those two are padded as well."""
        if len(self.begins) < 3 or any((*self.begins[:2], *self.ends[:2])):
            return None
        return [*self.begins[2:], *self.ends[2:]]


def constant_pad(node: gs.Node, scope: Scope) -> ConstantPad | None:
    """What a Pad node adds, in whatever form its operator set has; ``None`` where that is not fixed, or crops."""
    shape, amounts = scope.shape(node.inputs[0]), scope.ints(node, 1, "pads")
    value = _value(node, scope)
    if shape is None or amounts is None or value is None or node.attrs.get("mode", "constant") != "constant":
        return None
    axes = tuple(range(len(shape))) if scope.input(node, 3) is None else scope.ints(node, 3)
    if axes is None or len(amounts) != 2 * len(axes) or min(amounts, default=0) < 0:
        return None
    begins, ends = [0] * len(shape), [0] * len(shape)
    for place, axis in enumerate(axes):
        begins[axis], ends[axis] = amounts[place], amounts[place + len(axes)]
    return ConstantPad(tuple(begins), tuple(ends), value)


def _value(node: gs.Node, scope: Scope) -> float | None:
    if scope.model.opset < 11:
        return float(node.attrs.get("value", 0.0))
    if scope.input(node, 2) is None:
        return 0.0
    given = scope.constant(node, 2)
    return None if given is None or given.size != 1 or given.dtype.kind != "f" else float(given.reshape(-1)[0])


def window_pads(node: gs.Node, rank: int) -> list[int] | None:
    """The pads of a Conv or pool, begins then ends; ``None`` where they depend on the input's size."""
    mode = node.attrs.get("auto_pad", "NOTSET")
    mode = mode.decode() if isinstance(mode, bytes) else mode
    if mode == "NOTSET":
        return [int(v) for v in node.attrs.get("pads", [0] * (2 * rank))]
    return [0] * (2 * rank) if mode == "VALID" else None


def never_negative(tensor: gs.Tensor, scope: Scope) -> bool:
    """Whether every element is ≥ 0 (or NaN) whatever the input, as the nodes just before ``tensor`` prove."""
    for _ in range(_LOOK_BACK):
        node = scope.producer(tensor)
        if node is None or not in_standard_domain(node):
            return False
        bounds = clip_bounds(scope.editor, node)
        if node.op in _NEVER_NEGATIVE or (bounds is not None and min(bounds) >= 0):
            return True
        if node.op not in _PASSES_SIGN_ON or node.outputs[0] is not tensor:
            return False
        tensor = node.inputs[0]
    return False


def never_empty(tensor: gs.Tensor, scope: Scope) -> bool:
    """Whether no spatial dimension can be 0: all are numbers, or a Conv made them.

    A Conv does not run where its output would be empty; a pool does, and may hand an empty image on.
    """
    shape = scope.shape(tensor)
    if shape is not None and all(isinstance(size, int) and size > 0 for size in shape[2:]):
        return True
    for _ in range(_LOOK_BACK):
        node = scope.producer(tensor)
        if node is None or not in_standard_domain(node) or node.outputs[0] is not tensor:
            return False
        if node.op == "Conv":
            return True
        if node.op not in _KEEPS_SHAPE:
            return False
        tensor = node.inputs[0]
    return False
