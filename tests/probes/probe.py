"""What a probe is: one tiny model that uses one feature of the format, and how to see that it is still there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT
Look = Callable[[onnx.ModelProto], object]
X = np.random.default_rng(7).standard_normal((2, 4)).astype(np.float32)


@dataclass(frozen=True)
class Probe:
    """One feature.

    Attributes:
        name: of the feature.
        model: the model that uses it.
        look: what must stay as it is, read from a model; ``None``: only what the model computes.
        refused: the error code, where the feature has to be refused.
        feed: inputs.
        noted: a word that the notes on opening must hold, where something is repaired.
        respelled: the bytes may change, the meaning stays.
    """

    name: str
    model: onnx.ModelProto
    look: Look | None = None
    refused: str = ""
    feed: Mapping[str, Any] = field(default_factory=lambda: {"x": X})
    noted: str = ""
    respelled: bool = False


def value(
    name: str, dims: Sequence[int | str | None] | None = (2, 4), elem: int = FLOAT, **extra: Any
) -> onnx.ValueInfoProto:
    """A tensor's declaration; ``[2, 4]`` floats unless said otherwise."""
    return helper.make_tensor_value_info(name, elem, dims, **extra)


def weight(name: str, array: Any) -> TensorProto:
    """An initializer."""
    return numpy_helper.from_array(np.asarray(array, order="C"), name)


def node(
    op: str, inputs: Sequence[str], outputs: Sequence[str], name: str = "keep", **attributes: Any
) -> onnx.NodeProto:
    """A node; the one that has the feature is called ``keep``."""
    return helper.make_node(op, list(inputs), list(outputs), name=name, **attributes)


def relu(source: str = "s", target: str = "f", name: str = "keep", **attributes: Any) -> onnx.NodeProto:
    """The plainest node."""
    return node("Relu", [source], [target], name, **attributes)


def trunk(
    *nodes: onnx.NodeProto,
    inputs: Sequence[onnx.ValueInfoProto] = (),
    outputs: Sequence[onnx.ValueInfoProto] = (),
    weights: Sequence[TensorProto] = (),
    opset: int = 21,
    ir_version: int = 10,
    domains: Mapping[str, int] | None = None,
    functions: Sequence[onnx.FunctionProto] = (),
    **graph: Any,
) -> onnx.ModelProto:
    """``x → Identity → [the nodes: s → f] → Gemm → y``: something for every pass to do around the feature."""
    rng = np.random.default_rng(3)
    body = list(nodes) or [relu()]
    body = [
        node("Identity", ["x"], ["s"], "drop"),
        *body,
        node("Gemm", ["f", "fc.weight", "fc.bias"], ["y"], "fc"),
    ]
    held = [
        weight("fc.weight", rng.standard_normal((4, 8)).astype(np.float32)),
        weight("fc.bias", rng.standard_normal(8).astype(np.float32)),
        *weights,
    ]
    made = helper.make_graph(body, "probe", [value("x"), *inputs], [value("y", (2, 8)), *outputs], held, **graph)
    imports = [helper.make_opsetid("", opset)]
    imports += [helper.make_opsetid(domain, version) for domain, version in (domains or {}).items()]
    return helper.make_model(made, opset_imports=imports, ir_version=ir_version, functions=list(functions))


def plain(message: Message) -> bytes:
    """A protobuf as bytes that compare."""
    data: bytes = message.SerializeToString(deterministic=True)
    return data


def entries(properties: Any) -> dict[str, str]:
    """Metadata as a mapping."""
    return {entry.key: entry.value for entry in properties}


def kept(model: onnx.ModelProto, name: str = "keep") -> onnx.NodeProto:
    """The node with the feature."""
    return next(n for n in model.graph.node if n.name == name)


def attribute(model: onnx.ModelProto, name: str) -> bytes:
    """One attribute of the node with the feature."""
    return plain(next(a for a in kept(model).attribute if a.name == name))


def tensor(model: onnx.ModelProto, name: str) -> bytes:
    """One initializer."""
    return plain(next(t for t in model.graph.initializer if t.name == name))


def declared(values: Any, name: str) -> bytes:
    """One declaration among inputs, outputs or inner values."""
    return plain(next(v for v in values if v.name == name))


def edited(model: onnx.ModelProto, change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    """``model`` after ``change``."""
    change(model)
    return model
