"""The pass `dequantize-constants`: weights stored as integers behind DequantizeLinear become float weights."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.analysis.dequantize import quantized_weights
from graphopt.model.editor import GraphEditor
from graphopt.model.model import Model
from graphopt.pipeline.contract import Pass, PassContext, PassOptions, PassResult, Safety, Site, Skip
from graphopt.pipeline.nested import nested_skips

Array = npt.NDArray[Any]


class DequantizeConstants(Pass[PassOptions]):
    """Fold weights behind DequantizeLinear to float, where activations are float anyway.

    What it does:
        Computes `(weight - zero point) · scale` once and stores the result: per tensor, per axis or in blocks, for
        integers of 2 to 32 bits. The file grows, up to eightfold for weights of 4 bits; the report shows both sizes.
        In turn the runtime need not expand the weight at each run, and can fuse and pack the layer.

    When it applies:
        To DequantizeLinear of constants whose readers compute in float: a model quantized to save space only. It runs
        only when asked for: by name, or by `--dequantize-constants` as part of the default run.

    When it refuses:
        Weights of layers whose activations are quantized too (another operand comes from a DequantizeLinear that is
        not constant, or the result goes to QuantizeLinear): there the runtime computes in integers, and float would
        be slower. Scales or zero points that are not constant, float8 and float4 weights, weights that are graph
        outputs or that a body captures.

    Safety:
        ROUNDING. The folded numbers are the bits that DequantizeLinear gives; but a constant weight is packed by its
        kernel and may be summed in another order.

    Options:
        `only` and `skip` name DequantizeLinear nodes.

    Example:
        `graphopt run model.onnx -o out.onnx --dequantize-constants`

        In a recipe:

            [[pass]]
            name = "dequantize-constants"

    Cost:
        Linear in the weights. Measured with the weights of MobileNet v1 in 8 bits: 1.9 times as fast, 17 MB for 4.5.
        Small models of 4-bit MatMul weights may be slower in float than with onnxruntime's own 4-bit kernel; the
        final timing against the user's file decides.

    References:
        ONNX operator DequantizeLinear, versions 10 to 25.
    """

    name: ClassVar[str] = "dequantize-constants"
    code: ClassVar[str] = "DQC"
    safety: ClassVar[Safety] = Safety.ROUNDING
    after: ClassVar[tuple[str, ...]] = ("freeze-initializers",)

    def run(self, ctx: PassContext) -> PassResult:
        """See ``Pass.run``."""
        before = ctx.model.file_size
        applied, skipped = [], []
        for node, kept in quantized_weights(ctx.model):
            reason = kept if ctx.selection.allows(node) else "left out by `only` or `skip`"
            if reason:
                skipped.append(Skip(node.name, reason))
            else:
                applied.append(_fold(node, ctx.editor))
        skipped += nested_skips(ctx.model, ctx.selection, lambda node: node.op == "DequantizeLinear")
        if not applied:
            return PassResult(False, skipped=tuple(skipped))
        after = _tidied(ctx.model).file_size
        headline = f"{len(applied)} weights became float; the file goes from {_size(before)} to {_size(after)}"
        return PassResult(
            modified=True,
            applied=tuple(applied),
            skipped=tuple(skipped),
            summary={"weights": len(applied), "file_bytes_before": before, "file_bytes_after": after},
            headline=headline,
        )


def dequantized(quantized: Array, scale: Array, zero: Array | None, axis: int, block: int) -> Array:
    """What DequantizeLinear computes.

    Args:
        quantized: integers, any shape.
        scale: float; a scalar, one entry along ``axis``, or (``block`` > 0) of the rank of ``quantized`` with one
            entry for ``block`` consecutive ones along ``axis``.
        zero: zero point of the shape of ``scale``; ``None``: 0.
        axis: the axis of the scales, negative from the end.
        block: block size; 0: not blocked.

    Returns:
        The values, in the type of ``scale``; differences of integers are exact, their product with the scale is
        rounded once in float32 and once more to a 16-bit type.
    """
    steps = _spread(np.asarray(scale, np.float32), quantized.shape, axis, block)
    whole = np.asarray(quantized, np.int64)
    if zero is not None:
        whole = whole - _spread(np.asarray(zero, np.int64), quantized.shape, axis, block)
    product: Array = whole.astype(np.float32) * steps
    return product.astype(scale.dtype)


def _spread(values: Array, shape: tuple[int, ...], axis: int, block: int) -> Array:
    """Scales or zero points, so that they broadcast against ``shape``."""
    if values.size == 1:
        return values.reshape(())
    if block:
        size = shape[axis]
        return np.repeat(values, block, axis=axis).take(range(size), axis=axis)
    aligned = [1] * len(shape)
    aligned[axis] = -1
    return values.reshape(aligned)


def _tidied(model: Model) -> Model:
    """A copy as the manager will leave it, without the constants that nobody reads any more."""
    copy = model.clone()
    copy.finish()
    return copy


def _fold(node: gs.Node, editor: GraphEditor) -> Site:
    values = [None if t.is_empty() else editor.constant(t) for t in node.inputs]
    weight, scale = values[0], values[1]
    assert weight is not None and scale is not None
    zero = values[2] if len(values) > 2 else None
    axis, block = int(node.attrs.get("axis", 1)), int(node.attrs.get("block_size", 0))
    folded = dequantized(weight, scale, zero, axis, block)
    output, name = node.outputs[0], node.inputs[0].name
    editor.replace_uses(output, editor.add_constant(f"{name}_float", folded))
    editor.remove_node(node)
    what = f"{weight.dtype.name} {'x'.join(map(str, weight.shape)) or 'scalar'} became {folded.dtype.name}"
    return Site(node.name, what, figures={"elements": int(weight.size)})


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
