"""What a node needs when its operator changed: one small function a change.

Each entry of ``ADAPTERS`` is keyed by operator and the operator set that changed it, and brings a node of the form
before to the form after. The semantics are those of the ONNX operator changelog; where it leaves the old meaning open
(Resize and Upsample before opset 11), onnxruntime's is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.errors import ModelError
from graphopt.model.arrays import Array

if TYPE_CHECKING:
    from graphopt.model.model import Model

ALLOWZERO = 14
"""The operator set from which on a 0 in a Reshape's target may be a size."""


@dataclass(frozen=True)
class Step:
    """One node on its way to the operator set ``target``."""

    model: Model
    node: gs.Node
    target: int

    def take(self, name: str, default: Any = None) -> Any:
        """Removes an attribute and returns its value."""
        value = self.node.attrs.get(name, default)
        self.model.editor.set_attr(self.node, name, None)
        return value

    def feed(self, index: int, name: str, value: npt.ArrayLike, dtype: npt.DTypeLike = np.int64) -> None:
        """Gives the node a constant input."""
        array: Array = np.array(value, dtype=dtype)
        self.model.editor.set_input(self.node, index, self.model.editor.add_constant(f"{self.node.name}_{name}", array))

    def dtype(self) -> np.dtype[Any]:
        """Element type of the first input.

        Raises:
            ModelError: GO-305 if it is unknown.
        """
        dtype = self.model.dtype_of(self.node.inputs[0])
        if dtype is None:
            raise self.refused("the element type of its input is unknown")
        return dtype

    def value(self, index: int) -> Array | None:
        """The constant value of an input, if it has one."""
        inputs = self.node.inputs
        return self.model.editor.constant(inputs[index]) if index < len(inputs) else None

    def refused(self, why: str) -> ModelError:
        """The error for a node that cannot be brought over."""
        return ModelError(
            "GO-305",
            f"cannot raise the opset: {self.node.op} has no equivalent form",
            where=f"node {self.node.name!r}",
            why=why,
            hint="export the model again with a newer opset",
        )


Adapter = Callable[[Step], None]


def _attribute_to_input(name: str, index: int) -> Adapter:
    """A list attribute became an integer input; absent stays absent."""

    def adapt(step: Step) -> None:
        value = step.take(name)
        if value is not None:
            step.feed(index, name, value)

    return adapt


def _inference_batch_norm(step: Step) -> None:
    if step.take("spatial", 1) != 1:
        raise step.refused("statistics per element (spatial = 0) were removed")


def _batch_norm_outputs(step: Step) -> None:
    if any(t.name and (t.outputs or step.model.editor.is_output(t)) for t in step.node.outputs[1:]):
        raise step.refused("its training outputs are used")
    for index in range(len(step.node.outputs) - 1, 0, -1):
        del step.node.outputs[index]


def _clip_bounds(step: Step) -> None:
    dtype = step.dtype()
    for index, name in ((1, "min"), (2, "max")):
        value = step.take(name)
        if value is not None:
            step.feed(index, name, value, dtype)


def _dropout_mask(step: Step) -> None:
    if len(step.node.outputs) > 1 and step.model.editor.consumers(step.node.outputs[1]):
        raise step.refused("its mask is used, which became boolean")


def _dropout_ratio(step: Step) -> None:
    ratio = step.take("ratio")
    if ratio is not None:
        step.feed(1, "ratio", ratio, np.float32)


def _pad_inputs(step: Step) -> None:
    dtype = step.dtype()
    step.feed(1, "pads", step.take("pads"))
    value = step.take("value")
    if value is not None:
        step.feed(2, "value", value, dtype)


def _slice_inputs(step: Step) -> None:
    for index, name in ((1, "starts"), (2, "ends"), (3, "axes")):
        value = step.take(name)
        if value is not None:
            step.feed(index, name, value)


def _split_outputs(step: Step) -> None:
    inputs = step.node.inputs
    if len(inputs) < 2 or not inputs[1].name:
        step.model.editor.set_attr(step.node, "num_outputs", len(step.node.outputs))


def _top_k(step: Step) -> None:
    step.feed(1, "k", [step.take("k")])


def _upsample_scales(step: Step) -> None:
    step.feed(1, "scales", step.take("scales"), np.float32)


def _upsample_to_resize(step: Step) -> None:
    step.node.op = "Resize"
    if step.node.attrs.get("mode", "nearest") not in ("nearest", "linear"):
        raise step.refused(f"mode {step.node.attrs['mode']!r}")


def _resize_modes(step: Step) -> None:
    """Opset 10 stated no modes; onnxruntime's are asymmetric, and floor when enlarging, ceil when shrinking."""
    editor, node = step.model.editor, step.node
    editor.set_attr(node, "coordinate_transformation_mode", "asymmetric")
    if node.attrs.get("mode", "nearest") == "nearest":
        scales = step.value(1)
        if scales is None:
            raise step.refused("nearest mode with computed scales")
        if (scales < 1).any() and (scales > 1).any():
            raise step.refused("nearest mode that enlarges one axis and shrinks another")
        editor.set_attr(node, "nearest_mode", "ceil" if (scales < 1).any() else "floor")
    scales_input = node.inputs[1]
    step.feed(1, "roi", np.zeros(0), np.float32)
    editor.set_input(node, 2, scales_input)


def _resize_frame(step: Step) -> None:
    if step.node.attrs.get("coordinate_transformation_mode") == "tf_half_pixel_for_nn":
        raise step.refused("coordinate_transformation_mode 'tf_half_pixel_for_nn' was removed")


def _coerced_axis(step: Step) -> None:
    """Before opset 13 all axes from ``axis`` on were one: flatten, apply along the last axis, shape back.

    A 0 among the sizes is a size: Reshape can be told so since opset 14. Where a model is raised to 13 only, it copies
    a dimension of the flat form, and an empty tensor fails.
    """
    editor, node = step.model.editor, step.node
    axis = node.attrs.get("axis", 1)
    source, result = node.inputs[0], node.outputs[0]
    shape = step.model.shape_of(source)
    if shape is not None and axis % max(len(shape), 1) == len(shape) - 1:
        editor.set_attr(node, "axis", axis)
        return
    if shape is not None and all(dim == 1 for dim in shape[axis % len(shape) + 1 :]):
        editor.set_attr(node, "axis", axis)
        return
    name = node.name
    sizes = editor.add_node("Shape", [source], name=f"{name}_shape").outputs[0]
    flat = editor.add_node("Flatten", [source], attrs={"axis": axis}, name=f"{name}_flat").outputs[0]
    editor.set_input(node, 0, flat)
    editor.set_attr(node, "axis", -1)
    inner = editor.new_output(node, 0)
    attributes = {"allowzero": 1} if step.target >= ALLOWZERO else {}
    editor.add_node("Reshape", [inner, sizes], attrs=attributes, outputs=[result], name=f"{name}_unflat")


def _roi_align(step: Step) -> None:
    step.model.editor.set_attr(step.node, "coordinate_transformation_mode", "output_half_pixel")


def _scatter(step: Step) -> None:
    step.node.op = "ScatterElements"


def _grid_sample(step: Step) -> None:
    names = {"bilinear": "linear", "bicubic": "cubic"}
    mode = step.node.attrs.get("mode", "bilinear")
    step.model.editor.set_attr(step.node, "mode", names.get(mode, mode))


def _dft_axis(step: Step) -> None:
    step.feed(2, "axis", step.take("axis", 1))


def _refuse(why: str) -> Adapter:
    def adapt(step: Step) -> None:
        raise step.refused(why)

    return adapt


def _for_each(ops: Sequence[str], version: int, adapter: Adapter) -> dict[tuple[str, int], Adapter]:
    return {(op, version): adapter for op in ops}


_REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSumSquare",
)  # fmt: skip

ADAPTERS: dict[tuple[str, int], Adapter] = {
    ("BatchNormalization", 9): _inference_batch_norm,
    ("BatchNormalization", 14): _batch_norm_outputs,
    ("Clip", 11): _clip_bounds,
    ("DFT", 20): _dft_axis,
    ("Dropout", 10): _dropout_mask,
    ("Dropout", 12): _dropout_ratio,
    ("GridSample", 20): _grid_sample,
    ("GroupNormalization", 21): _refuse("scale and bias became one value a channel"),
    ("Pad", 11): _pad_inputs,
    ("Resize", 11): _resize_modes,
    ("Resize", 13): _resize_frame,
    ("RoiAlign", 16): _roi_align,
    ("Scan", 9): _refuse("batched Scan was removed"),
    ("Scatter", 11): _scatter,
    ("Slice", 10): _slice_inputs,
    ("Split", 13): _attribute_to_input("split", 1),
    ("Split", 18): _split_outputs,
    ("Squeeze", 13): _attribute_to_input("axes", 1),
    ("TopK", 10): _top_k,
    ("Unsqueeze", 13): _attribute_to_input("axes", 1),
    ("Upsample", 9): _upsample_scales,
    ("Upsample", 10): _upsample_to_resize,
    ("ReduceSum", 13): _attribute_to_input("axes", 1),
    **_for_each(_REDUCTIONS, 18, _attribute_to_input("axes", 1)),
    **_for_each(("Softmax", "LogSoftmax", "Hardmax"), 13, _coerced_axis),
}
"""(operator, operator set that changed it) → what a node needs."""
