"""Rule `gate-add`."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.model.domains import in_standard_domain
from graphopt.pipeline.contract import Safety, Site, Skip
from graphopt.pipeline.rules import Dims, Rule, Scope, label

_TYPES = (np.float32, np.float64)


class GateAdd(Rule):
    """Add 1 to a small gate instead of adding the gated tensor to itself.

    Pattern: x + x · g → x · (g + 1), in all orders of the operands.
    Conditions: g is smaller than x · g: along some axis it has length 1, or no axis, where x · g has a known other
    length or one known only at run time; x is not constant; float32 or float64; nothing else reads x · g, which is
    no graph output; both nodes are open to this pass; opset ≥ 7.
    Proof: x + x · g = x · (g + 1), of the shape of x · g either way. The first form rounds x · g and the sum, the
    second g + 1 and the product: both within one rounding of |x| + |x · g|. That bounds the difference relative to
    the output unless g lies within 1 % of -1 for all of a tensor, where the second form is the better one; gates
    (Sigmoid, HardSigmoid, Softmax) are ≥ 0. Where x is infinite and g below -1, or x · g overflows, the first form
    gives NaN or infinity and the second what is meant.
    Effect: an addition over x becomes one over g. Measured against all other rules without this one, one thread,
    AVX2: ppocr_v4_det (8 nodes) 1.01x [1.00, 1.02].
    Refuses: g as large as x (as many operations as before); a second reader of x · g.
    """

    name: ClassVar[str] = "gate-add"
    safety: ClassVar[Safety] = Safety.ROUNDING
    ops: ClassVar[frozenset[str] | None] = frozenset({"Add"})

    def apply(self, node: gs.Node, scope: Scope) -> Site | Skip | None:
        """See ``Rule.apply``."""
        for index in (0, 1):
            product, x = scope.producer(node.inputs[index]), node.inputs[1 - index]
            if product is None or product.op != "Mul" or not in_standard_domain(product):
                continue
            place = next((i for i in (0, 1) if product.inputs[i] is x), None)
            if place is None or product.inputs[1 - place] is x or scope.editor.constant(x) is not None:
                continue
            reason = _why_not(node, product, product.inputs[1 - place], scope)
            return self.skip(node, reason) if reason else self._rewrite(node, product, 1 - place, scope)
        return None

    def _rewrite(self, node: gs.Node, product: gs.Node, place: int, scope: Scope) -> Site:
        site = self.site(node, f"1 added to the gate of {label(product)} instead")
        editor, gate, result = scope.editor, product.inputs[place], product.outputs[0]
        dtype = scope.model.dtype_of(node.outputs[0])
        value = editor.constant(gate)
        if value is None:
            one = editor.add_constant(f"{label(product)}.one", np.ones((), dtype))
            more = editor.add_node("Add", [gate, one], name=f"{label(product)}_gate").outputs[0]
            editor.set_input(product, place, more)
        else:
            editor.set_constant(product, place, (value.astype(np.float64) + 1).astype(value.dtype))
        scope.bypass(node, next(i for i in (0, 1) if node.inputs[i] is result))
        scope.touch([product])
        return site


def _why_not(node: gs.Node, product: gs.Node, gate: gs.Tensor, scope: Scope) -> str | None:
    result = product.outputs[0]
    if not scope.selection.allows(product):
        return f"{label(product)} is left out by only/skip"
    if not scope.only_user(result, node):
        return f"the output of {label(product)} has another user or is a graph output"
    if scope.model.opset < 7 or scope.model.dtype_of(node.outputs[0]) not in _TYPES:
        return "its type or opset is not supported"
    if not _smaller(scope.shape(gate), scope.shape(result)):
        return f"the gate of {label(product)} is not known to be smaller than what it multiplies"
    return None


def _smaller(gate: Dims | None, whole: Dims | None) -> bool:
    if gate is None or whole is None:
        return False
    padded = (*(1,) * (len(whole) - len(gate)), *gate)
    return any(d == 1 and other != 1 for d, other in zip(padded, whole, strict=False))
