"""Rewrite rules: what a rule is, and what it works with; `simplify` and `fuse` are made of them.

A rule looks at one node and either rewrites there (a ``Site``), explains a near miss worth reading (a
``Skip``), or has nothing to say (``None``). It edits through its ``Scope`` only, which keeps the work list:
whatever lies next to an edit is looked at again. Every rewrite uses up its own pattern and leaves no other rule's
behind for ever, so that the work ends. What needs the whole graph at once (equal subexpressions, a form of the
residual stream) is a ``GraphRule``.
"""

from __future__ import annotations

import abc
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.errors import ModelError
from graphopt.model.domains import in_standard_domain
from graphopt.model.editor import GraphEditor
from graphopt.model.model import Model
from graphopt.pipeline.contract import Json, Safety, Site, Skip
from graphopt.pipeline.operators import is_whole
from graphopt.pipeline.selection import Selection
from graphopt.runtime.target import Target

Array = npt.NDArray[Any]
Dims = tuple[int | str | None, ...]

PACKING = frozenset({"Attention", "Conv", "ConvTranspose", "DeformConv", "GRU", "Gemm", "LSTM", "MatMul", "RNN"})
"""Operators whose kernels lay out a constant weight ahead of time and then may sum in another order."""


@dataclass
class Limits:
    """How much constant folding may add to the file; shared by the folding rules of one run.

    Attributes:
        node: most bytes that one fold may add.
        total: most bytes that all folds together may add: a stop for models made to explode, far beyond real ones.
        added: bytes added so far; a fold that frees its inputs may lower it.
    """

    node: int
    total: int = 64 << 20
    added: int = 0

    def refusal(self, growth: int) -> str | None:
        """Why ``growth`` more bytes (may be negative) are too many, or ``None``."""
        if growth <= 0:
            return None
        if growth > self.node:
            return f"its value would add {growth} bytes to the file, more than max_fold_bytes = {self.node}"
        if self.added + growth > self.total:
            return f"all computed values together would add more than {self.total} bytes to the file"
        return None


@dataclass
class Scope:
    """The model under rewriting, as rules see it.

    Attributes:
        model: the candidate.
        selection: nodes the user lets the pass touch.
        limits: what folding may add.
        exact_only: not a bit may change.
        target: where the result will run.
        removed: nodes removed so far, by ``id``; they are held so that no new node gets their ``id``.
        touched: nodes to look at again.
        memory: what rules found out about the model and keep for each other, by its class; it must stay true while
            they rewrite.
    """

    model: Model
    selection: Selection
    limits: Limits
    exact_only: bool = False
    target: Target = field(default_factory=Target)
    removed: dict[int, gs.Node] = field(default_factory=dict)
    touched: list[gs.Node] = field(default_factory=list)
    memory: dict[type, Any] = field(default_factory=dict)
    _unreachable: dict[int, str] = field(default_factory=dict)

    @property
    def editor(self) -> GraphEditor:
        """The candidate's editor."""
        return self.model.editor

    def is_whole(self, node: gs.Node) -> bool:
        """Whether a node has what its operator must have, so that a rule can look into it; see ``operators``."""
        return not in_standard_domain(node) or is_whole(node, self.model.opset)

    def may_rewrite(self, node: gs.Node) -> bool:
        """Whether the user lets the pass touch a node, and rules can look into it."""
        return self.selection.allows(node) and self.is_whole(node)

    def producer(self, tensor: gs.Tensor) -> gs.Node | None:
        """The node that computes ``tensor``; ``None`` where none does, or rules cannot look into it."""
        node = self.editor.producer(tensor)
        return node if node is not None and self.is_whole(node) else None

    def input(self, node: gs.Node, index: int) -> gs.Tensor | None:
        """Input ``index``, or ``None`` where an optional input is left out."""
        if index >= len(node.inputs) or node.inputs[index].is_empty():
            return None
        return node.inputs[index]

    def constant(self, node: gs.Node, index: int) -> Array | None:
        """The value of input ``index`` where it is constant."""
        tensor = self.input(node, index)
        return None if tensor is None else self.editor.constant(tensor)

    def ints(self, node: gs.Node, index: int, attribute: str | None = None) -> tuple[int, ...] | None:
        """A constant list of integers that is an input, or an attribute as in older operator sets."""
        if attribute is not None and attribute in node.attrs:
            return tuple(int(v) for v in node.attrs[attribute])
        value = self.constant(node, index)
        return None if value is None else tuple(int(v) for v in value.reshape(-1))

    def shape(self, tensor: gs.Tensor | None) -> Dims | None:
        """The inferred shape; ``None`` where not even the rank is known."""
        return None if tensor is None else self.model.shape_of(tensor)

    def used(self, tensor: gs.Tensor) -> bool:
        """Whether any node or graph output takes ``tensor``."""
        return bool(self.editor.consumers(tensor)) or self.editor.is_output(tensor)

    def only_user(self, tensor: gs.Tensor, node: gs.Node) -> bool:
        """Whether ``node`` alone takes ``tensor``, which is not a graph output."""
        return all(user is node for user in self.editor.consumers(tensor)) and not self.editor.is_output(tensor)

    def may_become_constant(self, tensor: gs.Tensor) -> bool:
        """Whether ``tensor`` may turn into an initializer.

        A weight that was computed and is now constant gets packed by its kernel: measured, a relative difference of
        4e-7 from folding the Reshape of a MatMul's weight. With ``exact_only`` such weights stay computed.
        """
        if not self.exact_only or getattr(self.model.dtype_of(tensor), "kind", "f") in "biu":
            return True
        packed = any(user.op in PACKING for user in self.editor.consumers(tensor))
        return not packed and self._rounds_at_each_node(tensor)

    def _rounds_at_each_node(self, tensor: gs.Tensor) -> bool:
        """Whether taking a node out cannot take a rounding with it, as far as ``exact_only`` asks.

        Where onnxruntime has no float16 kernel it computes in float32 and keeps that from one such node to the next:
        taking away the node between them (or computing one of them beforehand) changes where values are rounded.
        """
        if not self.exact_only:
            return True
        return getattr(self.model.dtype_of(tensor), "name", "unknown") not in ("float16", "bfloat16", "unknown")

    def can_bypass(self, node: gs.Node, index: int = 0) -> bool:
        """Whether output 0 can be replaced by input ``index`` with every graph output keeping its name."""
        source, result = node.inputs[index], node.outputs[0]
        if source.is_empty() or any(self.used(extra) for extra in node.outputs[1:]):
            return False
        becomes_constant = isinstance(source, gs.Constant)
        if not (self.may_become_constant(result) if becomes_constant else self._rounds_at_each_node(result)):
            return False
        if not self.editor.is_output(result):
            return True
        fixed = self.editor.is_input(source) or self.editor.is_output(source)
        return self.editor.producer(source) is not None and not fixed

    def remove_dead_code(self) -> None:
        """Remove what no output needs, so that a dead user never counts as another user."""
        held = self.editor.nodes()
        if self.editor.remove_dead_code():
            alive = {id(node) for node in self.editor.nodes()}
            self.removed.update((id(node), node) for node in held if id(node) not in alive)

    def bypass(self, node: gs.Node, index: int = 0) -> None:
        """Let the users of output 0 take input ``index``, and remove the node."""
        self._touch_around(node)
        self.editor.bypass(node, index)
        self._gone(node)

    def remove(self, node: gs.Node) -> None:
        """Remove a node that nobody uses, or whose outputs have got another producer."""
        self._touch_around(node)
        self.editor.remove_node(node)
        self._gone(node)

    def become_constant(self, node: gs.Node, values: Sequence[Array | None]) -> None:
        """Replace a node by the values of its outputs (``None``: an output that is left out)."""
        self._touch_around(node)
        for tensor, value in zip(list(node.outputs), values, strict=True):
            if value is not None:
                self.editor.replace_uses(tensor, self.editor.add_constant(tensor.name, value))
        self.editor.remove_node(node)
        self._gone(node)

    def touch(self, nodes: Collection[gs.Node]) -> None:
        """Have ``nodes`` looked at again."""
        self.touched.extend(nodes)

    def reach_opset(self, version: int) -> str | None:
        """Raise the standard opset to at least ``version``, or say why that cannot be; then nothing has changed.

        Adapters edit nodes in place, so the nodes that a rule holds stay the model's.
        """
        if self.model.opset >= version:
            return None
        if version not in self._unreachable:
            try:
                # A node without an adapter is met half-way: the trial on a clone keeps the model whole.
                self.model.clone().raise_opset(version)
            except ModelError as error:
                self._unreachable[version] = f"needs opset {version}: {error.what}"
            else:
                self.model.raise_opset(version)
                return None
        return self._unreachable[version]

    def _gone(self, node: gs.Node) -> None:
        self.removed[id(node)] = node

    def _touch_around(self, node: gs.Node) -> None:
        self.touched.extend(self._around(node))

    def _around(self, node: gs.Node) -> Iterator[gs.Node]:
        for tensor in node.inputs:
            producer = None if tensor.is_empty() else self.editor.producer(tensor)
            if producer is not None:
                yield producer
        for tensor in node.outputs:
            yield from self.editor.consumers(tensor)


class Rule(abc.ABC):
    """One rewrite rule; its docstring states pattern, conditions, proof and refusals.

    Class attributes:
        name: how reports and options call it.
        safety: EXACT or ROUNDING.
        ops: op types of the standard domain that it looks at; ``None``: every node of every domain.
    """

    name: ClassVar[str]
    safety: ClassVar[Safety]
    ops: ClassVar[frozenset[str] | None]

    @abc.abstractmethod
    def apply(self, node: gs.Node, scope: Scope) -> Site | Skip | None:
        """Rewrite at ``node``, or say why not where a reader would ask."""

    def site(self, node: gs.Node, what: str, **figures: Json) -> Site:
        """A place this rule changed."""
        return Site(label(node), what, self.name, figures)

    def skip(self, node: gs.Node, reason: str) -> Skip:
        """A place this rule left alone."""
        return Skip(label(node), reason, self.name)


class GraphRule(abc.ABC):
    """A rewrite that looks at the whole graph at once; its docstring states pattern, conditions, proof and refusals.

    Class attributes:
        name: how reports and options call it.
        safety: EXACT or ROUNDING.
    """

    name: ClassVar[str]
    safety: ClassVar[Safety]

    @abc.abstractmethod
    def apply(self, scope: Scope) -> tuple[list[Site], list[Skip]]:
        """Rewrite wherever it fits; on what it left itself, it must find nothing more to do."""

    def site(self, node: gs.Node, what: str, **figures: Json) -> Site:
        """A place this rule changed."""
        return Site(label(node), what, self.name, figures)

    def skip(self, node: gs.Node, reason: str) -> Skip:
        """A place this rule left alone."""
        return Skip(label(node), reason, self.name)


def label(node: gs.Node) -> str:
    """What reports call a node: its name, or its first output's where it has none."""
    return str(node.name or (node.outputs[0].name if len(node.outputs) else node.op))


def static(shape: Dims | None) -> tuple[int, ...] | None:
    """``shape`` where every dimension is a number."""
    if shape is None:
        return None
    numbers = tuple(d for d in shape if isinstance(d, int))
    return numbers if len(numbers) == len(shape) else None


def fits_into(small: Sequence[int], shape: Dims | None) -> bool:
    """Whether broadcasting a constant of shape ``small`` against ``shape`` provably gives ``shape``."""
    if len(small) == 0:
        return True
    if shape is None or len(small) > len(shape):
        return False
    return all(d == 1 or d == other for d, other in zip(reversed(small), reversed(shape), strict=False))


def is_filled(value: Array, number: float) -> bool:
    """Whether ``value`` holds ``number`` everywhere, and holds anything."""
    if value.size == 0 or value.dtype.kind not in "fiu":
        return False
    # One look at the first element spares reading a whole weight tensor.
    return bool(value.flat[0] == number and np.all(value == number))
