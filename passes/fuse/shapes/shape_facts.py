"""What every run agrees on about dimensions and about the values of small integer tensors; shared by rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.model.domains import in_standard_domain
from graphopt.passes.fuse.order import nodes_in_order
from graphopt.passes.fuse.shapes.shape_dims import DIMS
from graphopt.passes.fuse.shapes.shape_values import VALUES
from graphopt.passes.fuse.shapes.symbols import Algebra, Term
from graphopt.pipeline.rules import Scope

Sizes = tuple[Term, ...]
Elements = npt.NDArray[Any]
"""An array of objects: a ``Term`` per element of an integer tensor, a bool or ``None`` per element of a boolean one."""

MOST_ELEMENTS = 64
OLDEST = 7
"""Before this operator set broadcasting was an attribute."""
_LIMITS = {"int32": 2**31, "int64": 2**63, "bool": 2}


Found = TypeVar("Found")


def _guarded(carry: Callable[[gs.Node, ShapeFacts], Found] | None, node: gs.Node, facts: ShapeFacts) -> Found | None:
    """What ``carry`` says about a node; nothing where the node contradicts itself, which no runtime would run."""
    try:
        return None if carry is None else carry(node, facts)
    except (IndexError, ValueError):
        return None


class ShapeFacts:
    """Symbolic dimensions and values, propagated in topological order.

    A dimension that is no number is a symbol of the tensor and axis it comes from; operators carry symbols on where
    their definition says that the dimension is the same. Names of dimensions, declared or inferred, count for
    nothing: two inputs that both call a dimension "batch" need not agree on it. Facts stay true while a model is
    rewritten, since its tensors keep their values; nodes that are new are looked at when asked for again.
    """

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.algebra: Algebra = Algebra()
        self._dims: dict[int, Sizes | None] = {}
        self._values: dict[int, Elements | None] = {}
        self._numbers: dict[int, int] = {}
        self._held: list[gs.Tensor] = []
        self._seen: dict[int, gs.Node] = {}

    @classmethod
    def of(cls, scope: Scope) -> ShapeFacts:
        """The facts of a scope's model, up to date."""
        facts: ShapeFacts = scope.memory.get(cls) or cls(scope)
        scope.memory[cls] = facts
        facts._update()
        return facts

    def _update(self) -> None:
        self.order = nodes_in_order(self.scope)
        for node in self.order:
            if id(node) in self._seen:
                continue
            self._seen[id(node)] = node
            known = in_standard_domain(node) and self.scope.model.opset >= OLDEST and self.scope.is_whole(node)
            self._note(node, DIMS.get(node.op) if known else None, VALUES.get(node.op) if known else None)

    def _note(
        self,
        node: gs.Node,
        dims: Callable[[gs.Node, ShapeFacts], list[list[Term | None] | None]] | None,
        value: Callable[[gs.Node, ShapeFacts], Elements | None] | None,
    ) -> None:
        found = _guarded(dims, node, self) or []
        for place, tensor in enumerate(node.outputs):
            if not tensor.is_empty():
                self._set_dims(tensor, found[place] if place < len(found) else None)
        if value is not None and len(node.outputs) and self._is_shape_like(node.outputs[0]):
            elements = _guarded(value, node, self)
            if elements is not None and elements.size <= MOST_ELEMENTS and self._fits(elements, node.outputs[0]):
                self._values[id(node.outputs[0])] = elements

    def number(self, tensor: gs.Tensor) -> int:
        """A number that stands for a tensor in keys of symbols."""
        if id(tensor) not in self._numbers:
            self._numbers[id(tensor)] = len(self._held)
            self._held.append(tensor)  # else a later tensor may get its id
        return self._numbers[id(tensor)]

    def dims(self, tensor: gs.Tensor) -> Sizes | None:
        """The dimensions of a tensor; ``None`` where not even their number is known."""
        if id(tensor) not in self._dims:
            self._set_dims(tensor, None)
        return self._dims[id(tensor)]

    def _set_dims(self, tensor: gs.Tensor, found: Sequence[Term | None] | None) -> None:
        number = self.number(tensor)
        if isinstance(tensor, gs.Constant):
            self._dims[id(tensor)] = tuple(int(size) for size in tensor.shape)
            return
        inferred = self.scope.shape(tensor)
        if inferred is None and found is None:
            self._dims[id(tensor)] = None
            return
        rank = len(inferred) if inferred is not None else len(found or ())
        carried = found if found is not None and len(found) == rank else [None] * rank
        sizes = inferred if inferred is not None else [None] * rank
        self._dims[id(tensor)] = tuple(
            size if isinstance(size, int) else self.algebra.symbol((number, axis), count=True) if term is None else term
            for axis, (size, term) in enumerate(zip(sizes, carried, strict=True))
        )

    def value(self, tensor: gs.Tensor) -> Elements | None:
        """The elements of a small integer tensor (or boolean one, computed from such); ``None`` for other tensors.

        Elements that nothing is known of are symbols of their own.
        """
        if id(tensor) not in self._values:
            self._values[id(tensor)] = self._unknown(tensor)
        return self._values[id(tensor)]

    def _unknown(self, tensor: gs.Tensor) -> Elements | None:
        number, constant = self.number(tensor), self.scope.editor.constant(tensor)
        if constant is not None:
            small = constant.dtype.kind in "ib" and constant.size <= MOST_ELEMENTS
            return constant.astype(object) if small else None
        sizes = self.dims(tensor)
        if sizes is None or not self._is_shape_like(tensor) or self._kind(tensor) == "bool":
            return None
        fixed = [size for size in sizes if isinstance(size, int)]
        if len(fixed) != len(sizes) or np.prod(fixed, dtype=np.float64) > MOST_ELEMENTS:
            return None
        elements = np.empty(fixed, object)
        for place in range(elements.size):
            elements.flat[place] = self.algebra.symbol((number, "element", place))
        return elements

    def _kind(self, tensor: gs.Tensor) -> str:
        return str(getattr(self.scope.model.dtype_of(tensor), "name", ""))

    def _is_shape_like(self, tensor: gs.Tensor) -> bool:
        return self._kind(tensor) in _LIMITS

    def _fits(self, elements: Elements, tensor: gs.Tensor) -> bool:
        limit = _LIMITS[self._kind(tensor)]
        return all(-limit <= e < limit for e in elements.flat if isinstance(e, int))

    def ints(self, tensor: gs.Tensor | None) -> list[int] | None:
        """The elements of a tensor, flat, where all are numbers."""
        elements = None if tensor is None else self.value(tensor)
        if elements is None or not all(isinstance(e, int) for e in elements.flat):
            return None
        return [int(e) for e in elements.flat]
