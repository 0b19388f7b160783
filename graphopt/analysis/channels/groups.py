"""Dependency groups: sets of channels, over all weights that hold them, that can only be removed together."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from graphopt.analysis.channels.factors import Expr, Indices, Sum
from graphopt.analysis.channels.linear import UNKNOWN
from graphopt.analysis.channels.op import Contraction, Facts, Op, Use
from graphopt.analysis.channels.table import RULES

Kept = Mapping[int, Indices]
"""Group number → ascending channel indices that stay; a group that is not listed stays whole."""


@dataclass(frozen=True, eq=False)
class Member:
    """One axis of one constant that holds the group's channels.

    Attributes:
        use: the constant and its consumer.
        axis: which axis.
        column: the consumer sums over the axis (the input side of a weight).
    """

    use: Use
    axis: int
    column: bool


@dataclass(frozen=True)
class Fold:
    """A masked channel that arrives at a consumer as a constant other than zero: that belongs into its bias.

    Attributes:
        contraction: where the channel is summed.
        constant: the value it arrives with.
    """

    contraction: Contraction
    constant: float


@dataclass(frozen=True, eq=False)
class Group:
    """Channels that can be removed, each by itself, from everywhere.

    Attributes:
        number: the group's atom; key of a ``Kept``.
        name: name of the first node that produces the channels.
        size: number of channels.
        members: every weight axis that holds them, in graph order.
        consumers: every sum over them, in graph order.
        folds: constants that removed channels leave behind.
        axes: the whole axes that the channels are part of; more than one group may share an axis.
        residual: two activations that hold the channels are added.
    """

    number: int
    name: str
    size: int
    members: tuple[Member, ...]
    consumers: tuple[Contraction, ...]
    folds: tuple[Fold, ...]
    axes: tuple[Expr, ...]
    residual: bool

    def nodes(self) -> list[gs.Node]:
        """The nodes whose weights shrink, in graph order, each once."""
        seen: dict[int, gs.Node] = {}
        for member in self.members:
            seen.setdefault(id(member.use.node), member.use.node)
        return list(seen.values())


@dataclass(frozen=True)
class Whole:
    """Output channels of a weight that stay, and why."""

    node: gs.Node
    size: int
    reason: str


@dataclass(frozen=True)
class Channels:
    """The channel structure of one model.

    Attributes:
        groups: what can be cut, in graph order.
        whole: what cannot, with reasons, in graph order.
        facts: the ties behind both; its nodes are those of the model that was analysed.
    """

    groups: tuple[Group, ...]
    whole: tuple[Whole, ...]
    facts: Facts

    def labels(self, member: Member, number: int) -> Indices:
        """For each entry of the member's axis, the group's channel there or -1: int64 [size]."""
        return self.facts.atoms.labels(member.use.axes[member.axis], number)

    def repeats(self, expr: Expr, number: int) -> int:
        """How many entries of an axis each channel of the group takes."""
        return int((self.facts.atoms.labels(expr, number) == 0).sum())

    def remaining(self, expr: Expr, kept: Kept) -> Indices:
        """Which entries of an axis remain: int64, ascending within each group."""
        return self.facts.atoms.indices(expr, kept)


def collect(facts: Facts) -> Channels:
    """Form the groups of a linked model."""
    _freeze_repeats(facts)
    members = _members(facts)
    consumers: dict[int, list[Contraction]] = defaultdict(list)
    for contraction in facts.contractions:
        for atom in dict.fromkeys(facts.atoms.leaves(contraction.expr)):
            consumers[atom].append(contraction)
    holders: dict[int, set[str]] = defaultdict(set)
    for name, axes in facts.tensors.items():
        for expr in axes:
            for atom in facts.atoms.leaves(expr):
                holders[atom].add(name)
    groups: list[Group] = []
    reasons: dict[int, str] = {}
    order = {id(node): i for i, node in enumerate(facts.model.editor.nodes())}
    for atom in sorted(members, key=lambda a: order[id(members[a][0].use.node)]):
        found = _group(facts, atom, members[atom], consumers[atom], holders[atom])
        if isinstance(found, Group):
            groups.append(found)
        else:
            reasons[atom] = found
    return Channels(tuple(groups), _whole(facts, reasons, {g.number for g in groups}), facts)


def _members(facts: Facts) -> dict[int, list[Member]]:
    members: dict[int, list[Member]] = defaultdict(list)
    for use in facts.uses.values():
        for axis, expr in enumerate(use.axes):
            for atom in dict.fromkeys(facts.atoms.leaves(expr)):
                members[atom].append(Member(use, axis, axis in use.columns))
    return members


def _freeze_repeats(facts: Facts) -> None:
    """An atom that is multiplied with itself along one axis has no single index there."""

    def visit(expr: Expr) -> None:
        solved = facts.atoms.resolve(expr)
        counts = Counter(atom for factor in solved for atom in set(facts.atoms.leaves((factor,))))
        for atom, count in counts.items():
            if count > 1:
                facts.atoms.freeze((atom,), "it is multiplied with itself along one axis")
        for factor in solved:
            if isinstance(factor, Sum):
                for part in factor.parts:
                    visit(part)

    for axes in [*facts.tensors.values(), *(use.axes for use in facts.uses.values())]:
        for expr in axes:
            visit(expr)


def _group(
    facts: Facts, atom: int, members: list[Member], consumers: list[Contraction], holds: set[str]
) -> Group | str:
    """The group of an atom, or why it stays whole."""
    reason = facts.atoms.frozen(atom)
    if reason is not None:
        return reason
    if all(m.column for m in members):
        return "no weight produces it"
    if not consumers:
        return "no weight consumes it"
    folds = _fold(facts, _dead_values(facts, atom, holds), consumers)
    if isinstance(folds, str):
        return folds
    axes = tuple(dict.fromkeys(facts.atoms.resolve(m.use.axes[m.axis]) for m in members))
    weighted = {id(node) for node, _ in facts.candidates}
    producer = min((m for m in members if not m.column), key=lambda m: id(m.use.node) not in weighted).use.node
    name = producer.name or producer.outputs[0].name
    return Group(
        number=atom,
        name=name,
        size=facts.atoms.atom_size(atom),
        members=tuple(members),
        consumers=tuple(consumers),
        folds=tuple(folds),
        axes=axes,
        residual=_is_residual(facts, holds),
    )


def _is_residual(facts: Facts, holds: set[str]) -> bool:
    return any(
        node.op in ("Add", "Sum") and sum(t.name in holds for t in node.inputs) > 1
        for node in facts.model.editor.nodes()
    )


def _fold(facts: Facts, dead: Mapping[str, float], consumers: list[Contraction]) -> list[Fold] | str:
    """Follow a masked channel from its producers to its consumers."""
    folds = []
    for contraction in consumers:
        arriving = dead.get(contraction.node.inputs[contraction.data].name, UNKNOWN)
        where = contraction.node.name or contraction.node.op
        if contraction.weight is None:
            other = dead.get(contraction.node.inputs[1 - contraction.data].name, UNKNOWN)
            if 0.0 not in (arriving, other):
                return f"a removed channel would not be zero at {where}"
        elif math.isnan(arriving):
            return f"a removed channel would not be constant at {where}"
        elif arriving != 0.0:
            if not contraction.uniform or not _takes_bias(facts, contraction):
                return f"a removed channel is {arriving:.3g} at {where}, where that is not exactly a bias"
            folds.append(Fold(contraction, arriving))
    return folds


def _takes_bias(facts: Facts, contraction: Contraction) -> bool:
    node, index = contraction.node, contraction.bias
    return index is not None and (not Op(facts, node).has(index) or (id(node), index) in facts.uses)


def _dead_values(facts: Facts, atom: int, holds: set[str]) -> dict[str, float]:
    """Tensor name → what a masked channel of the atom holds there; ``holds``: the tensors that have the atom."""
    dead: dict[str, float] = {}
    for node in facts.model.editor.nodes():
        if not any(output.name in holds for output in node.outputs):
            continue
        op = Op(facts, node)
        seen: dict[int, float] = {}
        for index, tensor in enumerate(node.inputs):
            use = op.use(index)
            if use is not None:
                if any(atom in set(facts.atoms.leaves(e)) for a, e in enumerate(use.axes) if a not in use.columns):
                    seen[index] = 0.0 if use.zeroed[0] else UNKNOWN
            elif tensor.name in holds:
                seen[index] = dead.get(tensor.name, UNKNOWN)
        rule = RULES.get(node.op)
        value = UNKNOWN if rule is None else rule.dead(op, seen)
        for output in node.outputs:
            dead[output.name] = value
    return dead


def _whole(facts: Facts, reasons: Mapping[int, str], cut: set[int]) -> tuple[Whole, ...]:
    found = []
    for node, expr in facts.candidates:
        for atom in dict.fromkeys(facts.atoms.leaves(expr)):
            if atom in cut:
                continue
            reason = reasons.get(atom) or facts.atoms.frozen(atom) or "nothing would be sliced"
            size = facts.atoms.size((atom,)) or 0
            found.append(Whole(node, size, reason))
    return tuple(found)
