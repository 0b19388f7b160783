"""Units: the pieces of a graph that can each be integer or float on onnxruntime's CPU provider.

A unit is one node with what onnxruntime swallows along with it (a Relu or Clip behind a Conv, the bias Add behind a
MatMul). Which operators have an integer kernel, and under which conditions, was probed on onnxruntime 1.31 and 1.32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.analysis.clipping import clip_bounds
from graphopt.model.domains import in_standard_domain
from graphopt.model.editor import GraphEditor
from graphopt.model.model import Model
from graphopt.passes.quantize.prepare import keeps_rows


class Kind(Enum):
    """How a unit is written in integer form."""

    CONV = "convolution"
    LINEAR = "linear layer"
    ARITHMETIC = "Add or Mul"
    CONCAT = "Concat"
    POOL = "average pooling"
    CURVE = "elementwise curve"
    GATE = "HardSigmoid"
    SWISH = "HardSwish"
    MOVE = "movement of values"
    SCALE = "product with a positive scalar"


HEAVY = frozenset({Kind.CONV, Kind.LINEAR})
"""Kinds that are worth making integer for themselves; the others only between integer neighbours."""


@dataclass(frozen=True, eq=False)
class Unit:
    """One piece that is either integer or float.

    Attributes:
        name: the name of its first node, or of its output where that node has none of its own.
        kind: how it is written.
        nodes: its nodes in order; the first one reads, the last one writes.
        slots: positions of the activations among the first node's inputs.
        reads: their tensor names.
        writes: names of its output tensors.
        bounds: what a Relu or Clip at its end clips to; ``None`` without one.
        factor: of kind SCALE: what it multiplies with.
        shape: shape of the first tensor that it reads; ``None`` where it is not known.
    """

    name: str
    kind: Kind
    nodes: tuple[gs.Node, ...]
    slots: tuple[int, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    bounds: tuple[float, float] | None = None
    factor: float = 1.0
    shape: tuple[int | str | None, ...] | None = None

    @property
    def head(self) -> gs.Node:
        """The node that reads."""
        return self.nodes[0]

    @property
    def bias_add(self) -> gs.Node | None:
        """The Add behind a MatMul, where the unit holds one."""
        adds = [n for n in self.nodes[1:] if n.op == "Add"]
        return adds[0] if adds else None

    @property
    def float_output(self) -> bool:
        """Its integer kernel can hand over floats: no QuantizeLinear is needed where no reader is integer."""
        return self.kind is Kind.LINEAR


@dataclass(frozen=True)
class Units:
    """All units of a model in graph order, and why the nodes that might have been units are none.

    Attributes:
        all: the units.
        refused: node name → reason, for nodes with an integer kernel that cannot use it here.
    """

    all: tuple[Unit, ...]
    refused: Mapping[str, str]

    def named(self) -> dict[str, Unit]:
        """Units by name."""
        return {unit.name: unit for unit in self.all}

    def producers(self) -> dict[str, Unit]:
        """The unit that writes each tensor."""
        return {tensor: unit for unit in self.all for tensor in unit.writes}

    def readers(self) -> dict[str, list[Unit]]:
        """The units that read each tensor."""
        found: dict[str, list[Unit]] = {}
        for unit in self.all:
            for tensor in dict.fromkeys(unit.reads):
                found.setdefault(tensor, []).append(unit)
        return found


class Unfit(Exception):
    """The node has an integer kernel, but not in the form it stands here."""


def find_units(model: Model) -> Units:
    """The units of ``model``'s top-level graph, in graph order."""
    finder = _Finder(model)
    units: list[Unit] = []
    refused: dict[str, str] = {}
    taken: set[int] = set()
    names: set[str] = set()
    for node in model.editor.nodes():
        form = _FORMS.get(node.op)
        if form is None or not in_standard_domain(node) or id(node) in taken:
            continue
        label = node.name or node.outputs[0].name
        try:
            unit = form(finder, node)
        except Unfit as reason:
            refused[label] = str(reason)
            continue
        if unit is None:
            continue
        if unit.name in names:
            unit = Unit(**{**unit.__dict__, "name": unit.writes[0]})
        names.add(unit.name)
        taken.update(id(n) for n in unit.nodes)
        units.append(unit)
    return Units(tuple(units), refused)


class _Finder:
    """Recognises one node at a time."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.editor: GraphEditor = model.editor

    def activation(self, tensor: gs.Tensor) -> bool:
        return not tensor.is_empty() and self.editor.constant(tensor) is None

    def build(
        self, kind: Kind, nodes: tuple[gs.Node, ...], slots: tuple[int, ...], *, factor: float = 1.0, tail: bool = False
    ) -> Unit | None:
        """A unit of ``nodes`` and, with ``tail``, of the Relu or Clip behind them; ``None`` if it cannot be one.

        Raises:
            Unfit: a convolution whose result is a graph output.
        """
        bounds = None
        if tail:
            after = self._tail(nodes[-1])
            if after is not None:
                nodes, bounds = (*nodes, after[0]), after[1]
        head = nodes[0]
        reads = tuple(head.inputs[i] for i in slots)
        writes = tuple(t for t in nodes[-1].outputs if not t.is_empty())
        if not all(self._float32(t) for t in (*reads, *writes)):
            return None
        if kind is not Kind.LINEAR and any(self.editor.is_output(t) for t in writes):
            # An output stays float: quantizing it costs accuracy where it shows, and nothing reads the codes.
            if kind is Kind.CONV:
                raise Unfit("its result is a graph output, which stays float")
            return None
        return Unit(
            name=head.name or writes[0].name,
            kind=kind,
            nodes=nodes,
            slots=slots,
            reads=tuple(t.name for t in reads),
            writes=tuple(t.name for t in writes),
            bounds=bounds,
            factor=factor,
            shape=self.model.shape_of(reads[0]),
        )

    def _float32(self, tensor: gs.Tensor) -> bool:
        dtype = self.model.dtype_of(tensor)
        return dtype is None or dtype == np.float32

    def _tail(self, node: gs.Node) -> tuple[gs.Node, tuple[float, float]] | None:
        after = self.sole_consumer(node)
        if after is None:
            return None
        bounds = clip_bounds(self.editor, after)
        return (after, bounds) if bounds and bounds[0] <= 0 < bounds[1] else None

    def sole_consumer(self, node: gs.Node) -> gs.Node | None:
        """The one node that reads ``node``'s one output; ``None`` if there are more, or it is a graph output."""
        if len(node.outputs) != 1 or self.editor.is_output(node.outputs[0]):
            return None
        consumers = self.editor.consumers(node.outputs[0])
        if len(consumers) != 1:
            return None
        reads = [t for t in consumers[0].inputs if t is node.outputs[0]]
        return consumers[0] if len(reads) == 1 else None

    def scalar(self, tensor: gs.Tensor) -> float | None:
        value = self.editor.constant(tensor)
        return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None


def _conv(finder: _Finder, node: gs.Node) -> Unit | None:
    weight = finder.editor.constant(node.inputs[1])
    if weight is None:
        raise Unfit("its weight is not constant")
    if weight.dtype != np.float32:
        raise Unfit(f"its weight is {weight.dtype}, not float32")
    if len(node.inputs) > 2 and finder.activation(node.inputs[2]):
        raise Unfit("its bias is not constant")
    if not np.isfinite(weight).all():
        raise Unfit("its weight holds NaN or infinity")
    return finder.build(Kind.CONV, (node,), (0,), tail=True)


def _gemm(finder: _Finder, node: gs.Node) -> Unit | None:
    weight = _matrix(finder, node.inputs[1])
    if weight is None:
        return None
    if node.attrs.get("transA", 0):
        raise Unfit("transA = 1 has no integer kernel")
    if float(node.attrs.get("alpha", 1.0)) == 0:
        raise Unfit("alpha = 0 leaves nothing of its product")
    if len(node.inputs) > 2 and not node.inputs[2].is_empty():
        columns = weight.shape[0 if node.attrs.get("transB", 0) else 1]
        bias = finder.editor.constant(node.inputs[2])
        if bias is None or bias.size not in (1, columns) or bias.shape[-1:] not in ((), (1,), (columns,)):
            raise Unfit("its bias is not a constant row")
    return finder.build(Kind.LINEAR, (node,), (0,), tail=True)


def _matmul(finder: _Finder, node: gs.Node) -> Unit | None:
    if not finder.activation(node.inputs[0]):
        return None
    weight = _matrix(finder, node.inputs[1])
    if weight is None:
        return None
    add, shape = finder.sole_consumer(node), finder.model.shape_of(node.inputs[0])
    rows = shape is not None and keeps_rows(finder.model, shape)
    if add is not None and add.op == "Add" and in_standard_domain(add) and rows:
        other = add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0]
        bias = finder.editor.constant(other)
        if bias is not None and bias.dtype == np.float32 and bias.shape == (weight.shape[1],):
            return finder.build(Kind.LINEAR, (node, add), (0,), tail=True)
    return finder.build(Kind.LINEAR, (node,), (0,), tail=True)


def _matrix(finder: _Finder, tensor: gs.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None:
    """The constant float32 matrix behind ``tensor``; ``None``: a product of two activations, no unit at all."""
    weight = finder.editor.constant(tensor)
    if weight is None:
        return None
    if weight.dtype != np.float32:
        raise Unfit(f"its weight is {weight.dtype}, not float32")
    if weight.ndim != 2:
        raise Unfit(f"its weight has {weight.ndim} dimensions; the integer kernel takes 2")
    if not np.isfinite(weight).all():
        raise Unfit("its weight holds NaN or infinity")
    return weight


def _arithmetic(finder: _Finder, node: gs.Node) -> Unit | None:
    slots = tuple(i for i, t in enumerate(node.inputs) if finder.activation(t))
    if not slots:
        return None
    if node.op in ("Mul", "Div") and len(slots) == 1:
        scalar = _scalar_factor(finder, node, slots[0])
        if scalar is not None:
            return finder.build(Kind.SCALE, (node,), slots, factor=scalar)
    if node.op == "Div":
        return None
    constant = [finder.editor.constant(t) for i, t in enumerate(node.inputs) if i not in slots]
    if constant and (constant[0] is None or constant[0].dtype != np.float32 or not _has_grid(constant[0])):
        return None
    return finder.build(Kind.ARITHMETIC, (node,), slots, tail=True)


def _has_grid(value: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> bool:
    return bool(value.size and np.isfinite(value).all() and np.any(value != 0) and np.abs(value).max() < 1e30)


def _scalar_factor(finder: _Finder, node: gs.Node, slot: int) -> float | None:
    """What a Mul or Div by a positive scalar multiplies with, if its output has the shape of its input."""
    value = finder.scalar(node.inputs[1 - slot])
    shape = finder.model.shape_of(node.inputs[slot])
    constant = finder.editor.constant(node.inputs[1 - slot])
    if value is None or constant is None or shape is None or constant.ndim > len(shape):
        return None
    if node.op == "Div":
        if slot != 0 or value == 0:
            return None
        value = 1.0 / value
    return value if 1e-6 < value < 1e6 else None


def _concat(finder: _Finder, node: gs.Node) -> Unit | None:
    slots = tuple(i for i, t in enumerate(node.inputs) if finder.activation(t))
    constants = [finder.editor.constant(t) for i, t in enumerate(node.inputs) if i not in slots]
    if not slots or not all(c is not None and c.dtype == np.float32 and _has_grid(c) for c in constants):
        return None
    return finder.build(Kind.CONCAT, (node,), slots, tail=True)


def _average(finder: _Finder, node: gs.Node) -> Unit | None:
    if any(d != 1 for d in node.attrs.get("dilations", [])):
        raise Unfit("a dilated AveragePool has no integer kernel")
    shape = finder.model.shape_of(node.inputs[0])
    return finder.build(Kind.POOL, (node,), (0,)) if shape is not None and len(shape) == 4 else None


def _curve(finder: _Finder, node: gs.Node) -> Unit | None:
    return finder.build(Kind.CURVE, (node,), (0,))


def _gate(finder: _Finder, node: gs.Node) -> Unit | None:
    if float(node.attrs.get("alpha", 0.2)) <= 0:
        return None
    return finder.build(Kind.GATE, (node,), (0,))


def _swish(finder: _Finder, node: gs.Node) -> Unit | None:
    return finder.build(Kind.SWISH, (node,), (0,))


def _move(finder: _Finder, node: gs.Node) -> Unit | None:
    return finder.build(Kind.MOVE, (node,), (0,)) if finder.activation(node.inputs[0]) else None


def _max_pool(finder: _Finder, node: gs.Node) -> Unit | None:
    return _move(finder, node) if len(node.outputs) == 1 else None


def _resize(finder: _Finder, node: gs.Node) -> Unit | None:
    mode = node.attrs.get("mode", "nearest")
    cropped = node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    return _move(finder, node) if mode == "nearest" and not cropped else None


def _pad(finder: _Finder, node: gs.Node) -> Unit | None:
    if len(node.inputs) > 2 and not node.inputs[2].is_empty() and finder.scalar(node.inputs[2]) != 0:
        return None
    if len(node.inputs) > 3 and not node.inputs[3].is_empty():
        raise Unfit("it pads by named axes that are not constant")
    return _move(finder, node)


_FORMS: Mapping[str, Callable[[_Finder, gs.Node], Unit | None]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Add": _arithmetic,
    "Mul": _arithmetic,
    "Div": _arithmetic,
    "Concat": _concat,
    "AveragePool": _average,
    "GlobalAveragePool": _average,
    "Sigmoid": _curve,
    "LeakyRelu": _curve,
    "HardSigmoid": _gate,
    "HardSwish": _swish,
    "MaxPool": _max_pool,
    "Resize": _resize,
    "Pad": _pad,
    **dict.fromkeys(
        ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather", "Expand", "Tile"), _move
    ),
    **dict.fromkeys(("DepthToSpace", "Split", "Identity", "ReduceMax"), _move),
}
"""Operator → how it is recognised. What is missing here has no integer kernel on the CPU provider, or a slower one
(Softmax), and stays float."""


def read_outside(model: Model, units: Units) -> frozenset[str]:
    """Tensors written by units that a node outside of all units reads."""
    inside = {id(node) for unit in units.all for node in unit.nodes}
    found = ((name, model.editor.tensor(name)) for unit in units.all for name in unit.writes)
    return frozenset(
        name
        for name, tensor in found
        if tensor is not None and any(id(node) not in inside for node in model.editor.consumers(tensor))
    )
