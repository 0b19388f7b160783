"""Small linear layers of every kind, with constant arithmetic before and behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from graphopt.testing.draft import Draft

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Kind:
    """One kind of layer.

    Attributes:
        op: its operator.
        weight: shape of its weight.
        attrs: its attributes.
        bias: shape of its bias; ``None``: it has none.
        x: shape of its input.
        before: shape of a constant with one number per input channel.
        behind: shape of a constant with one number per output channel.
        added: a MatMul's bias is an Add (or Sub) behind it.
    """

    op: str
    weight: tuple[int, ...]
    x: tuple[int | str, ...]
    before: tuple[int, ...]
    behind: tuple[int, ...]
    bias: tuple[int, ...] | None = None
    attrs: dict[str, Any] = field(default_factory=dict)
    added: str = ""

    def build(self, draft: Draft, x: str, result: str, weight: str | None = None) -> str:
        """Add the layer, named after its op, reading ``x``."""
        rng = draft.rng
        names = [x, weight or constant(draft, f"{result}.w", spread(rng, self.weight))]
        if self.bias is not None and not self.added:
            names.append(constant(draft, f"{result}.b", spread(rng, self.bias)))
        if not self.added:
            return draft.node(self.op, names, result, name=f"{result}.layer", **self.attrs)
        product = draft.node(self.op, names, f"{result}.product", name=f"{result}.layer", **self.attrs)
        bias = constant(draft, f"{result}.b", spread(rng, self.bias or ()))
        return draft.node(self.added, [product, bias], result, name=f"{result}.bias")


MAP: tuple[int | str, ...] = ("n", 6, 5, 4)
CONVS = {
    "conv": Kind("Conv", (4, 6, 3, 3), MAP, (6, 1, 1), (4, 1, 1), (4,)),
    "conv without bias": Kind("Conv", (4, 6, 1, 1), MAP, (1, 6, 1, 1), (1, 4, 1, 1)),
    "grouped conv": Kind("Conv", (4, 3, 2, 3), MAP, (6, 1, 1), (4, 1, 1), (4,), {"group": 2}),
    "depthwise": Kind("Conv", (12, 1, 3, 3), MAP, (6, 1, 1), (12, 1, 1), None, {"group": 6, "auto_pad": "VALID"}),
    "conv of one axis": Kind("Conv", (4, 6, 3), ("n", 6, 7), (6, 1), (4, 1), (4,), {"strides": [2]}),
    "pointwise transposed": Kind("ConvTranspose", (6, 4, 1, 1), MAP, (6, 1, 1), (4, 1, 1), (4,)),
    "grouped pointwise transposed": Kind("ConvTranspose", (6, 4, 1, 1), MAP, (6, 1, 1), (8, 1, 1), None, {"group": 2}),
}
DENSE = {
    "gemm": Kind("Gemm", (6, 4), ("n", 6), (6,), (4,), (4,)),
    "gemm transB": Kind("Gemm", (4, 6), ("n", 6), (1, 6), (1, 4), (1, 4), {"transB": 1}),
    "gemm transA": Kind("Gemm", (6, 4), (6, "n"), (6, 1), (4,), (4,), {"transA": 1}),
    "gemm alpha beta": Kind("Gemm", (6, 4), ("n", 6), (6,), (4,), (1,), {"alpha": 0.5, "beta": 2.0}),
    "gemm without bias": Kind("Gemm", (6, 4), ("n", 6), (6,), (4,), None, {"alpha": 3.0}),
    "matmul and bias": Kind("MatMul", (6, 4), (2, "n", 6), (6,), (4,), (4,), added="Add"),
    "matmul less bias": Kind("MatMul", (6, 4), (2, "n", 6), (6,), (4,), (1,), added="Sub"),
}
BARE = {"matmul": Kind("MatMul", (6, 4), (2, "n", 6), (6,), (4,))}
PADDED = {
    "padded": Kind("Conv", (4, 6, 3, 3), MAP, (6, 1, 1), (4, 1, 1), (4,), {"pads": [1, 1, 1, 1]}),
    "padded at one end": Kind("Conv", (4, 6, 3, 3), MAP, (6, 1, 1), (4, 1, 1), None, {"pads": [0, 0, 0, 1]}),
    "same": Kind("Conv", (4, 3, 3, 3), MAP, (6, 1, 1), (4, 1, 1), (4,), {"auto_pad": "SAME_UPPER", "group": 2}),
    "transposed": Kind("ConvTranspose", (6, 4, 2, 2), MAP, (6, 1, 1), (4, 1, 1), (4,), {"strides": [2, 2]}),
    "overlapping transposed": Kind(
        "ConvTranspose", (6, 2, 3, 3), MAP, (6, 1, 1), (4, 1, 1), None, {"strides": [2, 2], "group": 2}
    ),
    "cropped transposed": Kind("ConvTranspose", (6, 4, 1, 1), MAP, (6, 1, 1), (4, 1, 1), None, {"pads": [1, 0, 0, 0]}),
    "strided pointwise transposed": Kind(
        "ConvTranspose", (6, 4, 1, 1), MAP, (6, 1, 1), (4, 1, 1), None, {"strides": [2, 1]}
    ),
    "transposed with output padding": Kind(
        "ConvTranspose", (6, 4, 1, 1), MAP, (6, 1, 1), (4, 1, 1), None, {"output_padding": [1, 0], "strides": [2, 1]}
    ),
}
"""A shift in front of these is not the same shift everywhere behind them."""
FREE = {**CONVS, **DENSE}
"""These take every scale and shift on either side."""
ALL = {**FREE, **BARE, **PADDED}


def finished(draft: Draft, *results: str) -> onnx.ModelProto:
    """The model with these outputs beside those it has; their shapes are inferred."""
    graph = helper.make_graph(draft.nodes, "layers", draft.inputs, draft.outputs, draft.initializers)
    for name in results:
        graph.output.add().CopyFrom(onnx.ValueInfoProto(name=name))
        graph.output[-1].type.tensor_type.elem_type = TensorProto.FLOAT
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", draft.opset)], ir_version=draft.ir_version)
    inferred: onnx.ModelProto = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    del inferred.graph.value_info[:]
    onnx.checker.check_model(inferred, full_check=True)
    return inferred


def spread(rng: np.random.Generator, shape: Sequence[int], zeros: float = 0.0) -> Array:
    """Numbers of either sign, evenly spread over the orders of magnitude 1e-3 to 1e3 around a common one, or zero."""
    size = rng.uniform(-2, 2) + rng.uniform(-1, 1, tuple(shape))
    value = rng.choice([-1.0, 1.0], tuple(shape)) * 10.0**size
    return np.where(rng.random(tuple(shape)) < zeros, 0.0, value).astype(np.float32)


def constant(draft: Draft, name: str, value: Array) -> str:
    """Add an initializer of exactly this shape, scalars included."""
    draft.initializers.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def arithmetic(draft: Draft, form: str, x: str, value: Array, result: str) -> str:
    """One of ``FORMS`` of x and a constant."""
    op, first = FORMS[form]
    name = constant(draft, f"{result}.c", value)
    return draft.node(op, [name, x] if first else [x, name], result, name=f"{result}.node")


FORMS = {
    "x * c": ("Mul", False),
    "c * x": ("Mul", True),
    "x / c": ("Div", False),
    "x + c": ("Add", False),
    "c + x": ("Add", True),
    "x - c": ("Sub", False),
    "c - x": ("Sub", True),
}
"""Operator, and whether the constant comes first."""
SCALES = ("x * c", "c * x", "x / c")
