"""Rule `mask-fill`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.fuse.mask.masks import CLEAR, FILL, Fill, fill_of, hides_a_mask, is_last_axis
from graphopt.pipeline.contract import Safety, Site, Skip
from graphopt.pipeline.rules import Array, Rule, Scope, in_standard_domain, label

_TYPES = (np.float32, np.float16)


class MaskFill(Rule):
    """Fill masked attention scores with -60 instead of -3.4e38, in rows that have an unmasked position.

    Pattern: Softmax over the last axis, of scores + m or of Where(c, fill, scores), where m holds, or fill is, a
    constant of at most -1000: -3.4e38, -1e9, -inf, -10000, float16's -65504. m may be Where(c, 0, fill),
    (1 - x) · fill, a constant, or any of these behind casts, views and sums.
    Becomes: m' = Where(max of m's row > -10, Max(m, -60), m), computed once for all layers that read m; for
    Where(c, ...) the fill becomes Where(the row has an unmasked position, -60, fill). A constant m is computed here,
    row by row.
    Conditions: float32 or float16; nothing but the Softmax reads the masked scores, which are no graph output; the
    scores come from a matrix product through scalings, views and constant biases only, so that no second mask hides
    in them: a row might then have no position that neither of the two masks.
    Proof: rows without an unmasked position are as before. In the others a masked position had the weight 0, or a
    denormal, and gets at most exp(-60 + gap), where gap is by how much the largest masked score of the row exceeds
    the largest unmasked one: 9e-27 at gap 0. Scores bound the gap, shapes do not: it is measured (below).
    Accepted only if: on the feeds, and on the feeds with every position of some rows masked and with half of them
    masked, every output keeps at least 100 dB of SQNR, outputs that are all zero stay so, and so do NaN; and the gap
    stays below 40 in all of them, so that no masked position gets more than exp(-20) = 2e-9 of the weight of another,
    and a thousand of them together change the weights by 2e-6.
    Effect: the kernel of Softmax computes exp of the fill; below -87 that is a denormal, or a slow path is taken for
    it, on processors where such numbers are slow. MiniLM, first evaluation feed (28 of 64 positions): 1.065x on one
    with AVX-512; 0.99x on an AMD processor with AVX2, on which denormals cost hardly anything: measuring takes the
    family back there, bit-equal outputs notwithstanding. Between -80 and -1000 the product that follows gets slow as
    well, 2 to 9 ms instead of 0.2 (AVX-512): hence -60.
    Refuses: fills above -1000; masked scores with another reader; scores that may hold another mask; another axis.
    """

    name: ClassVar[str] = "mask-fill"
    safety: ClassVar[Safety] = Safety.ROUNDING
    ops: ClassVar[frozenset[str] | None] = frozenset({"Softmax"})

    def apply(self, node: gs.Node, scope: Scope) -> Site | Skip | None:
        """See ``Rule.apply``."""
        found = masked(node, scope)
        if found is None or scope.model.dtype_of(found.mask if found.added else found.scores) not in _TYPES:
            return None
        reason = self._why_not(found, scope)
        if reason:
            return self.skip(node, reason)
        return self._soften_sum(node, found, scope) if found.added else self._soften_where(node, found, scope)

    def _why_not(self, found: Masked, scope: Scope) -> str | None:
        if not found.fill.certain:
            return f"a fill of {found.fill.value:g} may be a part of the scores: it is above -1000"
        if not scope.selection.allows(found.joint):
            return f"{label(found.joint)} is left out by only/skip"
        if not scope.only_user(found.joint.outputs[0], found.softmax):
            return "the masked scores have another user or are a graph output"
        if hides_a_mask(scope, found.scores):
            return "the scores may hold another mask: a row might have no position that neither masks"
        return scope.reach_opset(12 if scope.model.dtype_of(found.scores) == np.float16 else 9)

    def _soften_sum(self, node: gs.Node, found: Masked, scope: Scope) -> Site | Skip | None:
        editor, mask = scope.editor, found.mask
        value = editor.constant(mask)
        if value is not None:
            softer = softened(value)
            if softer is None:
                return None
            fresh: gs.Tensor = editor.add_constant(f"{mask.name}.softer", softer)
        else:
            shape = scope.shape(mask)
            if not shape or shape[-1] == 1:
                return None
            fresh = _softer(scope, mask)
        readers = self._readers(mask, node, scope)
        editor.replace_uses(mask, fresh, consumers=[reader.joint for reader in readers])
        scope.touch([reader.softmax for reader in readers])
        return self.site(node, f"masked positions get -60 instead of {found.fill.value:g}", layers=len(readers))

    def _readers(self, mask: gs.Tensor, first: gs.Node, scope: Scope) -> list[Masked]:
        """Every place that adds ``mask`` to scores as this rule wants it."""
        found = []
        for joint in scope.editor.consumers(mask):
            for softmax in scope.editor.consumers(joint.outputs[0]):
                one = masked(softmax, scope) if softmax.op == "Softmax" and in_standard_domain(softmax) else None
                if one is None or one.mask is not mask or not one.added:
                    continue
                if softmax is first or (scope.selection.allows(softmax) and self._why_not(one, scope) is None):
                    found.append(one)
        return found

    def _soften_where(self, node: gs.Node, found: Masked, scope: Scope) -> Site | None:
        editor, joint, condition = scope.editor, found.joint, found.mask
        shape = scope.shape(condition)
        if not shape or shape[-1] == 1:
            return None
        dtype = scope.model.dtype_of(found.scores)
        old, new = np.asarray(found.fill.value, dtype), np.asarray(FILL, dtype)
        place = next(i for i in (1, 2) if joint.inputs[i] is not found.scores)
        value = editor.constant(condition)
        if value is not None:
            some = np.any(~value if place == 1 else value, axis=-1, keepdims=True)
            fresh: gs.Tensor = editor.add_constant(f"{label(joint)}.fill", np.where(some, new, old).astype(dtype))
        else:
            some_left = _row_has(scope, condition, masked_is=place == 1, name=label(joint))
            pair = [editor.add_constant(f"{label(joint)}.{key}", number) for key, number in (("s", new), ("f", old))]
            fresh = editor.add_node("Where", [some_left, *pair], name=f"{label(joint)}_fill").outputs[0]
            fresh.dtype = dtype
        editor.set_input(joint, place, fresh)
        scope.touch([node, joint])
        return self.site(node, f"masked positions get -60 instead of {found.fill.value:g}", layers=1)


@dataclass(frozen=True)
class Masked:
    """Scores, masked, and their Softmax.

    Attributes:
        softmax: the Softmax.
        joint: the Add or Where that masks.
        scores: what is masked.
        mask: the summand, or the condition of the Where.
        added: whether the mask is a summand.
        fill: what masked positions get.
    """

    softmax: gs.Node
    joint: gs.Node
    scores: gs.Tensor
    mask: gs.Tensor
    added: bool
    fill: Fill


def masked(softmax: gs.Node, scope: Scope) -> Masked | None:
    """The masked scores that ``softmax`` reads, if it does."""
    joint = scope.editor.producer(softmax.inputs[0])
    if joint is None or not in_standard_domain(joint) or not is_last_axis(scope, softmax):
        return None
    if joint.op == "Add":
        for index in (1, 0):
            fill = fill_of(scope, joint.inputs[index])
            if fill is not None:
                return Masked(softmax, joint, joint.inputs[1 - index], joint.inputs[index], True, fill)
    if joint.op == "Where":
        for index in (1, 2):
            value = scope.constant(joint, index)
            fill = Fill.of(float(value.reshape(-1)[0])) if value is not None and value.size == 1 else None
            if fill is not None:
                return Masked(softmax, joint, joint.inputs[3 - index], joint.inputs[0], False, fill)
    return None


def places(scope: Scope) -> Iterator[Masked]:
    """Every Softmax of masked scores, whether this rule may rewrite it or not."""
    for softmax in scope.editor.nodes():
        found = masked(softmax, scope) if softmax.op == "Softmax" and in_standard_domain(softmax) else None
        if found is not None:
            yield found


def softened(mask: Array) -> Array | None:
    """A constant mask with softer fills; ``None`` where nothing changes.

    Args:
        mask: float ``[..., positions]``.
    """
    if mask.ndim == 0 or not mask.size:
        return None
    some = np.max(mask, axis=-1, keepdims=True) > CLEAR
    softer = np.where(some, np.maximum(mask, np.asarray(FILL, mask.dtype)), mask).astype(mask.dtype)
    return None if np.array_equal(softer, mask) else softer


def _softer(scope: Scope, mask: gs.Tensor) -> gs.Tensor:
    """Nodes that compute the softer mask."""
    editor, dtype = scope.editor, scope.model.dtype_of(mask)
    name = f"{mask.name}_softer"
    clear, fill = (
        editor.add_constant(f"{name}.{key}", np.asarray(v, dtype)) for key, v in (("clear", CLEAR), ("fill", FILL))
    )
    largest = _reduced(scope, "ReduceMax", mask, f"{name}_row")
    some = editor.add_node("Greater", [largest, clear], name=f"{name}_some").outputs[0]
    some.dtype = np.dtype(bool)
    capped = editor.add_node("Max", [mask, fill], name=f"{name}_capped").outputs[0]
    result = editor.add_node("Where", [some, capped, mask], name=name).outputs[0]
    shape = scope.shape(mask)
    for tensor in (capped, result):
        tensor.dtype, tensor.shape = dtype, None if shape is None else list(shape)
    return result


def _row_has(scope: Scope, condition: gs.Tensor, *, masked_is: bool, name: str) -> gs.Tensor:
    """Nodes that tell for each row whether some position of it is not masked."""
    editor = scope.editor
    numbers = editor.add_node("Cast", [condition], attrs={"to": 1}, name=f"{name}_numbers").outputs[0]
    numbers.dtype = np.dtype(np.float32)
    half = editor.add_constant(f"{name}.half", np.asarray(0.5, np.float32))
    row = _reduced(scope, "ReduceMin" if masked_is else "ReduceMax", numbers, f"{name}_row")
    some = editor.add_node("Less" if masked_is else "Greater", [row, half], name=f"{name}_some").outputs[0]
    some.dtype = np.dtype(bool)
    return some


def _reduced(scope: Scope, op: str, tensor: gs.Tensor, name: str) -> gs.Tensor:
    editor = scope.editor
    if scope.model.opset >= 18:
        axes = editor.add_constant(f"{name}.axes", np.array([-1], np.int64))
        result = editor.add_node(op, [tensor, axes], attrs={"keepdims": 1}, name=name).outputs[0]
    else:
        result = editor.add_node(op, [tensor], attrs={"axes": [-1], "keepdims": 1}, name=name).outputs[0]
    result.dtype = tensor.dtype or scope.model.dtype_of(tensor)
    return result
