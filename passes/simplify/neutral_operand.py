"""Rules `neutral-operand` and `add-zero`."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.pipeline.contract import Safety, Site, Skip
from graphopt.pipeline.rules import Array, Rule, Scope, fits_into, is_filled

_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})
_COMMUTATIVE = frozenset({"Add", "Mul"})


class NeutralOperand(Rule):
    """Remove arithmetic with a constant that changes no bit.

    Pattern: x · 1, 1 · x, x / 1, x - 0, x + (-0), (-0) + x; for integers also x + 0 and x - 0.
    Conditions: the constant holds the neutral element everywhere, broadcasts into x's shape without enlarging
    it (a dimension other than 1 must be x's own known number); opset ≥ 7.
    Proof: IEEE 754: x · 1 = x / 1 = x; x - (+0) = x + (-0) = x for every x, both zeros included. Integers: plain.
    Refuses: + 0.0 on floats, since -0.0 + 0.0 = +0.0: that is the rule `add-zero`.
    """

    name: ClassVar[str] = "neutral-operand"
    safety: ClassVar[Safety] = Safety.EXACT
    ops: ClassVar[frozenset[str] | None] = _ARITHMETIC

    def apply(self, node: gs.Node, scope: Scope) -> Site | Skip | None:
        """See ``Rule.apply``."""
        kept = _kept_operand(node, scope, _is_neutral)
        if kept is None:
            return None
        site = self.site(node, f"removed {node.op} with its neutral element")
        scope.bypass(node, kept)
        return site


class AddZero(Rule):
    """Remove the addition of a floating-point zero of the other sign.

    Pattern: x + (+0), (+0) + x, x - (-0).
    Conditions: as for `neutral-operand`, with a constant of zeros of any sign.
    Proof: equal to x for every x but -0.0, where the sum is +0.0; the two compare equal.
    Refuses: a user that tells the two zeros apart (Div, Reciprocal, Pow), behind views too.
    """

    name: ClassVar[str] = "add-zero"
    safety: ClassVar[Safety] = Safety.ROUNDING
    ops: ClassVar[frozenset[str] | None] = frozenset({"Add", "Sub"})

    _SEES_THE_SIGN: ClassVar[frozenset[str]] = frozenset({"Div", "Reciprocal", "Pow"})
    _HANDS_ON: ClassVar[frozenset[str]] = frozenset(
        {"Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose"}
        | {"Unsqueeze"}
    )

    def apply(self, node: gs.Node, scope: Scope) -> Site | Skip | None:
        """See ``Rule.apply``."""
        kept = _kept_operand(node, scope, lambda op, value: is_filled(value, 0))
        if kept is None:
            return None
        if self._sign_is_seen(node.outputs[0], scope):
            return None
        site = self.site(node, f"removed {node.op} of zero")
        scope.bypass(node, kept)
        return site

    def _sign_is_seen(self, tensor: gs.Tensor, scope: Scope) -> bool:
        stack, seen = [tensor], {id(tensor)}
        while stack:
            for user in scope.editor.consumers(stack.pop()):
                if user.op in self._SEES_THE_SIGN:
                    return True
                if user.op in self._HANDS_ON:
                    fresh = [t for t in user.outputs if id(t) not in seen]
                    seen.update(id(t) for t in fresh)
                    stack.extend(fresh)
        return False


def _kept_operand(node: gs.Node, scope: Scope, neutral: Callable[[str, Array], bool]) -> int | None:
    """Index of the operand that is the result, where the other one is a neutral constant of fitting shape."""
    if scope.model.opset < 7:  # before, broadcasting was an attribute
        return None
    for index in (1, 0) if node.op in _COMMUTATIVE else (1,):
        value, kept = scope.constant(node, index), 1 - index
        if value is None or not neutral(node.op, value):
            continue
        if fits_into(value.shape, scope.shape(node.inputs[kept])) and scope.can_bypass(node, kept):
            return kept
    return None


def _is_neutral(op: str, value: Array) -> bool:
    if op in ("Mul", "Div"):
        return is_filled(value, 1)
    if not is_filled(value, 0):
        return False
    if value.dtype.kind != "f":
        return True
    negative = np.signbit(value)
    return bool(negative.all() if op == "Add" else not negative.any())
