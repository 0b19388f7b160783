"""The pass `depthwise-shift`: shifts that stayed in front of a Conv, in the layout of the convolutions."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.model.domains import in_standard_domain
from graphopt.pipeline.affine import Arithmetic, read_arithmetic
from graphopt.pipeline.contract import PassOptions, Safety, Site, Skip
from graphopt.pipeline.families import Family
from graphopt.pipeline.family_pass import FamilyOptions, FamilyPass
from graphopt.pipeline.linear import Layer, read_layer
from graphopt.pipeline.rules import Array, Rule, Scope, label

BLOCK = 8
"""onnxruntime's blocked layout holds channels in eights (AVX2, NEON) or sixteens (AVX-512)."""
KEEPS_LAYOUT = frozenset(
    {"AveragePool", "Clip", "Elu", "HardSigmoid", "HardSwish", "LeakyRelu", "MaxPool", "Relu", "Sigmoid", "Tanh"}
)
"""Operators of one data input that onnxruntime runs in the layout of the Conv before them."""


class ShiftAsDepthwise(Rule):
    """Write a constant shift between convolutions as a depthwise Conv of kernel 1.

    Pattern: x + c, c + x or x - c, where x comes from a Conv, directly or through activations and pools, and every
    reader is a Conv that takes it as its data.
    Conditions: c is constant, float32, finite, one number or one per channel; the channels are a known multiple of 8;
    the readers' weights are constant floats, so that none of them is quantized; the result is no graph output; the
    node is open to this pass.
    Proof: a Conv of kernel 1 with as many groups as channels, weight 1 and bias c computes 1 · x + c at each
    position, without padding. The product is exact, the sum rounds as before.
    Effect: the blocked layout of the convolutions is kept: no reordering out and in. Measured behind `fuse`, one
    thread, AVX2: ppocr_v4_det (13 nodes) 1.04x [1.03, 1.05], ppocr_v4_rec (13 nodes) 1.06x [1.05, 1.07].
    Refuses: a shift that the Conv could take into its bias (`fuse` does that); values that are quantized on either
    side.
    """

    name: ClassVar[str] = "shift-as-depthwise"
    safety: ClassVar[Safety] = Safety.ROUNDING
    ops: ClassVar[frozenset[str] | None] = frozenset({"Add", "Sub"})

    def apply(self, node: gs.Node, scope: Scope) -> Site | Skip | None:
        """See ``Rule.apply``."""
        shift = read_arithmetic(node, scope)
        if shift is None or shift.scales or not _from_convolution(shift.x, scope):
            return None
        readers = _convolutions(node.outputs[0], scope)
        if isinstance(readers, str):
            return self.skip(node, readers)
        if not readers:
            return None
        bias = _per_channel(shift, readers[0], scope)
        if isinstance(bias, str):
            return self.skip(node, bias)
        site = self.site(node, f"{node.op} became a depthwise Conv", channels=int(bias.size))
        _rewrite(shift, bias, readers[0].weight.ndim - 2, scope)
        return site


class DepthwiseShiftOptions(FamilyOptions):
    """Options of `depthwise-shift`."""

    @classmethod
    def known(cls) -> tuple[Family, ...]:
        """See ``FamilyOptions.known``."""
        return FAMILIES


FAMILIES = (Family("depthwise-shift", "shifts between convolutions keep their layout", (ShiftAsDepthwise,)),)


class DepthwiseShift(FamilyPass[DepthwiseShiftOptions]):
    """Write the shifts that stayed between convolutions as depthwise convolutions, where that pays.

    What it does:
        The addition of a constant in front of a padded Conv cannot go into its bias: the border is padded with
        zeros, not with the constant. onnxruntime's CPU provider runs convolutions in a blocked layout and the addition
        in the plain one, and so reorders the tensor twice. As a Conv of kernel 1 with weight 1, the constant as its
        bias and one group per channel, the addition stays in the blocked layout.

    When it applies:
        To Add and Sub with one constant number, or one per channel, whose operand comes from a Conv (directly or
        through activations and pools) and which only Convs with float weights read, over a known multiple of 8
        channels. With time to measure, it is timed in interleaved pairs against the model without it and against your
        own file, and kept only where it makes the model faster or where timing cannot tell.

    When it refuses:
        Where another operator or a graph output takes the sum; where either side is quantized; where the constant
        varies within a channel. It runs last: `fuse` folds away every shift that can be folded, and `quantize` writes
        a shift between integer layers without any operator.

    Safety:
        ROUNDING: 1 · x + c is the same sum.

    Options:
        There is one family, `depthwise-shift`; to name it applies it without measuring.

    Example:
        `graphopt run model.onnx -o out.onnx --pass simplify --pass fuse --pass depthwise-shift`

        In a recipe:

            [[pass]]
            name = "depthwise-shift"

    Cost:
        One number per channel and shift in the file. Measuring takes up to 15 seconds; `--no-measure` applies it
        everywhere.

    References:
        Zhang et al., 2018, "High Performance Zero-Memory Overhead Direct Convolutions" (the blocked layout).
    """

    name: ClassVar[str] = "depthwise-shift"
    code: ClassVar[str] = "DWS"
    safety: ClassVar[Safety] = Safety.ROUNDING
    Options: ClassVar[type[PassOptions]] = DepthwiseShiftOptions
    after: ClassVar[tuple[str, ...]] = ("simplify", "fuse", "quantize")


def _from_convolution(tensor: gs.Tensor, scope: Scope) -> bool:
    node = scope.editor.producer(tensor)
    while node is not None and node.op in KEEPS_LAYOUT and in_standard_domain(node):
        node = scope.editor.producer(node.inputs[0])
    return node is not None and node.op == "Conv" and in_standard_domain(node)


def _convolutions(tensor: gs.Tensor, scope: Scope) -> list[Layer] | str:
    """The Convs that read ``tensor``, if nothing else does; or why not; empty where no Conv reads it."""
    readers = scope.editor.consumers(tensor)
    if not any(node.op == "Conv" for node in readers):
        return []
    if scope.editor.is_output(tensor):
        return f"{tensor.name} is a graph output"
    layers = []
    for node in readers:
        layer = read_layer(node, scope)
        if node.op != "Conv" or layer is None or node.inputs[0] is not tensor:
            return f"{label(node)} reads it too and is no Conv with a constant float weight"
        layers.append(layer)
    return layers


def _per_channel(shift: Arithmetic, reader: Layer, scope: Scope) -> Array | str:
    """The constant as the bias of a depthwise Conv, or why it is none."""
    shape = scope.shape(shift.x)
    if reader.inputs % BLOCK:
        return f"{reader.inputs} channels are no multiple of {BLOCK}: they have no blocked layout"
    if shift.constant.dtype != np.float32:
        return f"its constant is {shift.constant.dtype}"
    if shape is None:
        shape = (None,) * reader.weight.ndim if shift.constant.ndim < reader.weight.ndim else ()
    affine = shift.along(reader.in_axis, reader.inputs, shape)
    if affine is None:
        return "its constant is not one number per channel"
    return affine.shift.astype(np.float32)


def _rewrite(shift: Arithmetic, bias: Array, spatial: int, scope: Scope) -> None:
    node, editor = shift.node, scope.editor
    ones = editor.add_constant(f"{label(node)}.weight", np.ones((bias.size, 1, *(1,) * spatial), np.float32))
    constant = editor.add_constant(f"{label(node)}.bias", bias)
    attrs = {"group": int(bias.size), "kernel_shape": [1] * spatial}
    inputs = [shift.x, ones, constant]
    editor.add_node("Conv", inputs, attrs=attrs, outputs=[node.outputs[0]], name=f"{label(node)}_shift")
    scope.remove(node)
