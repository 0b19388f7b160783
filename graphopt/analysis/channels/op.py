"""What a rule sees of one operator, and what the solver records about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.analysis.channels.factors import Atoms, Expr, Mismatch, Sum
from graphopt.analysis.channels.values import Value, as_int, elements, lift, lower
from graphopt.model.model import Model

Array = npt.NDArray[Any]


class Unknown(Exception):
    """The rule cannot say anything about this operator; the message is the reason."""


@dataclass(frozen=True, eq=False)
class Use:
    """One use of a constant by one node.

    Attributes:
        node: the consumer.
        index: which of its inputs.
        value: the constant, read-only.
        axes: what each axis is made of.
        columns: axes that the node sums over: the weight's input side.
        zeroed: whether masking sets removed entries of the other axes to zero.
    """

    node: gs.Node
    index: int
    value: Array
    axes: list[Expr]
    columns: set[int] = field(default_factory=set)
    zeroed: list[bool] = field(default_factory=lambda: [True])


@dataclass(frozen=True, eq=False)
class Contraction:
    """A sum over an axis: ``Σ_c x[c]·w[c]``.

    Attributes:
        node: the operator.
        expr: the axis summed over.
        data: input index of the activation (the first of two, where both are activations).
        weight: input index of the constant, or ``None`` where both operands are activations.
        bias: input index where a bias can stand, or ``None`` where the operator takes none.
        uniform: every output position sums the same entries (no zero padding, one group), so that a constant in a
            removed channel is exactly a bias.
    """

    node: gs.Node
    expr: Expr
    data: int
    weight: int | None
    bias: int | None
    uniform: bool


@dataclass(frozen=True, eq=False)
class SizeEdit:
    """Numbers in an attribute or a constant that are sizes of axes.

    Attributes:
        node: the operator.
        target: input index of the int64 constant, or name of the attribute.
        template: numbers that stay, and axes whose remaining size is to be written.
        scalar: the attribute is one number, not a list.
        drop: an attribute that contradicts the new numbers and is removed with the edit.
    """

    node: gs.Node
    target: int | str
    template: tuple[int | Expr, ...]
    scalar: bool = False
    drop: str = ""


@dataclass(frozen=True, eq=False)
class Pick:
    """Constant indices that name channels of one axis and lay them out on another.

    Attributes:
        node: the operator; the indices are its second input.
        source: the axis picked from.
        picked: the axis that comes out, of the same factors.
    """

    node: gs.Node
    source: Expr
    picked: Expr


@dataclass
class Facts:
    """All that linking a model gathers.

    Attributes:
        atoms: the factor algebra.
        tensors: name → axes, for every tensor that a node computes or the graph is fed with.
        uses: (id of node, input index) → use of a constant.
        values: name → value, for small integer tensors.
        contractions: every sum over channels.
        edits: every number that is a channel count.
        picks: every list of indices that names channels.
        candidates: (node, axis) a user would expect to be cut: output channels of a weight.
    """

    model: Model
    atoms: Atoms = field(default_factory=Atoms)
    tensors: dict[str, list[Expr]] = field(default_factory=dict)
    uses: dict[tuple[int, int], Use] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)
    contractions: list[Contraction] = field(default_factory=list)
    edits: list[SizeEdit] = field(default_factory=list)
    picks: list[Pick] = field(default_factory=list)
    candidates: list[tuple[gs.Node, Expr]] = field(default_factory=list)


class Op:
    """One operator, as a rule sees it. Input and output numbers are the ONNX operator's."""

    def __init__(self, facts: Facts, node: gs.Node) -> None:
        self.facts = facts
        self.atoms = facts.atoms
        self.node = node
        self.where = node.name or f"{node.op} → {node.outputs[0].name}"

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute as a Python value."""
        value = self.node.attrs.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def has(self, index: int) -> bool:
        """Whether the input is there."""
        return index < len(self.node.inputs) and not self.node.inputs[index].is_empty()

    def use(self, index: int) -> Use | None:
        """The input's constant, or ``None``: an activation."""
        return self.facts.uses.get((id(self.node), index))

    def axes(self, index: int) -> list[Expr]:
        """The axes of an input.

        Raises:
            Unknown: its rank is not known.
        """
        use = self.use(index)
        if use is not None:
            return use.axes
        found = self.facts.tensors.get(self.node.inputs[index].name)
        if found is None:
            raise Unknown(f"the shape of {self.node.inputs[index].name} is not known")
        return found

    def size(self, expr: Expr) -> int | None:
        """Elements along an axis."""
        return self.atoms.size(expr)

    def fixed(self, expr: Expr) -> int:
        """Elements along an axis.

        Raises:
            Unknown: known only at run time.
        """
        size = self.atoms.size(expr)
        if size is None:
            raise Unknown(f"{self.where} takes channels whose number is known only at run time")
        return size

    def value(self, index: int) -> Value | None:
        """What a small integer input holds."""
        if not self.has(index):
            return None
        use = self.use(index)
        if use is not None and np.issubdtype(use.value.dtype, np.integer):
            return lift(use.value)
        return self.facts.values.get(self.node.inputs[index].name)

    def ints(self, index: int, attr: str = "") -> list[int] | None:
        """A list of numbers from an input or, in older opsets, an attribute; ``None``: absent or unknown."""
        if attr and self.attr(attr) is not None:
            given = self.attr(attr)
            return [int(v) for v in (given if isinstance(given, list | tuple) else [given])]
        value = self.value(index)
        if value is None:
            return None
        known = lower(value, self.atoms)
        return None if known is None else [int(v) for v in known.reshape(-1)]

    def element(self, value: Value, position: int) -> int | None:
        """One element of a value as a number."""
        return as_int(elements(value)[position], self.atoms)

    def out_shape(self, index: int = 0) -> tuple[int | str | None, ...] | None:
        """The inferred shape of an output."""
        return self.facts.model.shape_of(self.node.outputs[index])

    def fresh(self, axis: int, index: int = 0, reason: str = "") -> Expr:
        """A new output axis that can never be sliced, of the inferred size."""
        shape = self.out_shape(index)
        size = shape[axis] if shape is not None and axis < len(shape) else None
        expr = self.atoms.new(size if isinstance(size, int) and size > 0 else None)
        self.atoms.freeze(expr, reason or f"an axis that {self.where} computes")
        return expr

    def emit(self, axes: Sequence[Expr], index: int = 0) -> None:
        """Set the axes of an output."""
        if index < len(self.node.outputs) and not self.node.outputs[index].is_empty():
            self.facts.tensors[self.node.outputs[index].name] = list(axes)

    def same(self, left: Expr, right: Expr) -> None:
        """Make two axes equal."""
        self.atoms.unify(left, right, self.where)

    def freeze(self, expr: Expr, reason: str) -> None:
        """Never slice this axis."""
        self.atoms.freeze(expr, reason)

    def freeze_all(self, axes: Sequence[Expr], reason: str) -> None:
        """Never slice these axes."""
        for expr in axes:
            self.atoms.freeze(expr, reason)

    def cut(self, expr: Expr, sizes: Sequence[int]) -> list[Expr]:
        """Cut an axis into consecutive pieces.

        Raises:
            Unknown: the cuts do not fall between whole channels.
        """
        pieces = []
        try:
            for size in sizes[:-1]:
                head, expr = self.atoms.cut(expr, size)
                pieces.append(head)
        except Mismatch:
            raise Unknown(f"{self.where} cuts the axis inside a block of channels") from None
        return [*pieces, expr]

    def contract(
        self, expr: Expr, data: int, weight: int | None, axis: int = 0, *, bias: int | None = None, uniform: bool = True
    ) -> None:
        """Record a sum over ``expr``; ``axis`` is the weight's axis summed over."""
        use = None if weight is None else self.use(weight)
        if use is not None:
            use.columns.add(axis % len(use.axes))
        found = None if use is None else weight
        self.facts.contractions.append(Contraction(self.node, expr, data, found, bias, uniform))

    def candidate(self, expr: Expr) -> None:
        """Record output channels of a weight."""
        self.facts.candidates.append((self.node, expr))

    def keep_values(self, index: int) -> None:
        """Masking leaves this constant as it is (a divisor, a variance, a slope)."""
        use = self.use(index)
        if use is not None:
            use.zeroed[0] = False

    def edit(self, target: int | str, template: Sequence[int | Expr], *, scalar: bool = False, drop: str = "") -> None:
        """Record numbers that are channel counts."""
        self.facts.edits.append(SizeEdit(self.node, target, tuple(template), scalar, drop))

    def pick(self, source: Expr, picked: Expr) -> None:
        """Record constant indices, the second input, that follow the channels they name: no channels themselves."""
        del self.facts.uses[id(self.node), 1]
        self.facts.picks.append(Pick(self.node, source, picked))


def total(parts: Sequence[Expr]) -> Expr:
    """The axes laid end to end."""
    return (Sum(tuple(parts)),) if parts else ()
