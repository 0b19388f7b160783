"""Nodes that treat every row of a tensor alike, and the streams that they form; for `flat-stream`."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.model.domains import in_standard_domain
from graphopt.passes.fuse.shapes.shape_facts import ShapeFacts, Sizes
from graphopt.passes.fuse.views.views import is_view
from graphopt.pipeline.rules import Scope

_UNARY = frozenset({"Abs", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Neg"})
_UNARY |= {"Reciprocal", "Relu", "Selu", "Sigmoid", "Softplus", "Sqrt", "Tanh"}
_BINARY = frozenset({"Add", "Div", "Mul", "Pow", "Sub"})
_OVER_ROWS = frozenset({"LayerNormalization", "LogSoftmax", "RMSNormalization", "Softmax"})


@dataclass(frozen=True, eq=False)
class Member:
    """A node of a stream.

    Attributes:
        node: the node; its first output is of the stream.
        streams: which of its inputs are.
    """

    node: gs.Node
    streams: tuple[int, ...]


@dataclass(eq=False)
class Stream:
    """Connected nodes over tensors ``[*lead, C]``.

    Attributes:
        facts: what is known of dimensions.
        lead: the leading dimensions.
        members: in topological order.
        entries: tensors that members read and none of them computes, in topological order.
        exits: tensors that others read (or that are graph outputs), each with those others.
    """

    facts: ShapeFacts
    lead: Sizes
    members: list[Member] = field(default_factory=list)
    entries: list[gs.Tensor] = field(default_factory=list)
    exits: list[tuple[gs.Tensor, list[gs.Node]]] = field(default_factory=list)
    _biased: dict[int, gs.Node] = field(default_factory=dict)
    _with_bias: set[int] = field(default_factory=set)

    @property
    def matmuls(self) -> int:
        """How many products by constant matrices there are."""
        return sum(member.node.op == "MatMul" for member in self.members)

    def width(self, tensor: gs.Tensor) -> int:
        """The last dimension, C."""
        sizes = self.facts.dims(tensor)
        last = sizes[-1] if sizes else None
        assert isinstance(last, int)
        return last

    def close(self, position: dict[int, int]) -> None:
        """Find out where the stream begins and ends, and which products have a bias of their own."""
        scope = self.facts.scope
        inside = {id(member.node) for member in self.members}
        made = {id(member.node.outputs[0]) for member in self.members}
        entries = {id(t): t for m in self.members for t in (m.node.inputs[k] for k in m.streams) if id(t) not in made}
        self.entries = sorted(entries.values(), key=lambda t: _place(t, position, scope))
        for member in self.members:
            result = member.node.outputs[0]
            users = scope.editor.consumers(result)
            others = [user for user in users if id(user) not in inside]
            if others or scope.editor.is_output(result):
                self.exits.append((result, others))
            elif member.node.op == "MatMul" and len(users) == 1 and _is_bias(users[0], result, self):
                self._biased[id(users[0])] = member.node
                self._with_bias.add(id(member.node))

    def is_biased(self, member: Member) -> bool:
        """Whether a member is a product that its bias makes part of a Gemm."""
        return id(member.node) in self._with_bias

    def product_of(self, member: Member) -> gs.Node | None:
        """The product that a member adds a bias to, where both become a Gemm."""
        return self._biased.get(id(member.node))

    def absorbs(self, user: gs.Node, tensor: gs.Tensor) -> bool:
        """Whether a reader of the stream is a view that can start from the matrix."""
        return self.tail(user, tensor) is not None

    def tail(self, user: gs.Node, tensor: gs.Tensor) -> tuple[int, ...] | None:
        """What a view puts behind the leading dimensions; ``None`` for other readers."""
        scope = self.facts.scope
        if not is_view(user) or user.inputs[0] is not tensor or not scope.selection.allows(user):
            return None
        if getattr(user, "home", None) is not getattr(self.members[0].node, "home", None):
            return None
        sizes, count = self.facts.dims(user.outputs[0]), len(self.lead)
        if sizes is None or sizes[:count] != self.lead:
            return None
        tail = tuple(size for size in sizes[count:] if isinstance(size, int) and size > 0)
        return tail if len(tail) == len(sizes) - count else None


def _place(tensor: gs.Tensor, position: dict[int, int], scope: Scope) -> int:
    producer = scope.editor.producer(tensor)
    return -1 if producer is None else position.get(id(producer), -1)


def _is_bias(node: gs.Node, product: gs.Tensor, stream: Stream) -> bool:
    if node.op != "Add":
        return False
    other = node.inputs[1] if node.inputs[0] is product else node.inputs[0]
    value = stream.facts.scope.editor.constant(other)
    return value is not None and value.size == stream.width(product) and stream.width(node.outputs[0]) == value.size


def find_streams(facts: ShapeFacts) -> list[Stream]:
    """All streams, in the order in which they begin; some may hold no product at all."""
    joined = _Union()
    members: list[tuple[Member, Sizes]] = []
    for node in facts.order:
        found = None if id(node) in facts.scope.removed else _member(node, facts)
        if found is None:
            continue
        result = node.outputs[0]
        members.append((found, (facts.dims(result) or ())[:-1]))
        for place in found.streams:
            joined.join(id(result), id(node.inputs[place]))
    streams: dict[int, Stream] = {}
    for member, lead in members:
        root = joined.root(id(member.node.outputs[0]))
        streams.setdefault(root, Stream(facts, lead)).members.append(member)
    position = {id(node): place for place, node in enumerate(facts.order)}
    for stream in streams.values():
        stream.close(position)
    return list(streams.values())


def _member(node: gs.Node, facts: ShapeFacts) -> Member | None:
    scope = facts.scope
    if not in_standard_domain(node) or not scope.may_rewrite(node) or len(node.outputs) == 0:
        return None
    if any(scope.used(extra) for extra in list(node.outputs)[1:]):
        return None
    if node.op == "MatMul":
        places: tuple[int, ...] | None = _product(node, scope)
    elif node.op in _UNARY and len(node.inputs) == 1:
        places = (0,)
    elif node.op in _OVER_ROWS:
        places = _over_rows(node, facts)
    else:
        places = _arithmetic(node, facts) if node.op in _BINARY and len(node.inputs) == 2 else None
    if not places:
        return None
    tensors = [node.outputs[0], *(node.inputs[place] for place in places)]
    return Member(node, places) if _same_rows(tensors, facts) else None


def _same_rows(tensors: list[gs.Tensor], facts: ShapeFacts) -> bool:
    """Whether all are float32, of rank ≥ 3, with rows of a known size, and of the same leading dimensions."""
    lead = (facts.dims(tensors[0]) or ())[:-1]
    for tensor in tensors:
        sizes, dtype = facts.dims(tensor), facts.scope.model.dtype_of(tensor)
        if sizes is None or len(sizes) < 3 or sizes[:-1] != lead or dtype != np.float32:
            return False
        if not (isinstance(sizes[-1], int) and sizes[-1] > 0):
            return False
    return True


def _product(node: gs.Node, scope: Scope) -> tuple[int, ...] | None:
    weight = scope.constant(node, 1)
    return (0,) if weight is not None and weight.ndim == 2 and scope.constant(node, 0) is None else None


def _over_rows(node: gs.Node, facts: ShapeFacts) -> tuple[int, ...] | None:
    sizes = facts.dims(node.inputs[0])
    default = 1 if node.op.endswith("Softmax") and facts.scope.model.opset < 13 else -1
    axis = int(node.attrs.get("axis", default))
    if sizes is None or axis not in (-1, len(sizes) - 1):
        return None
    parameters = [facts.scope.constant(node, place) for place in range(1, len(node.inputs))]
    known = [value for value in parameters if value is not None and value.ndim <= 1]
    return (0,) if len(known) == len(parameters) else None


def _arithmetic(node: gs.Node, facts: ShapeFacts) -> tuple[int, ...] | None:
    sizes = facts.dims(node.outputs[0])
    if sizes is None or facts.scope.model.opset < 7:
        return None
    places = []
    for place, tensor in enumerate(node.inputs):
        value = facts.scope.editor.constant(tensor)
        if value is None:
            places.append(place)
        elif value.ndim > len(sizes) or value.size != (value.shape[-1] if value.ndim else 1):
            return None
    return tuple(places)


class _Union:
    """Disjoint sets of keys (Tarjan, 1975: union with path compression)."""

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}

    def root(self, key: int) -> int:
        path = []
        while (parent := self._parent.setdefault(key, key)) != key:
            path.append(key)
            key = parent
        for passed in path:
            self._parent[passed] = key
        return key

    def join(self, one: int, other: int) -> None:
        self._parent[self.root(one)] = self.root(other)
