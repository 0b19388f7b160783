"""Writes a plan into a model as QuantizeLinear and DequantizeLinear nodes.

The form is the one that onnxruntime's CPU provider fuses, found by probing (onnxruntime 1.31 and 1.32): uint8
activations, one QuantizeLinear a tensor at its producer behind its Relu, int8 weights per output channel, int32 biases
on the canonical scale. Nodes that only move values work on the codes themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.model.model import Model
from graphopt.passes.quantize.guards import break_silent_quantization, shield_captures
from graphopt.passes.quantize.plan import Grid, Interval, Plan
from graphopt.passes.quantize.prepare import open_rows
from graphopt.passes.quantize.units import Kind, Unit, find_units
from graphopt.passes.quantize.weights import channel_axis, kernel_input
from graphopt.passes.quantize.writer import Writer, output_names

SIGMOID_GRID = Grid(float(np.float32(1 / 255)), 0)
"""Covers [0, 1]: what Sigmoid, HardSigmoid and Softmax give."""


def emit(model: Model, plan: Plan) -> Mapping[str, str]:
    """Make the units of ``plan`` integer; the rest of ``model`` keeps computing in float.

    Args:
        model: changed in place, and finished.
        plan: names units as ``find_units(model)`` does, with a range for every tensor that they read or write.

    Returns:
        Output name of each node that computes for a unit → the unit's name.
    """
    units = find_units(model)
    chosen = tuple(unit for unit in units.all if unit.name in plan.integer)
    writer = Writer(model, units, plan)
    for unit in chosen:
        writer.unit = unit.name
        _EMITTERS[unit.kind](writer, unit)
    model.finish()
    break_silent_quantization(model)
    shield_captures(model)
    return writer.made | {t: unit.name for unit in chosen for node in unit.nodes for t in output_names(node)}


def _conv(writer: Writer, unit: Unit) -> None:
    node, editor = unit.head, writer.editor
    writer.read(unit)
    weight = editor.constant(node.inputs[1])
    assert weight is not None
    bias = writer.no_bias(unit, weight.shape[0])
    if len(node.inputs) > 2 and not node.inputs[2].is_empty():
        bias = editor.constant(node.inputs[2])
    back, bias_back = writer.integer_weight(unit, 1, weight, 0, bias)
    editor.set_input(node, 1, back)
    if bias_back is not None:
        editor.set_input(node, 2, bias_back)
    writer.write(unit.writes[0])


def _linear(writer: Writer, unit: Unit) -> None:
    made = None
    if unit.head.op == "Gemm":
        _gemm(writer, unit)
    elif unit.bias_add is not None:
        made = _matmul_with_bias(writer, unit)
    else:
        _matmul(writer, unit)
    integer_readers = writer.read_by_integers(unit.writes[0])
    add = unit.bias_add
    if made is not None and add is not None and (unit.nodes[-1] is not add or not integer_readers):
        writer.editor.replace_uses(add.outputs[0], made)
        made = None
    if integer_readers:
        writer.write(unit.writes[0], made=made)


def _gemm(writer: Writer, unit: Unit) -> None:
    node, editor = unit.head, writer.editor
    weight = editor.constant(node.inputs[1])
    assert weight is not None
    axis = channel_axis(unit)
    bias = writer.no_bias(unit, weight.shape[axis])
    if len(node.inputs) > 2 and not node.inputs[2].is_empty():
        value = editor.constant(node.inputs[2])
        assert value is not None
        row = np.broadcast_to(value.reshape(-1), (weight.shape[axis],))
        bias = (row * np.float32(node.attrs.get("beta", 1.0))).astype(np.float32)
    writer.read(unit)
    back, bias_back = writer.integer_weight(unit, 1, weight, axis, bias)
    editor.set_input(node, 1, back)
    if bias_back is not None:
        editor.set_input(node, 2, bias_back)
    # The kernel takes alpha = beta = 1 alone; they are in the numbers now.
    editor.set_attr(node, "alpha", 1.0)
    editor.set_attr(node, "beta", 1.0)


def _matmul(writer: Writer, unit: Unit) -> None:
    weight = writer.editor.constant(unit.head.inputs[1])
    assert weight is not None
    writer.read(unit)
    back, _ = writer.integer_weight(unit, 1, weight, 1, None)
    writer.editor.set_input(unit.head, 1, back)


def _matmul_with_bias(writer: Writer, unit: Unit) -> gs.Tensor:
    """MatMul and Add as Reshape, Gemm, Reshape: the one form of a linear layer that fuses without an output grid."""
    editor, add = writer.editor, unit.bias_add
    assert add is not None
    weight = editor.constant(unit.head.inputs[1])
    source = unit.head.inputs[0]
    shape = unit.shape
    other = add.inputs[1] if add.inputs[0] is unit.head.outputs[0] else add.inputs[0]
    bias = editor.constant(other)
    assert weight is not None and bias is not None and shape is not None
    x = writer.floats(kernel_input(unit, writer.plan))
    back, bias_back = writer.integer_weight(unit, 1, weight, 1, bias)
    assert bias_back is not None
    rank = len(shape)
    if rank == 2:
        return writer.node("Gemm", [x, back, bias_back], unit.name)
    flat = editor.add_constant(f"{unit.name}_flat", np.array([-1, weight.shape[0]], np.int64))
    rows = writer.node("Reshape", [x, flat], f"{unit.name}_rows")
    product = writer.node("Gemm", [rows, back, bias_back], f"{unit.name}_gemm")
    if open_rows(shape) <= 1:
        fixed = [d if isinstance(d, int) and d > 0 else -1 for d in shape[:-1]]
        target = editor.add_constant("rows_shape", np.array([*fixed, weight.shape[1]], np.int64))
        return writer.node("Reshape", [product, target], unit.name)
    return writer.node("Reshape", [product, _computed_shape(writer, source, rank - 1, weight)], unit.name, allowzero=1)


def _computed_shape(writer: Writer, source: gs.Tensor, leading: int, weight: npt.NDArray[np.float32]) -> gs.Tensor:
    """The shape of a linear layer's output, where no constant can say it."""
    editor = writer.editor
    ends = [editor.add_constant("shape_part", np.array([v], np.int64)) for v in (0, leading)]
    whole = writer.node("Shape", [source], f"{source.name}_shape")
    front = writer.node("Slice", [whole, *ends], f"{source.name}_leading")
    last = editor.add_constant("columns", np.array([weight.shape[1]], np.int64))
    return writer.node("Concat", [front, last], f"{source.name}_product_shape", axis=0)


def _elementwise(writer: Writer, unit: Unit) -> None:
    editor, node = writer.editor, unit.head
    writer.read(unit)
    for slot, tensor in enumerate(node.inputs):
        value = editor.constant(tensor) if slot not in unit.slots else None
        if value is not None:
            grid = Grid.covering(Interval(float(value.min()), float(value.max())))
            editor.set_input(node, slot, writer.constant(tensor.name, value, grid))
    writer.write(unit.writes[0])


def _average(writer: Writer, unit: Unit) -> None:
    # With the attribute present, even all ones, onnxruntime builds a node that does not load.
    if "dilations" in unit.head.attrs:
        writer.editor.set_attr(unit.head, "dilations", None)
    writer.read(unit)
    writer.write(unit.writes[0])


def _curve(writer: Writer, unit: Unit) -> None:
    writer.read(unit)
    writer.write(unit.writes[0], grid=SIGMOID_GRID if unit.head.op == "Sigmoid" else None)


def _gate(writer: Writer, unit: Unit) -> None:
    alpha = float(unit.head.attrs.get("alpha", 0.2))
    beta = float(unit.head.attrs.get("beta", 0.5))
    line = _saturating_line(writer, unit.reads[0], alpha, beta, unit.name)
    writer.write(unit.writes[0], made=line, grid=SIGMOID_GRID)


def _swish(writer: Writer, unit: Unit) -> None:
    """``x · HardSigmoid(x)`` from two kernels: the gate's clipping is the saturation of its own grid."""
    line = _saturating_line(writer, unit.reads[0], 1 / 6, 0.5, f"{unit.name}_gate")
    gate = writer.rounded(line, SIGMOID_GRID, f"{unit.name}_gate")
    product = writer.node("Mul", [writer.floats(unit.reads[0]), gate], f"{unit.name}_product")
    writer.write(unit.writes[0], made=product)


def _saturating_line(writer: Writer, tensor: str, alpha: float, beta: float, hint: str) -> gs.Tensor:
    """``alpha · x + beta``: the codes of x are read on a grid stretched by alpha, so only the Add is left."""
    stretched = writer.floats(tensor, writer.grid(tensor).stretched(alpha))
    # Rank 0: a constant of rank 4 would broadcast at the same cost, rank 0 takes the fast scalar path.
    code = 1 if beta >= 0 else 0
    grid = Grid(float(np.float32(abs(beta) or 1.0)), 0 if beta >= 0 else 1)
    value = np.array(0.0 if beta == 0 else grid.scale * (code - grid.zero), np.float32)
    return writer.node("Add", [stretched, writer.constant(f"{hint}_offset", value, grid)], f"{hint}_line")


def _move(writer: Writer, unit: Unit) -> None:
    """The node itself moves the codes."""
    editor, node = writer.editor, unit.head
    grid = writer.grid(unit.reads[0])
    inputs = [writer.codes(unit.reads[0]), *node.inputs[1:]]
    if node.op == "Pad" and node.attrs.get("mode", "constant") == "constant":
        zero = editor.add_constant(f"{unit.name}_zero", np.array(grid.zero, np.uint8))
        inputs[2:3] = [zero]
    made = editor.add_node(
        node.op, inputs, attrs=dict(node.attrs), outputs=len(node.outputs), name=f"{unit.name}_codes"
    )
    writer.made |= dict.fromkeys(output_names(made), unit.name)
    for tensor, codes in zip(node.outputs, made.outputs, strict=True):
        if not tensor.is_empty():
            writer.write_codes(tensor.name, codes, grid)


def _scale(writer: Writer, unit: Unit) -> None:
    """No node at all: the same codes, read on a stretched grid."""
    source = unit.reads[0]
    writer.write_codes(unit.writes[0], writer.codes(source), writer.grid(source).stretched(unit.factor))


_EMITTERS: Mapping[Kind, Callable[[Writer, Unit], None]] = {
    Kind.CONV: _conv,
    Kind.LINEAR: _linear,
    Kind.ARITHMETIC: _elementwise,
    Kind.CONCAT: _elementwise,
    Kind.POOL: _average,
    Kind.CURVE: _curve,
    Kind.GATE: _gate,
    Kind.SWISH: _swish,
    Kind.MOVE: _move,
    Kind.SCALE: _scale,
}
