"""Copying the editing view: new nodes and tensors, shared arrays and source records."""

from __future__ import annotations

from typing import Any

import onnx_graphsurgeon as gs

from graphopt.model.graph import EditConstant, EditGraph, EditNode, EditVariable, GraphEnvelope

_Memo = dict[int, gs.Tensor]


def clone_graph(graph: EditGraph) -> EditGraph:
    """An independent copy of ``graph`` and its bodies; linear, and no array is copied."""
    return _clone(graph, None, {}, {})


def _clone(graph: EditGraph, parent: EditGraph | None, memo: _Memo, homes: dict[int, EditGraph]) -> EditGraph:
    twin = EditGraph(name=graph.name, doc_string=graph.doc_string, opset=graph.opset, ir_version=graph.ir_version)
    twin.import_domains = graph.import_domains
    twin.parent = parent
    homes[id(graph)] = twin
    copier = _Copier(memo, homes, twin)
    envelope = graph.envelope
    twin.envelope = GraphEnvelope(
        envelope.proto,
        dict(envelope.inputs),
        dict(envelope.outputs),
        dict(envelope.values),
        [copier.tensor(c) for c in envelope.constants],
        {name: copier.tensor(c) for name, c in envelope.defaults.items()},
    )
    twin.inputs = [copier.tensor(t) for t in graph.inputs]
    for node in graph.nodes:
        twin.nodes.append(copier.node(node))
    twin.outputs = [copier.tensor(t) for t in graph.outputs]
    return twin


class _Copier:
    def __init__(self, memo: _Memo, homes: dict[int, EditGraph], twin: EditGraph) -> None:
        self._memo, self._homes, self._twin = memo, homes, twin

    def tensor(self, tensor: gs.Tensor) -> gs.Tensor:
        if not tensor.name:
            return gs.Variable.empty()
        found = self._memo.get(id(tensor))
        if found is None:
            found = self._memo[id(tensor)] = self._copy(tensor)
        return found

    def _copy(self, tensor: gs.Tensor) -> gs.Tensor:
        if isinstance(tensor, gs.Constant):
            constant = EditConstant(tensor.name, tensor._values)
            constant.record = getattr(tensor, "record", None)
            constant.home = self._home(tensor)
            return constant
        shape = None if tensor.shape is None else list(tensor.shape)
        variable = EditVariable(tensor.name, tensor.dtype, shape, tensor.type)
        variable.home = self._home(tensor) or self._twin
        variable.inferred = getattr(tensor, "inferred", None)
        return variable

    def _home(self, tensor: gs.Tensor) -> EditGraph | None:
        home = getattr(tensor, "home", None)
        return None if home is None else self._homes.get(id(home), self._twin)

    def node(self, node: gs.Node) -> EditNode:
        inputs = [self.tensor(t) for t in node.inputs]
        attrs = {name: self._attribute(value) for name, value in node.attrs.items()}
        outputs = [self.tensor(t) for t in node.outputs]
        twin = EditNode(node.op, node.name, attrs, inputs, outputs, node.domain)
        twin.home = self._twin
        twin.record = getattr(node, "record", None)
        return twin

    def _attribute(self, value: Any) -> Any:
        if isinstance(value, gs.Graph):
            return _clone(value, self._twin, self._memo, self._homes)
        if isinstance(value, gs.Constant):
            copy = EditConstant(value.name, value._values)
            copy.record = getattr(value, "record", None)
            return copy
        return list(value) if isinstance(value, list) else value
