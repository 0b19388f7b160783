"""Checks a written model: whether onnxruntime makes of it what was meant."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.model.model import Model
from graphopt.pipeline.contract import Broken
from graphopt.runtime.optimized import optimized_ops
from graphopt.runtime.target import Target

_INTEGER_OPS = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "QLinearConv",
        "QLinearMatMul",
        "ConvInteger",
        "MatMulInteger",
        "QGemm",
        "QAttention",
        "MatMulNBits",
    }
)
_KERNELS = {
    "Conv": ("QLinearConv",),
    "Gemm": ("QGemm",),
    "MatMul": ("QLinearMatMul", "MatMulIntegerToFloat"),
}


def foreign_integer_op(model: Model) -> gs.Node | None:
    """The first node, bodies included, that is quantized already; ``None``: there is none."""
    return next((node for node, _ in model.editor.all_nodes() if node.op in _INTEGER_OPS), None)


def written_kernels(model: Model) -> Counter[str]:
    """How many Conv, Gemm and MatMul nodes read their weight back from integers."""
    counts: Counter[str] = Counter()
    for node in model.editor.nodes():
        if node.op not in _KERNELS:
            continue
        source = model.editor.producer(node.inputs[1])
        if source is not None and source.op == "DequantizeLinear" and _is_weight(model, source):
            counts[node.op] += 1
    return counts


def _is_weight(model: Model, dequantize: gs.Node) -> bool:
    return model.editor.constant(dequantize.inputs[0]) is not None


def loaded_kernels(model: Model, target: Target) -> Counter[str]:
    """How many integer kernels onnxruntime made of them at ORT_ENABLE_ALL, under the ONNX operator's name."""
    loaded = optimized_ops(model, provider=target.provider, custom_op_libraries=target.custom_op_libraries)
    plain = Counter[str]()
    for op, count in loaded.items():
        plain[op.rsplit(":", 1)[-1]] += count
    return Counter({op: sum(plain[k] for k in kernels) for op, kernels in _KERNELS.items()})


def check_fusions(model: Model, target: Target) -> None:
    """Raise ``Broken`` unless onnxruntime loads exactly as many integer kernels as were written.

    Fewer: weights are read back to float in every run. More: a node that the plan leaves float was quantized as well.
    """
    written, loaded = written_kernels(model), loaded_kernels(model, target)
    for op in _KERNELS:
        if written[op] != loaded[op]:
            raise Broken(
                "fusion count",
                f"{written[op]} {op} nodes were written in integers, onnxruntime runs {loaded[op]}",
                {"op": op, "written": written[op], "loaded": loaded[op]},
            )


def nothing_to_do(model: Model) -> str:
    """Why a model holds no layer that could be made integer."""
    constants = (model.editor.constant(tensor) for node in model.editor.nodes() for tensor in node.inputs[1:2])
    if any(value is not None and value.dtype == np.float16 for value in constants):
        return "the weights are float16: integer kernels are made from float32 models"
    return "there is no convolution or linear layer with a constant float32 weight"
