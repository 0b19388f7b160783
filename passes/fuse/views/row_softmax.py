"""Rule `row-softmax`."""

from __future__ import annotations

from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.model.domains import in_standard_domain
from graphopt.pipeline.contract import Safety, Site, Skip
from graphopt.pipeline.rules import Rule, Scope, label, static


class RowSoftmax(Rule):
    """Let Softmax work on the last axis without the views around it.

    Pattern: Reshape(Softmax(Flatten(x))) or Reshape(LogSoftmax(Flatten(x))), back to the shape of x.
    Conditions: opset ≥ 13; x has a known rank, Flatten makes rows of its last axis, and the softmax is along those
    rows; the Reshape takes Shape(x), or every dimension of x and of its result is a number, and the same one; each
    inner tensor has one user and is no graph output; all nodes are open to this pass.
    Proof: the last axis stays together in memory, so that the rows are those along axis -1 of x, computed alike.
    Effect: two views less, one of which copies where the result is a graph output: ppocr_v4_rec 1.009x [1.002, 1.013],
    one thread. The form comes from Softmax of operator sets below 13, where the opset is raised while shapes are
    unknown.
    Refuses: rows of more than one axis; a result of another shape; one whose dimensions are equal by name only.
    """

    name: ClassVar[str] = "row-softmax"
    safety: ClassVar[Safety] = Safety.ROUNDING
    ops: ClassVar[frozenset[str] | None] = frozenset({"Reshape"})

    def apply(self, node: gs.Node, scope: Scope) -> Site | Skip | None:
        """See ``Rule.apply``."""
        softmax = scope.producer(node.inputs[0])
        if softmax is None or softmax.op not in ("LogSoftmax", "Softmax") or not in_standard_domain(softmax):
            return None
        flatten = scope.producer(softmax.inputs[0])
        if flatten is None or flatten.op != "Flatten" or not in_standard_domain(flatten):
            return None
        if not _along_rows(node, softmax, flatten, scope):
            return None
        for inner, user in ((flatten, softmax), (softmax, node)):
            if not scope.selection.allows(inner):
                return self.skip(node, f"{label(inner)} is left out by only/skip")
            if not scope.only_user(inner.outputs[0], user):
                return self.skip(node, f"the output of {label(inner)} has another user or is a graph output")
        site = self.site(node, f"the views around {label(softmax)} are not needed")
        scope.editor.set_input(softmax, 0, flatten.inputs[0])
        scope.editor.set_attr(softmax, "axis", -1)
        scope.remove(flatten)
        scope.bypass(node)
        return site


def _along_rows(node: gs.Node, softmax: gs.Node, flatten: gs.Node, scope: Scope) -> bool:
    """Whether the softmax is along the last axis of what is flattened, and the result has its shape."""
    shape = scope.shape(flatten.inputs[0])
    if scope.model.opset < 13 or not shape:
        return False
    axis, along = int(flatten.attrs.get("axis", 1)), int(softmax.attrs.get("axis", -1))
    last = axis in (len(shape) - 1, -1) and along in (1, -1)
    sizes = static(shape)  # a name says nothing: two dimensions of one name may differ
    same = sizes is not None and static(scope.shape(node.outputs[0])) == sizes
    return last and (same or _takes_shape_of(node, flatten.inputs[0], scope))


def _takes_shape_of(node: gs.Node, x: gs.Tensor, scope: Scope) -> bool:
    source = scope.producer(node.inputs[1])
    whole = source is not None and source.op == "Shape" and not source.attrs
    return source is not None and whole and in_standard_domain(source) and source.inputs[0] is x
