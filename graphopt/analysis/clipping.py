"""What Relu and Clip cut off."""

from __future__ import annotations

import math

import onnx_graphsurgeon as gs

from graphopt.model.domains import in_standard_domain
from graphopt.model.editor import GraphEditor


def clip_bounds(editor: GraphEditor, node: gs.Node) -> tuple[float, float] | None:
    """Least and greatest value that a Relu or Clip lets through; infinite where a bound is left out.

    Bounds of Clip are attributes up to opset 10, then inputs.

    Returns:
        ``None`` for any other node, and where a bound is not one constant number.
    """
    if not in_standard_domain(node):
        return None
    if node.op == "Relu":
        return 0.0, math.inf
    if node.op != "Clip":
        return None
    bounds = [float(node.attrs.get("min", -math.inf)), float(node.attrs.get("max", math.inf))]
    for index, tensor in enumerate(node.inputs[1:3]):
        if tensor.is_empty():
            continue
        value = editor.constant(tensor)
        if value is None or value.size != 1:
            return None
        bounds[index] = float(value.reshape(-1)[0])
    return None if any(math.isnan(bound) for bound in bounds) else (bounds[0], bounds[1])
