"""Blocks for ``strategies`` in which exporters wrote out what runtimes have one operator for.

Activations, norms, gates, scales and shifts in elementary arithmetic, with operands in any order and constants in any
shape that broadcasts: what `fuse` looks for, and near misses of it. Constants keep within a factor of 100 of 1, so that
sums lose no more digits than a real model's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st

from graphopt.testing.strategies import MAP_BLOCKS, SEQUENCE_BLOCKS, Block, Sketch, feature_maps, sequences


def _number(sketch: Sketch, number: float, *, near_miss: bool = False) -> str:
    """A scalar constant of rank 0 or 1, or as many ones as the tip's rank; now and then not quite ``number``."""
    shape = sketch.draw(st.sampled_from(((), (1,), (1,) * (sketch.rank - 1))))
    value = number * 1.05 if near_miss and sketch.draw(st.integers(0, 9)) == 9 else number
    return sketch.draft.const(sketch.name("number"), np.full(shape, value, np.float32))


def _either(sketch: Sketch, op: str, x: str, constant: str) -> str:
    """A commutative node with its operands in either order."""
    return sketch.node(op, [constant, x] if sketch.flip() else [x, constant])


def _ramp(sketch: Sketch, x: str) -> str:
    """``clip(x + 3, 0, 6)`` in one of its spellings."""
    moved = _either(sketch, "Add", x, _number(sketch, 3.0, near_miss=True))
    how = sketch.draw(st.sampled_from(("Clip", "MinMax", "Relu")))
    if how == "Clip":
        scalars = [sketch.draft.const(sketch.name("bound"), np.array(b, np.float32)) for b in (0, 6)]
        return sketch.node("Clip", [moved, *scalars])
    low = sketch.node("Relu", [moved]) if how == "Relu" else sketch.node("Max", [moved, _number(sketch, 0.0)])
    return sketch.node("Min", [low, _number(sketch, 6.0)])


def _hard_swish(sketch: Sketch) -> None:
    """HardSwish, or its gate alone, with the division by 6 wherever it may stand."""
    x, ramp = sketch.tip, _ramp(sketch, sketch.tip)
    if sketch.flip():
        ramp = sketch.node("Div", [ramp, _number(sketch, 6.0, near_miss=True)])
        sketch.tip = sketch.node("Mul", [x, ramp]) if sketch.flip() else ramp
    else:
        sketch.tip = _either(sketch, "Mul", sketch.node("Mul", [ramp, x]), _number(sketch, 1 / 6))


def _curve(sketch: Sketch) -> None:
    """SiLU, Softplus or Gelu."""
    x = sketch.tip
    how = sketch.draw(st.sampled_from(("silu", "softplus", "gelu", "gelu tanh")))
    if how == "silu":
        sketch.tip = sketch.node("Mul", [x, sketch.node("Sigmoid", [x])])
    elif how == "softplus":
        grown = _either(sketch, "Add", sketch.node("Exp", [sketch.node("Tanh", [x])]), _number(sketch, 1.0))
        sketch.tip = sketch.node("Log", [grown])
    elif how == "gelu":
        inner = sketch.node("Erf", [sketch.node("Div", [x, _number(sketch, 2**0.5)])])
        sketch.tip = _halved(sketch, x, _either(sketch, "Add", inner, _number(sketch, 1.0)))
    else:
        cube = sketch.node("Pow", [x, sketch.draft.const(sketch.name("three"), np.array(3, np.float32))])
        curved = sketch.node("Add", [x, _either(sketch, "Mul", cube, _number(sketch, 0.044715, near_miss=True))])
        inner = sketch.node("Tanh", [_either(sketch, "Mul", curved, _number(sketch, (2 / np.pi) ** 0.5))])
        sketch.tip = _halved(sketch, x, _either(sketch, "Add", inner, _number(sketch, 1.0)))


def _halved(sketch: Sketch, x: str, gate: str) -> str:
    """``0.5 · x · gate`` in one of its orders."""
    if sketch.flip():
        return _either(sketch, "Mul", sketch.node("Mul", [x, gate]), _number(sketch, 0.5))
    return sketch.node("Mul", [_either(sketch, "Mul", x, _number(sketch, 0.5)), gate])


def _affine(sketch: Sketch) -> None:
    """A layer with constant arithmetic behind it, one to three steps, scalar or for each channel."""
    _layer(sketch)
    for _ in range(sketch.pick(1, 2, 3)):
        op = sketch.draw(st.sampled_from(("Mul", "Add", "Sub", "Div")))
        if sketch.flip():
            shape = (sketch.width, 1, 1) if sketch.rank == 4 else (sketch.width,)
            constant = sketch.vector("constant", *shape, low=0.2, high=2.0)
        else:
            constant = _number(sketch, sketch.draw(st.sampled_from((0.5, 2.0, -1.5, 0.01, 30.0))))
        swapped = op == "Sub" and sketch.flip()
        sketch.tip = sketch.node(op, [constant, sketch.tip] if swapped else [sketch.tip, constant])
    if sketch.flip():
        _layer(sketch)


def _layer(sketch: Sketch) -> None:
    """A Conv (padded or not), a transposed one, or a MatMul."""
    if sketch.rank == 3:
        weight = sketch.draft.weight(sketch.name("weight"), sketch.width, sketch.width, scale=sketch.width**-0.5)
        sketch.tip = sketch.node("MatMul", [sketch.tip, weight])
        return
    if sketch.draw(st.integers(0, 4)) == 4:
        weight = sketch.draft.weight(sketch.name("weight"), sketch.width, sketch.width, 1, 1)
        sketch.tip = sketch.node("ConvTranspose", [sketch.tip, weight])
        return
    kernel, bias = sketch.pick(1, 3), sketch.flip()
    sketch.tip = sketch.draft.conv(
        sketch.tip, sketch.name("conv"), sketch.width, sketch.width, kernel=kernel, bias=bias
    )


def _self_gate(sketch: Sketch) -> None:
    """``x + x · g``, the gate smaller than x or not."""
    gate = sketch.node("Sigmoid", [sketch.node(sketch.draw(st.sampled_from(("ReduceMax", "Neg"))), [sketch.tip])])
    product = sketch.node("Mul", [gate, sketch.tip] if sketch.flip() else [sketch.tip, gate])
    sketch.tip = sketch.node("Add", [product, sketch.tip] if sketch.flip() else [sketch.tip, product])


def _twice(sketch: Sketch) -> None:
    """The same computed twice, and added."""
    op = sketch.draw(st.sampled_from(("Sigmoid", "Tanh", "Relu")))
    pair = [sketch.node("Neg", [sketch.node(op, [sketch.tip])]) for _ in range(2)]
    sketch.tip = sketch.node("Add", pair)


def _padded(sketch: Sketch) -> None:
    """A constant Pad in front of a Conv or a pool."""
    pads = sketch.draft.const(sketch.name("pads"), np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
    value = sketch.draw(st.sampled_from((0.0, 1.0)))
    x = sketch.node("Relu", [sketch.tip]) if sketch.flip() else sketch.tip
    x = sketch.node("Pad", [x, pads, sketch.draft.const(sketch.name("value"), np.array(value, np.float32))])
    op = sketch.draw(st.sampled_from(("Conv", "MaxPool", "AveragePool")))
    if op == "Conv":
        weight = sketch.draft.weight(sketch.name("weight"), sketch.width, sketch.width, 3, 3)
        sketch.tip = sketch.node("Conv", [x, weight], kernel_shape=[3, 3])
    else:
        counted: dict[str, Any] = {"count_include_pad": 1} if op == "AveragePool" and sketch.flip() else {}
        sketch.tip = sketch.node(op, [x], kernel_shape=[3, 3], **counted)


def _views(sketch: Sketch) -> None:
    """Reshapes and transposes in a row that end in the same shape, with nodes between them or not."""
    perm = (0, 2, 3, 1) if sketch.rank == 4 else (0, 2, 1)
    x = sketch.node("Transpose", [sketch.tip], perm=perm)
    if sketch.flip():
        axes = sketch.draft.const(sketch.name("axes"), np.array([1], np.int64))
        x = sketch.node("Squeeze", [sketch.node("Unsqueeze", [x, axes]), axes])
    if sketch.flip():
        x = sketch.node("Relu", [x])
    sketch.tip = sketch.node("Transpose", [x], perm=tuple(int(i) for i in np.argsort(perm)))


def _shape_arithmetic(sketch: Sketch) -> None:
    """A Reshape to a shape computed from the tensor's own."""
    shape = sketch.node("Shape", [sketch.tip])
    index = sketch.draft.const(sketch.name("index"), np.array([0], np.int64))
    rest = sketch.draft.const(sketch.name("rest"), np.array([-1], np.int64))
    first = sketch.node("Gather", [shape, index], axis=0)
    flat = sketch.node("Reshape", [sketch.tip, sketch.node("Concat", [first, rest], axis=0)])
    sketch.tip = sketch.node("Reshape", [sketch.node("Tanh", [flat]), shape])


def _norm(sketch: Sketch) -> None:
    """Layer, instance or root-mean-square normalization in elementary arithmetic."""
    spatial = sketch.rank == 4
    axes = [2, 3] if spatial else [-1]
    x = sketch.tip
    if sketch.flip() or spatial:
        x = sketch.node("Sub", [x, _mean(sketch, x, axes)])
    square = sketch.node("Mul", [x, x]) if sketch.flip() else sketch.node("Pow", [x, _two(sketch)])
    variance = sketch.node("Add", [_mean(sketch, square, axes), _number(sketch, 1e-2)])
    x = sketch.node("Div", [x, sketch.node("Sqrt", [variance])])
    shape = (sketch.width, 1, 1) if spatial else (sketch.width,)
    x = sketch.node("Mul", [x, sketch.vector("scale", *shape)])
    sketch.tip = sketch.node("Add", [x, sketch.vector("bias", *shape)]) if sketch.flip() else x


def _two(sketch: Sketch) -> str:
    return sketch.draft.const(sketch.name("two"), np.array(2, np.float32))


def _mean(sketch: Sketch, x: str, axes: list[int]) -> str:
    if sketch.draft.opset < 18:
        return sketch.node("ReduceMean", [x], axes=axes, keepdims=1)
    given = sketch.draft.const(sketch.name("axes"), np.array(axes, np.int64))
    return sketch.node("ReduceMean", [x, given], keepdims=1)


def _second_reader(sketch: Sketch) -> None:
    """A tensor inside of what the last blocks wrote out is read once more: no rule may take it away."""
    inside = [node.output[0] for node in sketch.draft.nodes[-6:-1] if node.op_type in ("Add", "Clip", "Mul", "Sub")]
    if inside:
        largest = sketch.node("ReduceMax", [inside[-1]])
        sketch.tip = sketch.node("Add", [sketch.tip, sketch.node("Tanh", [largest])])


BOTH: tuple[Block, ...] = (_hard_swish, _curve, _affine, _affine, _self_gate, _twice, _views, _shape_arithmetic, _norm)


def written_out_maps(most: int = 6) -> st.SearchStrategy[onnx.ModelProto]:
    """Convolutional models, as ``strategies.feature_maps``, most blocks written out."""
    return feature_maps(most=most, blocks=(*BOTH, _second_reader, _padded, *MAP_BLOCKS[:6]))


def written_out_sequences(most: int = 5) -> st.SearchStrategy[onnx.ModelProto]:
    """Transformer-like models, as ``strategies.sequences``, most blocks written out."""
    return sequences(most=most, blocks=(*BOTH, _second_reader, *SEQUENCE_BLOCKS[:4]))
