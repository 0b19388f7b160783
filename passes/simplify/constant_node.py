"""Rule `constant-node`."""

from __future__ import annotations

from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.pipeline.contract import Safety, Site, Skip
from graphopt.pipeline.rules import Rule, Scope


class ConstantNode(Rule):
    """Turn a Constant node into an initializer.

    Pattern: Constant with ``value``, ``value_float(s)`` or ``value_int(s)``.
    Conditions: the value is a dense tensor of numbers; the output is not a graph output, whose name a node must
    carry.
    Proof: an initializer and a Constant node are two notations of one value. ``value_float`` is float32 and
    ``value_int`` int64 by the operator's definition.
    Refuses: ``value_string(s)``, tensors of strings and ``sparse_value``; silently, since nothing is lost by
    keeping them.
    """

    name: ClassVar[str] = "constant-node"
    safety: ClassVar[Safety] = Safety.EXACT
    ops: ClassVar[frozenset[str] | None] = frozenset({"Constant"})

    def apply(self, node: gs.Node, scope: Scope) -> Site | Skip | None:
        """See ``Rule.apply``."""
        if {"value_string", "value_strings", "sparse_value"} & set(node.attrs):
            return None
        value = scope.editor.constant(node.outputs[0])
        if value is None or value.dtype.kind in "OSU" or scope.editor.is_output(node.outputs[0]):
            return None
        site = self.site(node, "Constant node became an initializer")
        scope.become_constant(node, [value])
        return site
