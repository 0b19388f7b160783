"""What callers of a model see: its inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.model import dtypes
from graphopt.model.exporter import value_info
from graphopt.model.graph import EditGraph
from graphopt.model.importer import dims_of


@dataclass(frozen=True)
class TensorSpec:
    """An input or output as the model declares it.

    Attributes:
        name: its name.
        dtype: element type; ``object`` for strings, ``None`` where it is no tensor.
        shape: sizes, symbols, ``None`` for unknown dimensions; ``None`` without a declared rank.
        kind: ``tensor``, ``sequence``, ``map``, ``optional``, ``sparse_tensor`` or ``opaque``.
    """

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int | str | None, ...] | None
    kind: str = "tensor"


@dataclass(frozen=True)
class Interface:
    """What callers of the model see.

    Attributes:
        inputs: what must be fed, in order.
        outputs: what comes back, in order.
        overridable: inputs with a default value (IR ≥ 4: initializers that are also inputs).
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    overridable: tuple[TensorSpec, ...]


def read_interface(graph: EditGraph) -> Interface:
    """Inputs and outputs of ``graph`` as declared."""
    specs = [_spec(t, graph.envelope.inputs) for t in graph.inputs]
    defaults = graph.envelope.defaults
    return Interface(
        inputs=tuple(s for s in specs if s.name not in defaults),
        outputs=tuple(_spec(t, graph.envelope.outputs) for t in graph.outputs),
        overridable=tuple(s for s in specs if s.name in defaults),
    )


def _spec(tensor: gs.Tensor, declarations: Mapping[str, onnx.ValueInfoProto]) -> TensorSpec:
    value = value_info(tensor, declarations.get(tensor.name)) if tensor.dtype is not None else None
    if value is None:
        value = declarations.get(tensor.name, onnx.ValueInfoProto(name=tensor.name))
    kind = (value.type.WhichOneof("value") or "tensor_type").removesuffix("_type")
    if kind != "tensor":
        return TensorSpec(tensor.name, None, None, kind)
    return TensorSpec(tensor.name, dtypes.numpy_of(value.type.tensor_type.elem_type), dims_of(value.type))
