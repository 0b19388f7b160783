"""Rule `compose-views`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.fuse.views.views import VIEWS, Axis, Entry, completed, is_view, output_dims, squeezed_axes
from graphopt.pipeline.contract import Safety, Site, Skip
from graphopt.pipeline.rules import Dims, Rule, Scope, label


class ComposeViews(Rule):
    """View a tensor once instead of twice, or not at all.

    Pattern: one of Reshape, Flatten, Squeeze, Unsqueeze on the result of another.
    Conditions: the axes and target shapes are constant. Each dimension of the last result is a number, or x's own
    at the same place, but for at most one, which -1 stands for. The inner result has no other reader and is no
    graph output, unless both together leave the shape as it was.
    Proof: these operators keep all elements in row-major order, so that the shape alone decides. A dimension that
    is not fixed counts as x's own only where the operators' definitions carry it through (0 in a Reshape, an axis
    that Squeeze or Unsqueeze leaves, the first of ``Flatten(axis=1)``, what is left for -1). Two Squeezes or two
    Unsqueezes need no shape at all. Reshape refuses -1 beside a dimension of size 0: it is written only beside
    fixed sizes ≥ 1, or where an operator replaced would have refused the same.
    Effect: views copy nothing, so that little is won. Measured as a family beside all others, one thread, AVX2,
    onnxruntime 1.32: MiniLM with 6 of them 1.03x [1.00, 1.04], a pitch detector with 53 of them 1.00x.
    Refuses: an inner result that others read; two dimensions that only the run decides; ``allowzero`` with a 0.
    """

    name: ClassVar[str] = "compose-views"
    safety: ClassVar[Safety] = Safety.EXACT
    ops: ClassVar[frozenset[str] | None] = VIEWS

    def apply(self, node: gs.Node, scope: Scope) -> Site | Skip | None:
        """See ``Rule.apply``."""
        inner = scope.producer(node.inputs[0])
        if inner is None or not is_view(inner):
            return None
        shape = scope.shape(inner.inputs[0])
        first, second = output_dims(inner, scope), output_dims(node, scope)
        if shape is None or first is None or second is None:
            return None
        dims = completed([first[entry.index] if isinstance(entry, Axis) else entry for entry in second], shape)
        alone = scope.only_user(inner.outputs[0], node)
        nothing = len(dims) == len(shape) and all(_own(entry, k, shape) for k, entry in enumerate(dims))
        if not alone and not nothing:
            return self.skip(node, f"the output of {label(inner)} has another user or is a graph output")
        if alone and not scope.selection.allows(inner):
            return self.skip(node, f"{label(inner)} is left out by only/skip")
        if not (nothing and self._bypassed(node, inner, scope)) and not _merged(node, inner, dims, shape, scope):
            return None
        site = self.site(node, f"{label(inner)} and this {'cancel' if nothing else 'became one ' + node.op}")
        if alone:
            scope.remove(inner)
        return site

    def _bypassed(self, node: gs.Node, inner: gs.Node, scope: Scope) -> bool:
        scope.editor.set_input(node, 0, inner.inputs[0])
        if scope.can_bypass(node):
            scope.bypass(node)
            return True
        scope.editor.set_input(node, 0, inner.outputs[0])
        return False


def _own(entry: Entry, place: int, shape: Dims) -> bool:
    return entry == Axis(place) or (isinstance(entry, int) and entry == shape[place])


def _merged(node: gs.Node, inner: gs.Node, dims: list[Entry], shape: Dims, scope: Scope) -> bool:
    """Make ``node`` alone do what both did; nothing has changed where it cannot."""
    same = node.op == inner.op and node.op in ("Squeeze", "Unsqueeze")
    if same and _all_axes(node, inner, max(len(dims), len(shape)), scope):
        return True
    if node.op == "Flatten" and dims[0] == Axis(0):
        scope.editor.set_input(node, 0, inner.inputs[0])
        scope.editor.set_attr(node, "axis", 1)
        return True
    target = _target(dims, len(shape), node, inner, scope)
    if target is None or scope.model.opset < 5:
        return False
    _become_reshape(node, inner.inputs[0], target, scope)
    return True


def _all_axes(node: gs.Node, inner: gs.Node, rank: int, scope: Scope) -> bool:
    """Write two Squeezes, or two Unsqueezes, as one; the larger of the shapes has ``rank`` axes."""
    outer, other = (node, inner) if node.op == "Unsqueeze" else (inner, node)
    near = squeezed_axes(outer, rank, scope)
    left = [axis for axis in range(rank) if axis not in (near or ())]
    far = squeezed_axes(other, len(left), scope)
    if near is None or far is None:
        return False
    axes = sorted([*near, *(left[axis] for axis in far)])
    scope.editor.set_input(node, 0, inner.inputs[0])
    if scope.model.opset < 13:
        scope.editor.set_attr(node, "axes", axes)
    else:
        scope.editor.set_input(node, 1, scope.editor.add_constant(f"{label(node)}_axes", np.array(axes, np.int64)))
    return True


def _target(dims: Sequence[Entry], rank: int, node: gs.Node, inner: gs.Node, scope: Scope) -> list[int] | None:
    """The constant shape that a Reshape needs to give ``dims``."""
    target = [0 if entry == Axis(place) else entry for place, entry in enumerate(dims)]
    if any(entry == 0 and isinstance(dims[place], int) for place, entry in enumerate(target)):
        return None
    unknown = [place for place, entry in enumerate(target) if not isinstance(entry, int)]
    if len(unknown) > 1:
        return None
    copied = {place for place, entry in enumerate(target) if entry == 0}
    if unknown and copied and not _refused_before(unknown[0], copied, node, inner, scope):
        return None
    return [entry if isinstance(entry, int) else -1 for entry in target]


def _refused_before(place: int, copied: set[int], node: gs.Node, inner: gs.Node, scope: Scope) -> bool:
    """Whether -1 at ``place`` beside ``copied`` dimensions of size 0 failed in the old form as well."""
    last = scope.ints(node, 1, "shape") if node.op == "Reshape" else None
    if last is not None and last[place] == -1:
        return True
    before = scope.ints(inner, 1, "shape") if inner.op == "Reshape" else None
    return before is not None and -1 in before and all(k < len(before) and before[k] == 0 for k in copied)


def _become_reshape(node: gs.Node, source: gs.Tensor, target: list[int], scope: Scope) -> None:
    shape = scope.editor.add_constant(f"{label(node)}_shape", np.array(target, np.int64))
    if node.op == "Reshape":
        scope.editor.set_input(node, 0, source)
        scope.editor.set_input(node, 1, shape)
        scope.editor.set_attr(node, "allowzero", None)
        scope.touch([node])
        return
    reshape = scope.editor.add_node(
        "Reshape", [source, shape], outputs=[node.outputs[0]], name=f"{label(node)}_reshape"
    )
    scope.remove(node)
    scope.touch([reshape, *scope.editor.consumers(reshape.outputs[0])])
