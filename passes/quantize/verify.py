"""Checks a written model: whether onnxruntime makes of it what was meant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import onnx_graphsurgeon as gs

from graphopt.model.model import Model
from graphopt.passes.quantize.units import Units
from graphopt.pipeline.contract import Broken
from graphopt.runtime.optimized import optimized_nodes, optimized_ops
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
_SHOWN = 3


def foreign_integer_op(model: Model) -> gs.Node | None:
    """The first node, bodies included, that is quantized already; ``None``: there is none."""
    return next((node for node, _ in model.editor.all_nodes() if node.op in _INTEGER_OPS), None)


def written_kernels(model: Model) -> Counter[str]:
    """How many Conv, Gemm and MatMul nodes read their weight back from integers."""
    return Counter(node.op for node, _ in _written(model))


def _written(model: Model) -> Iterator[tuple[gs.Node, gs.Node]]:
    """Each of these nodes, and what reads its weight back."""
    for node in model.editor.nodes():
        back = model.editor.producer(node.inputs[1]) if node.op in _KERNELS else None
        if back is not None and back.op == "DequantizeLinear" and model.editor.constant(back.inputs[0]) is not None:
            yield node, back


def unfused_layers(model: Model, target: Target) -> frozenset[str]:
    """Output names of the written nodes whose weight onnxruntime still reads back to floats.

    Raises:
        RuntimeFailure: GO-603, the model does not open.
    """
    nodes = optimized_nodes(model, provider=target.provider, custom_op_libraries=target.custom_op_libraries)
    reading = [node for node in nodes if node.op.rsplit(":", 1)[-1] == "DequantizeLinear"]
    floats = {name for node in reading for name in node.outputs}
    return frozenset(node.outputs[0].name for node, back in _written(model) if back.outputs[0].name in floats)


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


def nothing_to_do(model: Model, units: Units) -> str:
    """Why a model holds no layer that could be made integer, by the nodes that come closest."""
    nodes: dict[str, list[str]] = {}
    for node in model.editor.nodes():
        name = node.name or node.outputs[0].name
        if node.op in _KERNELS and name in units.refused:
            nodes.setdefault(units.refused[name], []).append(name)
    if not nodes:
        return "there is no convolution or linear layer with a constant float32 weight, outside of bodies"
    return "no layer can be made integer: " + "; ".join(f"{why} ({_listed(names)})" for why, names in nodes.items())


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
