"""Rule `gelu-erf`."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.fuse.activations.gelu_forms import GeluForm, gelu_forms
from graphopt.passes.fuse.patterns import add_like, is_float32, obstacle, put_instead
from graphopt.pipeline.contract import Safety, Site, Skip
from graphopt.pipeline.rules import Rule, Scope, label
from graphopt.runtime.schemas import has_kernel

OPSET = 20
PLAIN = ["Add", "Div", "Erf", "Mul", "Mul"]


class GeluErf(Rule):
    """Write Gelu with the error function as Gelu, or in the spelling that the runtime takes for Gelu.

    Pattern: a product of x, numbers and 1 + Erf(x · c) that together are x / 2 · (1 + erf(x / √2)): the half at x, at
    the sum or at the product; √2 as divisor or 0.70710677 as factor; operands in any order.
    Conditions: float32; scalar constants that do not enlarge the shape, equal to the numbers above to a relative
    1e-6; no inner tensor has another user.
    Proof: the same function (Hendrycks and Gimpel, Gaussian Error Linear Units, 2016); powers of two move without
    rounding, and c off by 1e-6 moves the result by less than 4e-7 · |x| around |x| = 1 and by nothing far out.
    Effect: onnxruntime recognises (x · (1 + Erf(x / √2))) · 0.5 and (x · 0.5) · (1 + Erf(x / √2)) only: not the
    product with 0.70710677, not the half at the sum, and the first not where a Mul computes x. From opset 20 on, Gelu
    is written; before, the second of these spellings, and the opset stays: both run alike. Measured on one thread of
    an AVX2 processor, onnxruntime 1.32: an unrecognised spelling against either 1.35x at [1, 64, 1536] and 1.63x at
    [1, 1536, 28, 28]; Gelu against the recognised spelling 1.01 and 0.98, and behind a product with bias both become
    BiasGelu.
    Refuses: other constants (1.4 is not √2); an inner tensor with another user. What the runtime recognises stays.
    """

    name: ClassVar[str] = "gelu-erf"
    safety: ClassVar[Safety] = Safety.ROUNDING
    ops: ClassVar[frozenset[str] | None] = frozenset({"Mul", "Div"})

    def apply(self, node: gs.Node, scope: Scope) -> Site | Skip | None:
        """See ``Rule.apply``."""
        if scope.model.opset < 9 or not is_float32(scope, node.outputs[0]):
            return None
        why: str | None = None
        for form in gelu_forms(scope, node, "Erf"):
            if not form.inner.is_(0.0, math.sqrt(0.5)):
                continue
            written = scope.model.opset >= OPSET and has_kernel("Gelu", OPSET, provider=scope.target.provider)
            if not written and _is_plain(node, form, scope):
                return None
            why = obstacle(scope, node, form.nodes)
            if why is None:
                return self._rewrite(node, form, written, scope)
        return None if why is None else self.skip(node, why)

    def _rewrite(self, node: gs.Node, form: GeluForm, written: bool, scope: Scope) -> Site:
        count = len({id(inner) for inner in form.nodes})
        what = "Gelu" if written else "the spelling of Gelu that the runtime recognises"
        site = self.site(node, f"{count} nodes became {what}")
        if written:
            put_instead(scope, node, form.nodes, "Gelu", [form.x])
            return site
        name, x = f"{label(node)}_gelu", form.x
        root_two, one, half = (
            scope.editor.add_constant(f"{name}_{hint}", np.asarray(value, np.float32))
            for hint, value in (("root", math.sqrt(2)), ("one", 1.0), ("half", 0.5))
        )
        curve = add_like(scope, x, "Erf", [add_like(scope, x, "Div", [x, root_two], f"{name}_div")], f"{name}_erf")
        gate = add_like(scope, x, "Add", [curve, one], f"{name}_add")
        put_instead(scope, node, form.nodes, "Mul", [add_like(scope, x, "Mul", [x, half], f"{name}_mul"), gate])
        return site


def _is_plain(node: gs.Node, form: GeluForm, scope: Scope) -> bool:
    """Whether onnxruntime recognises the form as it stands."""
    if form.gate != 1.0 or sorted(inner.op for inner in form.nodes) != PLAIN:
        return False
    values = [scope.constant(inner, index) for inner in form.nodes for index in range(len(inner.inputs))]
    if any(value is not None and value.ndim > 1 for value in values):
        return False
    if scope.constant(node, 0) is None and scope.constant(node, 1) is None:
        return True
    # With the half last, a graph output ends the search, and a Mul that computes x is taken for the product with 0.5.
    before = scope.producer(form.x)
    return not scope.editor.is_output(node.outputs[0]) and (before is None or before.op != "Mul")
