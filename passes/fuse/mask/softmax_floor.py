"""Rule `softmax-floor`."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.fuse.mask.masks import masked
from graphopt.pipeline.contract import Safety, Site, Skip
from graphopt.pipeline.rules import Rule, Scope, label

DEPTH = 60.0
"""How far below the largest score of its row a score may lie: exp(-60) = 9e-27. Products with such weights are normal
numbers as long as the other factor is above 1e-12; exp(-80) leaves no room for that."""


class SoftmaxFloor(Rule):
    """Lift masked attention scores to 60 below the largest score of their row.

    Pattern: Softmax over the last axis, of scores + m or of Where(c, fill, scores), where m holds, or fill is, a
    constant of at most -80: -3.4e38, -1e9, -inf, -10000, -100. m may be Where(c, 0, fill), (1 - x) · fill, a constant,
    or any of these behind casts, views and sums. Becomes: Softmax(Max(s - r, -60)), s being what it read and r the
    largest s of each row.
    Conditions: float32; opset ≥ 8.
    Proof: holds for all scores and masks, whatever s is. Softmax itself begins with s - r, in the same arithmetic, so
    that a score within 60 of its row's largest keeps its weight to the bit. Any other had a weight below exp(-60) times
    the largest of its row, and now has just that: a weight moves by at most 9e-27, and a sum over N positions by
    N · 9e-27, which float32 cannot show beside 1. In a row that is masked as a whole all differences are 0, or NaN for
    -inf, as before; NaN stays NaN in Max. Accepted only if: with the feeds as they are, with every position of their
    masks off or on and with half of them, every output keeps at least 100 dB of SQNR; one that is all zero has to stay
    so.
    Effect: the kernel of Softmax writes exp(-88) = 4e-39 for whatever lies deeper, a denormal, and the product behind
    it reads that: slow on processors that handle those in microcode. One layer of 12 heads over 64 positions, 28 of
    them unmasked, on an Intel processor with AVX-512, Softmax and the product behind it: 297 us as it was, 125 us with
    the floor, 86 us without a mask; at 128 positions 980, 442 and 305 us. MiniLM as a whole 1.07x. Filling masks with
    -60 instead (a constant, so nothing is computed) is 1 % better on MiniLM, but right only as long as scores differ
    by less than about 40, which no graph tells, and twice as slow as before where they differ by 30 and more. On an
    AMD processor with AVX2 denormals cost hardly anything: measuring takes the family back there.
    Refuses: fills that only a run knows; Softmax over another axis; float16, in which s - r is rounded to 0.03 at 60.
    """

    name: ClassVar[str] = "softmax-floor"
    safety: ClassVar[Safety] = Safety.ROUNDING
    ops: ClassVar[frozenset[str] | None] = frozenset({"Softmax"})

    def apply(self, node: gs.Node, scope: Scope) -> Site | Skip | None:
        """See ``Rule.apply``."""
        found = masked(node, scope)
        scores = node.inputs[0]
        if found is None or scope.model.dtype_of(scores) != np.float32:
            return None
        reason = scope.reach_opset(8)
        if reason:
            return self.skip(node, reason)
        scope.editor.set_input(node, 0, _lifted(scope, scores, label(node)))
        scope.touch([node])
        return self.site(node, f"scores masked with {found.fill:g} lie 60 below the largest of their row")


def _lifted(scope: Scope, scores: gs.Tensor, name: str) -> gs.Tensor:
    """Nodes that compute how far ``scores`` lie below the largest of their row, 60 at most."""
    editor, shape = scope.editor, scope.shape(scores)
    if scope.model.opset >= 18:
        axes = editor.add_constant(f"{name}.axes", np.array([-1], np.int64))
        largest = editor.add_node("ReduceMax", [scores, axes], attrs={"keepdims": 1}, name=f"{name}_largest")
    else:
        largest = editor.add_node("ReduceMax", [scores], attrs={"axes": [-1], "keepdims": 1}, name=f"{name}_largest")
    below = editor.add_node("Sub", [scores, largest.outputs[0]], name=f"{name}_below")
    floor = editor.add_constant(f"{name}.floor", np.asarray(-DEPTH, np.float32))
    lifted = editor.add_node("Max", [below.outputs[0], floor], name=f"{name}_lifted")
    for node, sizes in ((largest, shape and [*shape[:-1], 1]), (below, shape), (lifted, shape)):
        node.outputs[0].dtype, node.outputs[0].shape = np.dtype(np.float32), sizes and list(sizes)
    return lifted.outputs[0]
