"""Computes single nodes on constant inputs, with the kernels that the model would run on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper, numpy_helper

from graphopt.errors import RuntimeFailure
from graphopt.pipeline.rules import Array
from graphopt.runtime.session import Session, open_session

_IR_VERSION = 8  # every supported runtime reads it, and what folds needs nothing newer
_VALUE_BYTES = 1 << 16  # inputs up to this size are shown to shape inference as values
_MOST_SESSIONS = 256


class Evaluator:
    """Runs one node at a time in onnxruntime, its optimizations off, one thread.

    Sessions are kept by signature (op, attributes, element types), not by shape or value, so that a model full
    of alike nodes opens few.

    Args:
        opset: version of the standard operator set.
    """

    def __init__(self, opset: int) -> None:
        self._opset = opset
        self._sessions: dict[bytes, Session] = {}

    def output_bytes(self, node: gs.Node, values: Sequence[Array | None]) -> int | None:
        """An upper bound of the bytes that the outputs take, found without computing them.

        Returns:
            The bound; ``None`` where shape inference cannot tell.
        """
        proto = self._proto(node, values, typed=True)
        try:
            inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
        except Exception:  # onnx raises bare exceptions of several kinds; the node just stays
            return None
        known = {info.name: info.type.tensor_type for info in inferred.graph.output}
        total = 0
        for name in proto.graph.node[0].output:
            if name:
                size = _bytes_of(known[name])
                if size is None and node.op == "NonZero" and values[0] is not None:
                    size = 8 * values[0].ndim * values[0].size
                if size is None:
                    return None
                total += size
        return total

    def run(self, node: gs.Node, values: Sequence[Array | None]) -> list[Array | None]:
        """The outputs of ``node`` for these inputs (``None``: input left out); ``None`` for outputs left out.

        Raises:
            RuntimeFailure: GO-603/604, onnxruntime has no kernel or refuses the inputs.
        """
        proto = self._proto(node, values, typed=False)
        key = proto.SerializeToString(deterministic=True)
        session = self._sessions.get(key)
        if session is None:
            if len(self._sessions) >= _MOST_SESSIONS:
                self._sessions.clear()
            session = self._sessions[key] = open_session(key, optimization="none")
        feed = {f"i{k}": value for k, value in enumerate(values) if value is not None}
        found = session.run(feed)
        results: list[Array | None] = []
        for name in proto.graph.node[0].output:
            value = found.get(name) if name else None
            if value is not None and not isinstance(value, np.ndarray):
                raise RuntimeFailure("GO-604", f"{node.op} gives something that is not a tensor")
            results.append(value)
        return results

    def _proto(self, node: gs.Node, values: Sequence[Array | None], *, typed: bool) -> onnx.ModelProto:
        """A model of this node alone; ``typed``: with the shapes, and the values of small inputs, for inference."""
        names = ["" if value is None else f"i{k}" for k, value in enumerate(values)]
        outputs = ["" if tensor.is_empty() else f"o{k}" for k, tensor in enumerate(node.outputs)]
        inputs, initializers = [], []
        for name, value in zip(names, values, strict=True):
            if value is None:
                continue
            if typed and value.nbytes <= _VALUE_BYTES:
                initializers.append(numpy_helper.from_array(value, name))
                continue
            code = helper.np_dtype_to_tensor_dtype(value.dtype)
            inputs.append(helper.make_tensor_value_info(name, code, value.shape if typed else None))
        graph = helper.make_graph(
            [helper.make_node(node.op, names, outputs, **{k: _attribute(v) for k, v in node.attrs.items()})],
            "one node",
            inputs,
            [onnx.ValueInfoProto(name=name) for name in outputs if name],
            initializers,
        )
        opset = [helper.make_opsetid("", self._opset)]
        return helper.make_model(graph, opset_imports=opset, ir_version=_IR_VERSION)


def _attribute(value: object) -> Any:
    return numpy_helper.from_array(value.values) if isinstance(value, gs.Constant) else value


def _bytes_of(kind: onnx.TypeProto.Tensor) -> int | None:
    if kind.elem_type in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING) or not kind.HasField("shape"):
        return None
    if not all(dim.HasField("dim_value") for dim in kind.shape.dim):
        return None
    count = 1
    for dim in kind.shape.dim:
        count *= dim.dim_value
    return count * int(helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize)
