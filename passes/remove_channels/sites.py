"""The linear layers that can be refitted: how to read the rows they see, and how to write new weights into them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.analysis.channels import Channels, Use
from graphopt.analysis.moments import Window, sample_positions
from graphopt.model.domains import in_standard_domain
from graphopt.model.model import Model
from graphopt.passes.remove_channels.surgery import Removal, constant

Array = npt.NDArray[Any]
Matrix = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Site:
    """A Conv with one group, a Gemm or a MatMul with a constant weight.

    Attributes:
        node: the layer.
        use: its weight.
        window: its sliding window; ``None`` for Gemm and MatMul.
        transposed: the weight is stored [outputs, inputs].
        bias: (node, input index) of the bias; ``None``: it has none and takes none.
    """

    node: gs.Node
    use: Use
    window: Window | None
    transposed: bool
    bias: tuple[gs.Node, int] | None

    @property
    def name(self) -> str:
        """What to call the layer."""
        return str(self.node.name or self.node.outputs[0].name)

    @property
    def source(self) -> str:
        """The tensor it reads."""
        return str(self.node.inputs[0].name)

    @property
    def target(self) -> str:
        """The tensor it computes."""
        return str(self.node.outputs[0].name)

    def matrix(self, model: Model) -> Matrix:
        """The weight as float64 [inputs · kernel, outputs]."""
        value = constant(model, self.node, self.use.index).astype(np.float64)
        return value.reshape(len(value), -1).T if self.transposed else value

    def columns(self, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Labels of the weight's input axis, repeated for each kernel entry."""
        return np.repeat(labels, math.prod(self.window.kernel)) if self.window else labels

    def input_axis(self) -> int:
        """The weight's input axis."""
        return next(iter(self.use.columns))

    def offset(self, model: Model) -> Matrix:
        """What the layer's own output holds of its bias: float64 [outputs]."""
        width = self.matrix(model).shape[1]
        if self.bias is None or self.bias[0] is not self.node or not _present(self.node, self.bias[1]):
            return np.zeros(width)
        bias = constant(model, self.node, self.bias[1]).astype(np.float64)
        return np.broadcast_to(bias.reshape(-1), (width,)).copy()

    def write(self, removal: Removal, matrix: Matrix, push: Matrix) -> None:
        """Set the weight to ``matrix`` and add ``push`` to the bias, where the layer has or takes one."""
        shape, dtype = self.use.value.shape, self.use.value.dtype
        value = (matrix.T if self.transposed else matrix).reshape(shape).astype(dtype)
        editor = removal.model.editor
        editor.set_constant(self.node, self.use.index, np.ascontiguousarray(value))
        if self.bias is None or not push.any():
            return
        node, index = self.bias
        if node is self.node:
            removal.add_bias(node, index, push)
        else:
            old = constant(removal.model, node, index)
            editor.set_constant(node, index, (old.astype(np.float64) + push).astype(old.dtype))

    def draw(self, shape: Sequence[int], limit: int, rng: np.random.Generator) -> list[Indices]:
        """Output positions to read: up to ``limit`` of a feature map (Conv), of all rows (Gemm, MatMul).

        Args:
            shape: shape of the layer's output.
            limit: how many; Gemm and MatMul give at least one row for each entry of the batch.
            rng: draws them.
        """
        if self.window is None:
            return sample_positions((math.prod(shape[:-1]),), max(limit, shape[0]), rng)
        return sample_positions(shape[2:], limit, rng)

    def inputs(self, x: Array, positions: Sequence[Indices]) -> Array:
        """What the layer reads at these positions: float32 [rows, inputs · kernel]."""
        if self.window is None:
            return x.reshape(-1, x.shape[-1])[positions[0]]
        return self._fitted(x.shape[2:]).patches(x, positions)

    def targets(self, y: Array, positions: Sequence[Indices]) -> Array:
        """A tensor of the shape of the layer's output at these positions: float32 [rows, outputs]."""
        if self.window is None:
            return y.reshape(-1, y.shape[-1])[positions[0]]
        where: tuple[Any, ...] = (slice(None), slice(None), *positions)
        picked: Array = y[where]  # [N, O, P]
        return picked.transpose(0, 2, 1).reshape(-1, y.shape[1])

    def _fitted(self, spatial: tuple[int, ...]) -> Window:
        """The window with the padding that ``auto_pad`` means for this size."""
        assert self.window is not None
        mode = self.node.attrs.get("auto_pad", "NOTSET")
        mode = mode.decode() if isinstance(mode, bytes) else mode
        if mode in ("NOTSET", "VALID"):
            return self.window
        w = self.window
        lows, highs = [], []
        for size, k, s, d in zip(spatial, w.kernel, w.strides, w.dilations, strict=True):
            total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
            low = total // 2 if mode == "SAME_UPPER" else total - total // 2
            lows.append(low)
            highs.append(total - low)
        return Window(w.kernel, w.strides, w.dilations, tuple(lows), tuple(highs))


def find_sites(model: Model, channels: Channels) -> list[Site]:
    """Every layer of the model that can be refitted, in graph order."""
    found = []
    for node in model.editor.nodes():
        use = channels.facts.uses.get((id(node), 1))
        if use is None or use.value.dtype != np.float32 or not in_standard_domain(node):
            continue
        make = {"Conv": _conv, "Gemm": _gemm, "MatMul": _matmul}.get(node.op)
        site = make(model, node, use) if make is not None and len(use.columns) == 1 else None
        if site is not None:
            found.append(site)
    return found


def _conv(model: Model, node: gs.Node, use: Use) -> Site | None:
    if int(node.attrs.get("group", 1)) != 1 or not _takes_bias(model, node, 2):
        return None
    rank = use.value.ndim - 2
    pads = [int(p) for p in node.attrs.get("pads", [0] * (2 * rank))]
    ones = [1] * rank
    window = Window(
        kernel=use.value.shape[2:],
        strides=tuple(int(s) for s in node.attrs.get("strides", ones)),
        dilations=tuple(int(d) for d in node.attrs.get("dilations", ones)),
        pads=tuple(pads[:rank]),
        pads_end=tuple(pads[rank:]),
    )
    return Site(node, use, window, transposed=True, bias=(node, 2))


def _gemm(model: Model, node: gs.Node, use: Use) -> Site | None:
    plain = node.attrs.get("alpha", 1.0) == node.attrs.get("beta", 1.0) == 1.0
    if not plain or node.attrs.get("transA", 0) or not _takes_bias(model, node, 2):
        return None
    transposed = bool(node.attrs.get("transB", 0))
    width = use.value.shape[0 if transposed else 1]
    if _present(node, 2) and constant(model, node, 2).size not in (1, width):
        return None
    return Site(node, use, None, transposed, bias=(node, 2))


def _matmul(model: Model, node: gs.Node, use: Use) -> Site | None:
    if use.value.ndim != 2:
        return None
    readers = model.editor.consumers(node.outputs[0])
    bias = None
    if len(readers) == 1 and readers[0].op == "Add" and not model.editor.is_output(node.outputs[0]):
        for index, tensor in enumerate(readers[0].inputs):
            value = model.editor.constant(tensor)
            if value is not None and value.shape[-1:] == value.shape[-1:] and value.size == use.value.shape[1]:
                bias = (readers[0], index) if value.ndim and value.shape[-1] == value.size else None
    return Site(node, use, None, transposed=False, bias=bias)


def _present(node: gs.Node, index: int) -> bool:
    return index < len(node.inputs) and not node.inputs[index].is_empty()


def _takes_bias(model: Model, node: gs.Node, index: int) -> bool:
    return not _present(node, index) or model.editor.constant(node.inputs[index]) is not None
