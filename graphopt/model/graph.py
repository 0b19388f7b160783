"""The editing view: onnx-graphsurgeon's classes, made safe to use.

Nodes and tensors compare by identity (in gs they compare by value, deeply, which makes unlinking quadratic), and the
graph refuses the gs calls that were measured to be quadratic, recursive or wrong. What gs has no place for hangs on
the graph: the source's declarations, unused initializers and defaults of inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.errors import PassError
from graphopt.model.weights import TensorRecord

Shape = tuple[int | str | None, ...]


class EditVariable(gs.Variable):  # type: ignore[misc]
    """A computed tensor or a graph input. Compares by identity.

    Attributes:
        home: the graph that computes it, or whose input it is.
        inferred: of a graph output, the inferred ``(dtype, shape)``: ``dtype`` and ``shape`` hold its declaration.
    """

    __eq__ = object.__eq__
    __hash__ = object.__hash__
    home: EditGraph | None = None
    inferred: tuple[np.dtype[Any] | None, list[int | str | None] | None] | None = None

    def to_constant(self, *_: Any, **__: Any) -> NoReturn:
        """Refused: replace the uses by ``editor.add_constant`` instead."""
        raise _forbidden("to_constant", "it changes the tensor's class under everyone who holds it")


class EditConstant(gs.Constant):  # type: ignore[misc]
    """An initializer; its array is read-only. Compares by identity.

    Attributes:
        record: the source's form of it, for an exact round trip.
        home: the graph that owns it; ``None`` until export for a new one.
    """

    __eq__ = object.__eq__
    __hash__ = object.__hash__
    record: TensorRecord | None = None
    home: EditGraph | None = None

    def to_variable(self, *_: Any, **__: Any) -> NoReturn:
        """Refused: replace the uses instead."""
        raise _forbidden("to_variable", "it changes the tensor's class under everyone who holds it")


@dataclass(frozen=True, eq=False)
class AttributeRecord:
    """One attribute as the source has it.

    Attributes:
        proto: the attribute; a subgraph's content is left out.
        value: what the editing view showed for it, immutable; while the view still shows that, export writes
            ``proto``.
        left: the tensor, where its bytes were left in a file (external data, or a large model file); ``proto`` lacks
            it then, and export writes it with its bytes inside.
    """

    proto: onnx.AttributeProto
    value: Any
    left: TensorRecord | None = None


@dataclass(frozen=True, eq=False)
class NodeRecord:
    """One node as the source has it.

    Attributes:
        proto: the node without its attributes.
        attributes: in source order.
        name: the unique name the editing view gave it.
    """

    proto: onnx.NodeProto
    attributes: tuple[AttributeRecord, ...]
    name: str


@dataclass(frozen=True)
class RawAttribute:
    """An attribute of a kind that gs has no value for (types, sparse tensors, tensor lists); carried, not edited."""

    proto: onnx.AttributeProto


class EditNode(gs.Node):  # type: ignore[misc]
    """A node. Compares by identity.

    Attributes:
        record: the source's form of it; ``None`` for a new node.
        home: the graph it belongs to.
    """

    __eq__ = object.__eq__
    __hash__ = object.__hash__
    record: NodeRecord | None = None
    home: EditGraph | None = None


@dataclass
class GraphEnvelope:
    """What a graph declares beside its nodes, kept by name from the source.

    Attributes:
        proto: name, docs, metadata and quantization annotations; everything else is empty.
        inputs: declarations of inputs, initializers listed among them included, in source order.
        outputs: declarations of outputs.
        values: declarations of inner values, in source order.
        constants: every initializer, used or not, in source order.
        defaults: default values of overridable inputs.
    """

    proto: onnx.GraphProto = field(default_factory=onnx.GraphProto)
    inputs: dict[str, onnx.ValueInfoProto] = field(default_factory=dict)
    outputs: dict[str, onnx.ValueInfoProto] = field(default_factory=dict)
    values: dict[str, onnx.ValueInfoProto] = field(default_factory=dict)
    constants: list[EditConstant] = field(default_factory=list)
    defaults: dict[str, EditConstant] = field(default_factory=dict)


class EditGraph(gs.Graph):  # type: ignore[misc]
    """A graph or a subgraph body.

    Attributes:
        envelope: what gs cannot hold.
        parent: the graph around a body; ``None`` at the top.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.envelope = GraphEnvelope()
        self.parent: EditGraph | None = None
        super().__init__(*args, **kwargs)

    def bodies(self) -> Iterator[EditGraph]:
        """The subgraphs of this graph's nodes, all levels, in node order."""
        stack: list[Iterator[EditGraph]] = [_direct_bodies(self)]
        while stack:
            body = next(stack[-1], None)
            if body is None:
                stack.pop()
            else:
                yield body
                stack.append(_direct_bodies(body))

    def cleanup(self, *_: Any, **__: Any) -> NoReturn:
        """Refused: ``model.finish()`` removes dead code in linear time."""
        raise _forbidden("cleanup", "it is quadratic with shared tensors; model.finish() removes dead code")

    def toposort(self, *_: Any, **__: Any) -> NoReturn:
        """Refused: ``model.finish()`` sorts and keeps a valid order."""
        raise _forbidden("toposort", "it recurses and re-orders valid graphs; model.finish() sorts")

    def fold_constants(self, *_: Any, **__: Any) -> NoReturn:
        """Refused: wrong results were measured (Shape with start, random nodes, If)."""
        raise _forbidden("fold_constants", "it gives wrong results; use the simplify pass")

    def layer(self, *_: Any, **__: Any) -> NoReturn:
        """Refused: ``editor.add_node`` adds nodes."""
        raise _forbidden("layer", "it is quadratic; use editor.add_node")

    def copy(self, *_: Any, **__: Any) -> NoReturn:
        """Refused: ``model.clone()`` copies."""
        raise _forbidden("copy", "it loses types and metadata; use model.clone()")


def _direct_bodies(graph: gs.Graph) -> Iterator[EditGraph]:
    for node in graph.nodes:
        yield from node_bodies(node)


def node_bodies(node: gs.Node) -> list[EditGraph]:
    """The subgraph bodies of one node, first level."""
    return [value for value in node.attrs.values() if isinstance(value, gs.Graph)]


def _forbidden(call: str, why: str) -> PassError:
    return PassError("GO-803", f"graph call {call}() is not allowed", why=why)


def tensor_shape(tensor: gs.Tensor) -> Shape | None:
    """A tensor's shape as inferred, symbols as text, unknown dimensions as ``None``.

    As declared where nothing can be inferred (what custom operators compute); never what an output is declared to be.
    """
    inferred = getattr(tensor, "inferred", None)
    shape = tensor.shape if inferred is None else inferred[1]
    return None if shape is None else tuple(shape)


def tensor_dtype(tensor: gs.Tensor) -> np.dtype[Any] | None:
    """A tensor's element type (``object`` for strings); ``None`` where unknown or not a tensor."""
    inferred = getattr(tensor, "inferred", None)
    dtype = tensor.dtype if inferred is None or inferred[0] is None else inferred[0]
    return None if dtype is None else np.dtype(dtype)
