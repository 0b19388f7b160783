"""Rule `compose-transposes`."""

from __future__ import annotations

from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.model.domains import in_standard_domain
from graphopt.pipeline.contract import Safety, Site, Skip
from graphopt.pipeline.rules import Rule, Scope, label


class ComposeTransposes(Rule):
    """Transpose once instead of twice, or not at all.

    Pattern: Transpose(Transpose(x)).
    Conditions: both permutations are known (the default, axes reversed, needs the rank); the inner result has no
    other reader and is no graph output, or both together move nothing.
    Proof: axis i of the outer result is axis ``q[i]`` of the inner one, which is axis ``p[q[i]]`` of x.
    Effect: a pass over the tensor less. No model measured had one left after `simplify`.
    Refuses: an inner result that others read, where the count of operators would stay.
    """

    name: ClassVar[str] = "compose-transposes"
    safety: ClassVar[Safety] = Safety.EXACT
    ops: ClassVar[frozenset[str] | None] = frozenset({"Transpose"})

    def apply(self, node: gs.Node, scope: Scope) -> Site | Skip | None:
        """See ``Rule.apply``."""
        inner = scope.producer(node.inputs[0])
        if inner is None or inner.op != "Transpose" or not in_standard_domain(inner):
            return None
        first, second = _permutation(inner, scope), _permutation(node, scope)
        if first is None or second is None or len(first) != len(second):
            return None
        both = [first[axis] for axis in second]
        nothing = both == list(range(len(both)))
        alone = scope.only_user(inner.outputs[0], node)
        if not alone and not nothing:
            return self.skip(node, f"the output of {label(inner)} has another user or is a graph output")
        if alone and not scope.selection.allows(inner):
            return self.skip(node, f"{label(inner)} is left out by only/skip")
        site = self.site(node, f"{label(inner)} and this {'cancel' if nothing else 'became one Transpose'}")
        scope.editor.set_input(node, 0, inner.inputs[0])
        scope.editor.set_attr(node, "perm", both)
        if alone:
            scope.remove(inner)
        if nothing and scope.can_bypass(node):
            scope.bypass(node)
        return site


def _permutation(node: gs.Node, scope: Scope) -> list[int] | None:
    if "perm" in node.attrs:
        return [int(axis) for axis in node.attrs["perm"]]
    shape = scope.shape(node.inputs[0])
    return None if shape is None else list(reversed(range(len(shape))))
