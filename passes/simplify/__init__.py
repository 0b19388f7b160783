"""The pass `simplify`; one rule a file beside it."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

from pydantic import Field, field_validator

from graphopt.passes.simplify.constant_node import ConstantNode
from graphopt.passes.simplify.dead_node import DeadNode
from graphopt.passes.simplify.dropout import InferenceDropout
from graphopt.passes.simplify.evaluate import Evaluator
from graphopt.passes.simplify.fold_constants import FoldArithmetic, FoldConstants
from graphopt.passes.simplify.identity import IdentityNode
from graphopt.passes.simplify.matmul_add import MatMulAdd
from graphopt.passes.simplify.neutral_operand import AddZero, NeutralOperand
from graphopt.passes.simplify.noop_cast import NoopCast
from graphopt.passes.simplify.noop_pad import NoopPad
from graphopt.passes.simplify.noop_slice import NoopSlice
from graphopt.passes.simplify.noop_transpose import NoopTranspose
from graphopt.passes.simplify.noop_view import NoopView
from graphopt.passes.simplify.single_input import SingleInput
from graphopt.passes.simplify.static_shape import StaticShape
from graphopt.pipeline.contract import Pass, PassContext, PassOptions, PassResult, Safety
from graphopt.pipeline.fold_batchnorm import FoldBatchNorm
from graphopt.pipeline.nested import nested_skips
from graphopt.pipeline.rewrite import rewrite
from graphopt.pipeline.rules import Limits, Rule, Scope


class SimplifyOptions(PassOptions):
    """Options of `simplify`."""

    exact_only: bool = Field(False, description="apply only the rules that change no bit of any output")
    exclude_rules: tuple[str, ...] = Field((), description="names of rules to leave out")
    max_fold_bytes: int = Field(1 << 16, ge=0, description="bytes that computing one constant node may add to the file")

    @field_validator("exclude_rules")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = sorted(set(names) - set(RULES))
        if unknown:
            raise ValueError(f"no rule is called {', '.join(unknown)}; the rules are {', '.join(RULES)}")
        return names


class Simplify(Pass[SimplifyOptions]):
    """Remove what computes nothing, compute what is constant, fold BatchNormalization.

    What it does:
        Applies small rewrite rules until none applies any more. EXACT rules: `dead-node` (nodes nothing uses),
        `constant-node` (Constant nodes become initializers), `identity`, `dropout` (inference mode),
        `noop-cast`, `noop-view` (Reshape, Flatten, Squeeze, Unsqueeze, Expand, Tile that keep the shape),
        `noop-transpose`, `noop-pad`, `noop-slice`, `single-input` (Concat, Sum, Max, Min, Mean, Split of one),
        `neutral-operand` (x · 1, x / 1, x - 0), `static-shape` (Shape, Size of fixed dimensions, and what is
        picked from them), `fold-constants` (nodes whose inputs are all constant). ROUNDING rules: `add-zero`
        (-0.0 becomes +0.0), `fold-arithmetic` (constant MatMul, reductions, Exp and the like), `fold-batchnorm`
        (into Conv, ConvTranspose, Gemm), `matmul-add` (MatMul and a bias become Gemm).

    When it applies:
        To the top-level graph of any model. Each rule states pattern, conditions and proof in its own
        docstring, and fires only where shapes, types and constants prove that nothing else changes.

    When it refuses:
        Each reason is in the report with its node: BatchNormalization whose layer has another user, feeds a
        graph output or has weights that are not constant; Dropout and BatchNormalization in training mode;
        random operators; values that would make the file grow past the limits. It never touches QuantizeLinear
        and DequantizeLinear, operators of other domains, control flow, bodies of If, Loop and Scan, overridable
        initializers, and names of graph inputs and outputs. Dimensions known by name only are not taken for
        equal.

    Safety:
        ROUNDING; with `exact_only`, bit-identical outputs with the runtime's optimizations off. Two side effects of
        onnxruntime are respected there: a computed weight that became constant would be packed ahead of time and
        summed in another order, and a float16 node that is taken out would take a rounding with it (what has no
        float16 kernel is computed in float32, from node to node). Both stay as they are.

    Options:
        `exclude_rules` takes the rule names above.

    Example:
        `graphopt run model.onnx -o out.onnx --pass simplify`

        In a recipe:

            [[pass]]
            name = "simplify"
            max_fold_bytes = 1048576

    Cost:
        Linear in nodes and edges; constant folding opens one onnxruntime session per kind of node. No samples
        needed. The speed of the model hardly changes, since onnxruntime does most of this at load time itself
        (measured: 0.99 to 1.00 times on two OCR models); the gain is a smaller graph that later passes can
        read. Since it computes constants at load time too, a value that makes the file grow by more than
        `max_fold_bytes` is not worth its bytes and stays computed.

    References:
        Jacob et al., 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
        Inference", section 3.2 (BatchNormalization folding). Kildall, 1973, "A unified approach to global
        program optimization" (constant folding).
    """

    name: ClassVar[str] = "simplify"
    code: ClassVar[str] = "SMP"
    safety: ClassVar[Safety] = Safety.ROUNDING
    Options: ClassVar[type[PassOptions]] = SimplifyOptions

    def run(self, ctx: PassContext) -> PassResult:
        """See ``Pass.run``."""
        options = self.options
        before = len(ctx.editor.nodes())
        limits = Limits(options.max_fold_bytes)
        scope = Scope(ctx.model, ctx.selection, limits, options.exact_only)
        # Dead code first: a dead user must not count as another user.
        dead, _ = rewrite(scope, [DeadNode()])
        done, skips = rewrite(scope, self._rules(ctx.model.opset))
        sites = [*dead, *done]
        counts = Counter(site.rule for site in sites)
        return PassResult(
            modified=bool(sites),
            applied=tuple(sites),
            skipped=(*skips, *nested_skips(ctx.model, ctx.selection)),
            summary={
                **({"folded_bytes_added": limits.added} if limits.added else {}),
                "nodes_before": before,
                "nodes_after": len(ctx.editor.nodes()),
                "rules": {name: counts[name] for name in RULES if counts[name]},
            },
        )

    def _rules(self, opset: int) -> list[Rule]:
        evaluator = Evaluator(opset)
        rules = [_make(kind, evaluator) for name, kind in RULES.items() if name not in self.options.exclude_rules]
        return [rule for rule in rules if not self.options.exact_only or rule.safety is Safety.EXACT]


def _make(kind: type[Rule], evaluator: Evaluator) -> Rule:
    return kind(evaluator) if issubclass(kind, FoldConstants) else kind()


_IN_ORDER: tuple[type[Rule], ...] = (
    DeadNode,  # first: a dead user must not count as another user
    ConstantNode,
    IdentityNode,
    InferenceDropout,
    NoopCast,
    NoopView,
    NoopTranspose,
    NoopPad,
    NoopSlice,
    SingleInput,
    NeutralOperand,
    AddZero,
    StaticShape,
    FoldConstants,
    FoldArithmetic,
    FoldBatchNorm,
    MatMulAdd,
)

RULES: dict[str, type[Rule]] = {rule.name: rule for rule in _IN_ORDER}
"""Rule name → rule, in the order in which they are tried at each node."""

__all__ = ["RULES", "Simplify", "SimplifyOptions"]
