"""Brings a model into the form that units are found in: the opset, and operators with an integer twin."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.errors import ModelError
from graphopt.model.domains import in_standard_domain
from graphopt.model.model import Model

LEAST_OPSET = 13
"""Per-channel QuantizeLinear and DequantizeLinear exist since opset 13."""
ALLOWZERO = 14
"""The operator set from which on a 0 in a Reshape's target may be a size."""


def prepare(model: Model, left_out: Collection[str] = ()) -> tuple[str, ...]:
    """Rewrite ``model`` in place; equal up to rounding.

    Args:
        model: the float model.
        left_out: names of the tensors that nodes compute which the user keeps from this pass. What would keep the whole
            model from running is rewritten all the same.

    Returns:
        What was done, in whole sentences.

    Raises:
        ModelError: GO-305, a node cannot be brought to opset 13.
    """
    notes: list[str] = []
    before = model.opset
    if before < ALLOWZERO and _has_open_rows(model) and _reaches(model, ALLOWZERO):
        model.raise_opset(ALLOWZERO)
        notes.append(f"The opset was raised from {before} to {ALLOWZERO}, whose Reshape takes 0 for a size.")
    elif before < LEAST_OPSET:
        model.raise_opset(LEAST_OPSET)
        notes.append(f"The opset was raised from {before} to {LEAST_OPSET}, the first with per-channel weights.")
    if _pool_means(model, left_out) + _pad_every_axis(model):
        model.finish()
    return tuple(notes)


def keeps_rows(model: Model, shape: Sequence[int | str | None]) -> bool:
    """Whether a product of rows can be brought back to ``[*leading, columns]``, empty dimensions included.

    A constant target does it where at most one leading dimension is open (-1). A computed one may hold a 0 that is a
    size, which Reshape takes for "copy" before opset 14.
    """
    return open_rows(shape) <= 1 or model.opset >= ALLOWZERO


def open_rows(shape: Sequence[int | str | None]) -> int:
    """How many leading dimensions of ``[*leading, columns]`` a constant target of Reshape cannot state."""
    return sum(not (isinstance(size, int) and size > 0) for size in shape[:-1])


def _has_open_rows(model: Model) -> bool:
    """Whether a constant matrix multiplies rows that lie along two open dimensions."""
    return any(
        open_rows(model.shape_of(node.inputs[0]) or ()) > 1
        for node in model.editor.nodes()
        if node.op == "MatMul" and in_standard_domain(node) and model.editor.constant(node.inputs[1]) is not None
    )


def _reaches(model: Model, version: int) -> bool:
    try:
        # A node without an adapter is met half-way: the trial on a clone keeps the model whole.
        model.clone().raise_opset(version)
    except ModelError:
        return False
    return True


def _pool_means(model: Model, left_out: Collection[str]) -> int:
    """ReduceMean over the two spatial axes becomes GlobalAveragePool, which has an integer kernel."""
    editor = model.editor
    done = 0
    for node in editor.nodes():
        if node.op != "ReduceMean" or node.outputs[0].name in left_out or not _is_spatial(model, node):
            continue
        pooled = editor.add_node(
            "GlobalAveragePool", [node.inputs[0]], name=f"{node.name or node.outputs[0].name}_pool"
        )
        result = pooled.outputs[0]
        if not int(node.attrs.get("keepdims", 1)):
            result = editor.add_node(
                "Flatten", [result], attrs={"axis": 1}, name=f"{node.name or node.outputs[0].name}_flat"
            ).outputs[0]
        editor.replace_uses(node.outputs[0], result)
        done += 1
    return done


def _pad_every_axis(model: Model) -> int:
    """A Pad by named axes (opset 18) becomes one by all axes.

    onnxruntime 1.32 permutes the axes wrongly when it moves integer layers to NHWC: the model opens and fails to run.
    """
    editor = model.editor
    done = 0
    for node in editor.nodes():
        if node.op != "Pad" or len(node.inputs) < 4 or node.inputs[3].is_empty():
            continue
        shape = model.shape_of(node.inputs[0])
        pads, axes = editor.constant(node.inputs[1]), editor.constant(node.inputs[3])
        if shape is None or pads is None or axes is None:
            continue
        whole = np.zeros((2, len(shape)), np.int64)
        whole[:, axes.reshape(-1) % len(shape)] = pads.reshape(2, -1)
        inputs = [node.inputs[0], editor.add_constant(f"{node.name}_pads", whole.reshape(-1)), node.inputs[2]]
        padded = editor.add_node("Pad", inputs, attrs=dict(node.attrs), name=f"{node.name or node.outputs[0].name}_all")
        editor.replace_uses(node.outputs[0], padded.outputs[0])
        done += 1
    return done


def _is_spatial(model: Model, node: gs.Node) -> bool:
    if not in_standard_domain(node):
        return False
    shape = model.shape_of(node.inputs[0])
    if shape is None or len(shape) != 4 or model.dtype_of(node.inputs[0]) != np.float32:
        return False
    axes = node.attrs.get("axes")
    if axes is None and len(node.inputs) > 1:
        value = model.editor.constant(node.inputs[1])
        axes = None if value is None else value.reshape(-1).tolist()
    return axes is not None and sorted(a % 4 for a in axes) == [2, 3]
