"""onnx's own checker on a model without its weights."""

from __future__ import annotations

import onnx
import onnx.checker

from graphopt.blackbox import doing
from graphopt.errors import ModelError


@doing("onnx's checker")
def check_skeleton(skeleton: onnx.ModelProto) -> None:
    """Run onnx's checker on a skeleton.

    Stubbed weights stand as typed inputs: the checker wants the bytes of an initializer, but only the type of an
    input, and types are all it checks of either.

    Args:
        skeleton: as ``Model.skeleton`` makes it; not changed.

    Raises:
        ModelError: GO-304, with the checker's first line.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(skeleton)
    listed = {value.name for value in proto.graph.input}
    kept = []
    for tensor in proto.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            kept.append(tensor)
        elif tensor.name not in listed:
            proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        lines = str(error).strip().splitlines()
        raise ModelError("GO-304", "onnx's checker rejects the model", why=lines[0] if lines else None) from error
