"""Rules `fold-constants` and `fold-arithmetic`."""

from __future__ import annotations

from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.errors import RuntimeFailure
from graphopt.model.domains import in_standard_domain
from graphopt.passes.simplify.evaluate import Evaluator
from graphopt.pipeline.contract import Safety, Site, Skip
from graphopt.pipeline.operators import QUANTIZATION, RANDOM, is_deterministic
from graphopt.pipeline.rules import Array, Rule, Scope

_OTHER_RULES = frozenset({"Constant", "Identity"})
_LEFT_ALONE = RANDOM | _OTHER_RULES | QUANTIZATION

_MOVE = (
    "CastLike Compress Concat ConstantOfShape DepthToSpace Expand EyeLike Flatten Gather GatherElements "
    "GatherND NonZero OneHot Pad Reshape ReverseSequence ScatterElements ScatterND Shape Size Slice "
    "SpaceToDepth Split Squeeze Tile TopK Transpose Trilu Unique Unsqueeze Where"
)
_COMPARE = (
    "And ArgMax ArgMin Clip Equal Greater GreaterOrEqual IsInf IsNaN Less LessOrEqual Max Min Not Or ReduceMax "
    "ReduceMin Relu Sign Xor"
)
_ROUND_ONCE = "Abs Add Cast Ceil Div Floor Mul Neg Range Round Sqrt Sub Sum"
_BIT_EXACT = frozenset(f"{_MOVE} {_COMPARE} {_ROUND_ONCE}".split())
"""Operators that move elements or round each result once: no order of summation, no approximation."""

_FOLDABLE_KINDS = "biuf"
_PLAIN = (int, float, str, bytes, list, gs.Constant)  # not bodies, nor what only the source's file can express


class FoldConstants(Rule):
    """Compute a node whose inputs are all constant.

    Pattern: any node of the standard domain with at least one input, all of them constant.
    Conditions: deterministic; no body (If, Loop, Scan, SequenceMap); tensors of numbers or bools; no output is
    a graph output; the operator moves elements or rounds each result once, or everything is of integers; the
    value adds at most ``max_fold_bytes`` to the file (its bytes less those of inputs that nobody else uses), all
    values together at most 64 MiB. The size is known from shape inference before anything is computed. With
    ``exact_only`` no weight of a MatMul, Gemm, Conv or recurrent layer becomes constant that was not: its kernel
    would pack it.
    Proof: the value is computed once by the kernel that would compute it at every run, the runtime's
    optimizations off.
    Refuses: Random*, Multinomial, Bernoulli, Dropout, whatever ONNX marks as not deterministic, other domains,
    QuantizeLinear and DequantizeLinear (quantization already in a model is left alone).
    """

    name: ClassVar[str] = "fold-constants"
    safety: ClassVar[Safety] = Safety.EXACT
    ops: ClassVar[frozenset[str] | None] = None

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator

    def apply(self, node: gs.Node, scope: Scope) -> Site | Skip | None:
        """See ``Rule.apply``."""
        values = _constant_inputs(node, scope)
        if values is None or self._takes(node, values) is False:
            return None
        if node.op in RANDOM:
            return self.skip(node, f"{node.op} is random and never folded")
        if not _may_fold(node, scope):
            return None
        size = self._evaluator.output_bytes(node, values)
        if size is None:
            return self.skip(node, "the size of its value is not known before it is computed")
        growth = size - _freed(node, scope)
        refusal = scope.limits.refusal(growth)
        if refusal is not None:
            return self.skip(node, refusal)
        return self._fold(node, values, growth, scope)

    def _takes(self, node: gs.Node, values: list[Array | None]) -> bool:
        return bit_exact(node, values)

    def _fold(self, node: gs.Node, values: list[Array | None], growth: int, scope: Scope) -> Site | Skip:
        try:
            results = self._evaluator.run(node, values)
        except RuntimeFailure as failure:
            return self.skip(node, f"onnxruntime cannot compute it: {failure.why or failure.what}")
        if any(value is not None and value.dtype.kind not in _FOLDABLE_KINDS for value in results):
            return self.skip(node, "its value is not a tensor of numbers")
        site = self.site(node, f"computed {node.op} of constants", bytes_added=growth)
        scope.limits.added += growth
        scope.become_constant(node, results)
        return site


class FoldArithmetic(FoldConstants):
    """Compute a node whose inputs are all constant, where a runtime may sum or approximate in another order.

    Pattern: as `fold-constants`, for the operators it leaves: MatMul, Conv, reductions, Exp, Erf, Softmax and
    the like on floating-point constants.
    Conditions: as `fold-constants`.
    Proof: the same kernel computes the same formula. Weights packed ahead of time and work split between
    threads may change the order of a sum or the tail of a vectorised approximation, hence ROUNDING.
    Refuses: as `fold-constants`.
    """

    name: ClassVar[str] = "fold-arithmetic"
    safety: ClassVar[Safety] = Safety.ROUNDING

    def _takes(self, node: gs.Node, values: list[Array | None]) -> bool:
        return not bit_exact(node, values)


def bit_exact(node: gs.Node, values: list[Array | None]) -> bool:
    """Whether every correct kernel gives the same bits."""
    return node.op in _BIT_EXACT or not any(v is not None and v.dtype.kind == "f" for v in values)


def _constant_inputs(node: gs.Node, scope: Scope) -> list[Array | None] | None:
    """The value of each input (``None``: left out), or ``None`` where one is not a constant of numbers."""
    if not in_standard_domain(node) or node.op in _OTHER_RULES or len(node.inputs) == 0:
        return None
    values: list[Array | None] = []
    for index in range(len(node.inputs)):
        if scope.input(node, index) is None:
            values.append(None)
            continue
        value = scope.constant(node, index)
        if value is None or value.dtype.kind not in _FOLDABLE_KINDS:
            return None
        values.append(value)
    return values if any(value is not None for value in values) else None


def _may_fold(node: gs.Node, scope: Scope) -> bool:
    if node.op in _LEFT_ALONE or not all(isinstance(v, _PLAIN) for v in node.attrs.values()):
        return False
    if any(scope.editor.is_output(t) or not scope.may_become_constant(t) for t in node.outputs):
        return False
    return is_deterministic(node.op, scope.model.opset)


def _freed(node: gs.Node, scope: Scope) -> int:
    """Bytes of the constants that only this node uses."""
    freed, seen = 0, set()
    for tensor in node.inputs:
        if id(tensor) in seen or tensor.is_empty():
            continue
        seen.add(id(tensor))
        value = scope.editor.constant(tensor)
        if value is not None and scope.only_user(tensor, node):
            freed += value.nbytes
    return freed
