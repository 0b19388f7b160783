"""Layers that are linear in a constant weight: Conv, ConvTranspose, Gemm and MatMul.

The one place that knows which axes of a weight are its output and input channels, where a bias is kept, and how
a scale or a shift on either side becomes part of both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.model.domains import in_standard_domain
from graphopt.pipeline.affine import Affine, Arithmetic, read_arithmetic
from graphopt.pipeline.rules import Array, Dims, Scope, label

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
HELD = 1e-18
"""Beside a parameter of this size one below 1e-38 does not show."""


@dataclass(frozen=True)
class Layer:
    """One layer ``y = W ∗ x + b`` (Gemm: ``alpha · x · W + beta · C``).

    Attributes:
        node: the layer's node; x is its input 0, W its input 1.
        weight: W as it is, a floating-point constant.
        outputs: output channels.
        inputs: input channels.
        bias: float64 [outputs], zeros where there is none, ``beta`` included; ``None``: not constant, or not one
            vector or scalar.
        behind: an Add or Sub behind a MatMul that alone reads it and adds its bias.
    """

    node: gs.Node
    weight: Array
    outputs: int
    inputs: int
    bias: Array | None
    behind: Arithmetic | None = None

    @property
    def result(self) -> gs.Tensor:
        """The tensor that holds y."""
        return (self.node if self.behind is None else self.behind.node).outputs[0]

    @property
    def holds_bias(self) -> bool:
        """Whether a bias can be stored without a node more."""
        return self.node.op != "MatMul" or self.behind is not None

    @property
    def out_axis(self) -> int:
        """Axis of y's channels, negative."""
        return 1 - self.weight.ndim if self._spatial else -1

    @property
    def in_axis(self) -> int:
        """Axis of x's channels, negative."""
        if self._spatial:
            return 1 - self.weight.ndim
        return -2 if self.node.op == "Gemm" and self.node.attrs.get("transA", 0) else -1

    @property
    def result_shape(self) -> Dims:
        """What the layer itself tells of y's shape; of a MatMul, the last axis alone."""
        if self._spatial:
            return (None, self.outputs, *(None,) * (self.weight.ndim - 2))
        return (None, self.outputs) if self.node.op == "Gemm" else (self.outputs,)

    @property
    def input_rank(self) -> int | None:
        """Rank of x; ``None``: a MatMul takes any."""
        return None if self.node.op == "MatMul" else self.weight.ndim

    @property
    def pads(self) -> bool:
        """Whether zeros may be added around x, or positions of y may miss some of the kernel's.

        Then a shift of x is no constant shift of y. For ConvTranspose that is so unless it is a product at each
        position: kernel 1, stride 1, nothing added or cut off.
        """
        attrs = self.node.attrs
        if not self._spatial:
            return False
        padded = any(attrs.get("pads") or ()) or attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
        if self.node.op == "Conv":
            return padded
        pointwise = all(d == 1 for d in self.weight.shape[2:]) and all(s == 1 for s in attrs.get("strides") or ())
        return padded or not pointwise or any(attrs.get("output_padding") or ()) or bool(attrs.get("output_shape"))

    @property
    def _spatial(self) -> bool:
        return self.node.op in ("Conv", "ConvTranspose")

    @property
    def _groups(self) -> int:
        return int(self.node.attrs.get("group", 1)) if self._spatial else 1

    def by_output(self, factor: Array) -> Array:
        """``factor`` [outputs] laid out to multiply W by broadcasting."""
        if self.node.op in ("Gemm", "MatMul"):
            return factor[:, None] if self._transposed else factor[None, :]
        tail = (1,) * (self.weight.ndim - 2)
        if self.node.op == "Conv":
            return factor.reshape(-1, 1, *tail)
        # W is [C_in, C_out / group, …]: a row of C_in belongs to one group of outputs.
        rows = np.repeat(factor.reshape(self._groups, -1), self.inputs // self._groups, axis=0)
        return rows.reshape(*rows.shape, *tail)

    def by_input(self, factor: Array) -> Array:
        """``factor`` [inputs] laid out to multiply W by broadcasting."""
        if self.node.op in ("Gemm", "MatMul"):
            return factor[None, :] if self._transposed else factor[:, None]
        tail = (1,) * (self.weight.ndim - 2)
        if self.node.op == "ConvTranspose":
            return factor.reshape(-1, 1, *tail)
        # W is [C_out, C_in / group, …]: a row of C_out reads one group of inputs.
        rows = np.repeat(factor.reshape(self._groups, -1), self.outputs // self._groups, axis=0)
        return rows.reshape(*rows.shape, *tail)

    def response(self, shift: Array) -> Array:
        """What a constant ``shift`` [inputs] of x adds to y, float64 [outputs]; where nothing ``pads``."""
        moved: Array = self.weight.astype(np.float64) * self.by_input(shift)
        groups = self._groups
        if self.node.op == "Conv":
            moved = moved.reshape(self.outputs, -1).sum(axis=1)
        elif self.node.op == "ConvTranspose":
            moved = moved.reshape(groups, self.inputs // groups, -1).sum(axis=1).reshape(-1)
        else:
            moved = moved.sum(axis=1 if self._transposed else 0)
        return moved * float(self.node.attrs.get("alpha", 1.0)) if self.node.op == "Gemm" else moved

    @property
    def _transposed(self) -> bool:
        return self.node.op == "Gemm" and bool(self.node.attrs.get("transB", 0))


@dataclass(frozen=True)
class Change:
    """New parameters of a layer, in the weight's type, not yet stored.

    Attributes:
        layer: whose they are.
        weight: the new W; ``None``: it stays.
        bias: the new bias [outputs]; ``None``: it stays.
    """

    layer: Layer
    weight: Array | None
    bias: Array | None

    @property
    def in_range(self) -> bool:
        """Whether nothing left the range of its type, see ``narrowed``."""
        return all(value is None or bool(np.isfinite(value).all()) for value in (self.weight, self.bias))

    def store(self, scope: Scope) -> None:
        """Write the parameters into the graph; other users of a shared weight keep theirs."""
        if self.weight is not None:
            scope.editor.set_constant(self.layer.node, 1, self.weight)
        if self.bias is not None:
            _store_bias(self.layer, self.bias, scope)


def read_layer(node: gs.Node, scope: Scope) -> Layer | None:
    """The layer that ``node`` is; ``None`` where it is none or its weight is not constant or fits no channels."""
    if node.op not in LAYERS or not in_standard_domain(node):
        return None
    weight = scope.constant(node, 1)
    if weight is None or weight.dtype.kind != "f":
        return None
    channels = _channels(node, weight)
    if channels is None:
        return None
    bare = Layer(node, weight, *channels, bias=None)
    if node.op == "MatMul":
        return _with_bias_behind(bare, scope)
    return Layer(node, weight, *channels, bias=_bias(bare, scope))


def narrowed(exact: Array, dtype: np.dtype[Any]) -> Array:
    """Parameters in the type of their layer; the caller refuses what is infinite or NaN.

    In float32 and float64 a number that would be denormal becomes 0, beside others of at least ``HELD`` in the same
    tensor; NaN where there are none: all that the layer computes might be that small. Float16 lives with denormals.

    Args:
        exact: float64.
        dtype: float16, float32 or float64.
    """
    with np.errstate(over="ignore", under="ignore"):
        value = exact.astype(dtype)
    if dtype.itemsize < 4:
        return value
    lost = (np.abs(value) < np.finfo(dtype).tiny) & (exact != 0)
    if lost.any():
        value[lost] = 0 if np.abs(value).max() >= HELD else np.nan
    return value


def scaled_after(layer: Layer, affine: Affine) -> Change | None:
    """``affine`` applied to y, as part of the layer; ``None`` where the bias is unknown or has no place."""
    if layer.bias is None or not (layer.holds_bias or not affine.shift.any()):
        return None
    dtype = layer.weight.dtype
    weight = narrowed(layer.weight.astype(np.float64) * layer.by_output(affine.scale), dtype)
    bias = narrowed(layer.bias * affine.scale + affine.shift, dtype)
    return Change(layer, None if (affine.scale == 1).all() else weight, bias if layer.holds_bias else None)


def scaled_before(layer: Layer, affine: Affine) -> Change | None:
    """``affine`` applied to x, as part of the layer; ``None`` where a shift cannot be moved past it."""
    shifts = bool(affine.shift.any())
    if shifts and (layer.pads or layer.bias is None or not layer.holds_bias):
        return None
    bias, dtype = None, layer.weight.dtype
    weight = narrowed(layer.weight.astype(np.float64) * layer.by_input(affine.scale), dtype)
    if shifts and layer.bias is not None:
        bias = narrowed(layer.bias + layer.response(affine.shift), dtype)
    return Change(layer, None if (affine.scale == 1).all() else weight, bias)


def _channels(node: gs.Node, weight: Array) -> tuple[int, int] | None:
    """(Output, input) channels."""
    if node.op in ("Gemm", "MatMul"):
        if weight.ndim != 2:
            return None
        rows, columns = weight.shape
        return (rows, columns) if node.op == "Gemm" and node.attrs.get("transB", 0) else (columns, rows)
    groups = int(node.attrs.get("group", 1))
    if weight.ndim < 3 or groups < 1 or weight.shape[0] % groups:
        return None
    first, second = weight.shape[0], weight.shape[1] * groups
    return (first, second) if node.op == "Conv" else (second, first)


def _bias(layer: Layer, scope: Scope) -> Array | None:
    """The bias as a float64 vector, Gemm's ``beta`` included."""
    if scope.input(layer.node, 2) is None:
        return np.zeros(layer.outputs)
    value = scope.constant(layer.node, 2)
    if value is None or value.dtype.kind != "f":
        return None
    if value.size not in (1, layer.outputs) or (value.ndim > 0 and value.shape[-1] != value.size):
        return None
    beta = float(layer.node.attrs.get("beta", 1.0)) if layer.node.op == "Gemm" else 1.0
    return np.broadcast_to(value.astype(np.float64).reshape(-1) * beta, (layer.outputs,))


def _with_bias_behind(layer: Layer, scope: Scope) -> Layer:
    product = layer.node.outputs[0]
    alone = Layer(layer.node, layer.weight, layer.outputs, layer.inputs, np.zeros(layer.outputs))
    readers = scope.editor.consumers(product)
    if len(readers) != 1 or scope.editor.is_output(product) or not scope.selection.allows(readers[0]):
        return alone
    added = read_arithmetic(readers[0], scope)
    if added is None or added.scales or added.x is not product:
        return alone
    bias = added.along(-1, layer.outputs, layer.result_shape)
    if bias is None:
        return alone
    return Layer(layer.node, layer.weight, layer.outputs, layer.inputs, bias.shift, added)


def _store_bias(layer: Layer, bias: Array, scope: Scope) -> None:
    editor, node = scope.editor, layer.node
    if layer.behind is not None:
        added = layer.behind
        editor.set_constant(added.node, 1 - added.kept, -bias if added.node.op == "Sub" else bias)
        return
    if scope.input(node, 2) is not None:
        editor.set_constant(node, 2, bias)
    else:
        editor.set_input(node, 2, editor.add_constant(f"{label(node)}.bias", bias))
    if node.op == "Gemm" and "beta" in node.attrs:
        editor.set_attr(node, "beta", None)
