"""Rule `matmul-add`."""

from __future__ import annotations

from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.model.domains import in_standard_domain
from graphopt.pipeline.contract import Safety, Site, Skip
from graphopt.pipeline.rules import Array, Rule, Scope, label


class MatMulAdd(Rule):
    """Write MatMul followed by the addition of a bias as Gemm.

    Pattern: Add(MatMul(x, W), b) or Add(b, MatMul(x, W)).
    Conditions: x has rank 2; W is a constant matrix [K, M] and b a constant of shape [M], [1, M], [1, 1], [1]
    or [], both of one type out of float16, float32 and float64; the Add alone uses the product, which is no
    graph output; both nodes are open to this pass; opset ≥ 7.
    Proof: Gemm with alpha = beta = 1 computes x · W + b with b broadcast over rows: the same sums, the bias added
    before or after, hence ROUNDING.
    Effect: none on speed (onnxruntime fuses the pair at load time); the layer becomes one node with weight and
    bias, as channel removal and quantization look for it.
    Refuses: products of higher rank, where Gemm is not defined; a b that is larger than one row.
    """

    name: ClassVar[str] = "matmul-add"
    safety: ClassVar[Safety] = Safety.ROUNDING
    ops: ClassVar[frozenset[str] | None] = frozenset({"Add"})

    def apply(self, node: gs.Node, scope: Scope) -> Site | Skip | None:
        """See ``Rule.apply``."""
        for index in (0, 1):
            product = scope.producer(node.inputs[index])
            if product is None or product.op != "MatMul" or not in_standard_domain(product):
                continue
            if not _fits(product, scope.constant(node, 1 - index), scope):
                continue
            if not scope.selection.allows(product):
                return self.skip(node, f"{label(product)} is left out by only/skip")
            if not scope.only_user(product.outputs[0], node):
                return self.skip(node, f"the output of {label(product)} has another user or is a graph output")
            return self._rewrite(node, product, node.inputs[1 - index], scope)
        return None

    def _rewrite(self, node: gs.Node, product: gs.Node, bias: gs.Tensor, scope: Scope) -> Site:
        site = self.site(node, f"MatMul {label(product)} and Add became Gemm")
        inputs = [*product.inputs, bias]
        gemm = scope.editor.add_node("Gemm", inputs, outputs=[node.outputs[0]], name=f"{label(product)}_gemm")
        scope.remove(node)
        scope.remove(product)
        scope.touch([gemm, *scope.editor.consumers(gemm.outputs[0])])
        return site


def _fits(product: gs.Node, bias: Array | None, scope: Scope) -> bool:
    weight, shape = scope.constant(product, 1), scope.shape(product.inputs[0])
    if weight is None or bias is None or shape is None or scope.model.opset < 7:
        return False
    if weight.ndim != 2 or len(shape) != 2 or weight.dtype != bias.dtype:
        return False
    one_row = bias.ndim <= 2 and bias.size in (1, weight.shape[1]) and (bias.ndim == 0 or bias.shape[-1] == bias.size)
    return one_row and weight.dtype.name in ("float16", "float32", "float64")
