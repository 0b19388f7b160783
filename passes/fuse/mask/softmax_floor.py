"""Rule `softmax-floor`."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.model.domains import in_standard_domain
from graphopt.passes.fuse.mask.masks import mask_fill
from graphopt.pipeline.contract import Safety, Site, Skip
from graphopt.pipeline.rules import Dims, Rule, Scope, label

DEPTH = 60.0
"""How far below the largest score of its row a score may lie: exp(-60) = 9e-27. Products with such weights are normal
numbers as long as the other factor is above 1e-12; exp(-80) leaves no room for that."""

_HAND_ON = frozenset({"Dropout", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze", "Where"})


class SoftmaxFloor(Rule):
    """Lift masked attention scores to 60 below the largest score of their row.

    Pattern: Softmax over the last axis, of scores + m or of Where(c, fill, scores), where m holds, or fill is, a
    constant of at most -80: -3.4e38, -1e9, -inf, -10000, -100. m may be Where(c, 0, fill), (1 - x) · fill, a constant,
    or any of these behind casts, views and sums. Becomes: Softmax(Max(s - r, -60)), s being what it read and r the
    largest s of each row.
    Conditions: float32; opset ≥ 8; the weights are only summed up: each reader, behind views and a guard against NaN
    (Where), is a MatMul with something that is computed.
    Proof: holds for all scores and masks, whatever s is. Softmax itself begins with s - r, in the same arithmetic, so
    that a score within 60 of its row's largest keeps its weight to the bit. Any other had a weight below exp(-60) times
    the largest of its row, and now has just that: a weight moves by at most 9e-27, and a sum of N values v by
    N · 9e-27 · max|v|, which float32 cannot show beside a weighted mean of them. In a row that is masked as a whole all
    differences are 0, or NaN for -inf, as before; NaN stays NaN in Max. A logarithm, a quotient or an order of the
    weights would show it, hence the condition on readers.
    Effect: the kernel of Softmax writes exp(-88) = 4e-39 for whatever lies deeper, a denormal, and the product behind
    it reads that: slow on processors that handle those in microcode. One layer of 12 heads over 64 positions, 28 of
    them unmasked, on an Intel processor with AVX-512, Softmax and the product behind it: 297 us as it was, 125 us with
    the floor, 86 us without a mask; at 128 positions 980, 442 and 305 us. MiniLM as a whole 1.07x. Filling masks with
    -60 instead (a constant, so nothing is computed) is 1 % better on MiniLM, but right only as long as scores differ
    by less than about 40, which no graph tells, and twice as slow as before where they differ by 30 and more. On an
    AMD processor with AVX2 denormals cost hardly anything: measuring takes the family back there.
    Refuses: fills that only a run knows; weights that something else reads, or that are a graph output; Softmax over
    another axis; float16, in which s - r is rounded to 0.03 at 60.
    """

    name: ClassVar[str] = "softmax-floor"
    safety: ClassVar[Safety] = Safety.ROUNDING
    ops: ClassVar[frozenset[str] | None] = frozenset({"Softmax"})

    def apply(self, node: gs.Node, scope: Scope) -> Site | Skip | None:
        """See ``Rule.apply``."""
        scores = node.inputs[0]
        fill = mask_fill(scores, scope)
        shape = scope.shape(scores)
        if fill is None or not _over_last_axis(node, scope) or not shape or scope.model.dtype_of(scores) != np.float32:
            return None
        reason = None if _only_summed(node.outputs[0], scope) else "its weights are read by more than products"
        reason = reason or scope.reach_opset(8)
        if reason:
            return self.skip(node, reason)
        scope.editor.set_input(node, 0, _lifted(scope, scores, shape, label(node)))
        scope.touch([node])
        return self.site(node, f"scores masked with {fill:g} lie 60 below the largest of their row")


def _over_last_axis(softmax: gs.Node, scope: Scope) -> bool:
    """Whether a Softmax goes over the last axis, and over nothing else."""
    axis = int(softmax.attrs.get("axis", -1 if scope.model.opset >= 13 else 1))
    shape = scope.shape(softmax.inputs[0])
    return axis == -1 or (shape is not None and axis == len(shape) - 1)


def _only_summed(weights: gs.Tensor, scope: Scope) -> bool:
    """Whether ``weights`` go into matrix products with computed values only, or into views of which that is true."""
    stack = [weights]
    while stack:
        tensor = stack.pop()
        if scope.editor.is_output(tensor):
            return False
        for reader in scope.editor.consumers(tensor):
            if not in_standard_domain(reader):
                return False
            if reader.op == "MatMul" and reader.inputs[0] is tensor and scope.constant(reader, 1) is None:
                continue
            if reader.op == "IsNaN":
                continue
            if reader.op not in _HAND_ON or scope.model.dtype_of(reader.outputs[0]) != np.float32:
                return False
            stack.append(reader.outputs[0])
    return True


def _lifted(scope: Scope, scores: gs.Tensor, shape: Dims, name: str) -> gs.Tensor:
    """Nodes that compute how far ``scores`` lie below the largest of their row, 60 at most."""
    editor = scope.editor
    if scope.model.opset >= 18:
        axes = editor.add_constant(f"{name}.axes", np.array([-1], np.int64))
        largest = editor.add_node("ReduceMax", [scores, axes], attrs={"keepdims": 1}, name=f"{name}_largest")
    else:
        largest = editor.add_node(
            "ReduceMax", [scores], attrs={"axes": [len(shape) - 1], "keepdims": 1}, name=f"{name}_largest"
        )
    below = editor.add_node("Sub", [scores, largest.outputs[0]], name=f"{name}_below")
    floor = editor.add_constant(f"{name}.floor", np.asarray(-DEPTH, np.float32))
    lifted = editor.add_node("Max", [below.outputs[0], floor], name=f"{name}_lifted")
    for node, sizes in ((largest, (*shape[:-1], 1)), (below, shape), (lifted, shape)):
        node.outputs[0].dtype, node.outputs[0].shape = np.dtype(np.float32), list(sizes)
    return lifted.outputs[0]
