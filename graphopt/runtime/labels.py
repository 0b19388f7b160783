"""Numbered names inside a model, so that the names which onnxruntime makes from them can be read back."""

from __future__ import annotations

import re
from dataclasses import dataclass

import onnx

from graphopt.model.model import Model
from graphopt.runtime.session import Skeleton

_LABEL = re.compile(r"(?<![A-Za-z0-9])([nt])(\d+)_(\d+)?")


@dataclass(frozen=True)
class SourceNode:
    """One top-level node of the model as the user knows it.

    Attributes:
        name: its name; its first output's where it has none.
        op: operator with its domain, e.g. ``com.microsoft:Gelu``; plain for the standard domain.
        outputs: names of its outputs.
        reads: labelled names of the tensors it reads, those that its bodies capture included.
        writes: labelled names of the tensors it writes.
    """

    name: str
    op: str
    outputs: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]


@dataclass(frozen=True)
class Labelled:
    """A model with numbered names.

    Attributes:
        skeleton: it; inputs, outputs and initializers have kept their names.
        nodes: its top-level nodes; the index is the number in the label.
    """

    skeleton: Skeleton
    nodes: tuple[SourceNode, ...]

    def given_name(self, tensor: str) -> str:
        """The name that a labelled tensor has in the model; any other name as it is."""
        found = _LABEL.fullmatch(tensor)
        if not found or found.group(1) != "t" or found.group(3) is None:
            return tensor
        node, position = int(found.group(2)), int(found.group(3))
        known = node < len(self.nodes) and tensor in self.nodes[node].writes
        return self.nodes[node].outputs[position] if known else tensor


def label(model: Model) -> Labelled:
    """Give node i the name ``ni_``, and its output j the name ``ti_j``; nodes in bodies become anonymous."""
    given, weights = model.skeleton()
    proto = onnx.ModelProto()
    proto.CopyFrom(given)
    graph = proto.graph
    fixed = {v.name for v in (*graph.input, *graph.output)} | {t.name for t in graph.initializer} | {""}
    new: dict[str, str] = {}
    known = [(node.name, tuple(node.output)) for node in graph.node]
    for index, node in enumerate(graph.node):
        node.name = f"n{index}_"
        for position, name in enumerate(node.output):
            if name not in fixed:
                new[name] = f"t{index}_{position}"
    del graph.value_info[:]
    _rename(graph, new)
    nodes = tuple(
        SourceNode(name or next(iter(outputs), ""), _op(node), outputs, tuple(_reads(node)), tuple(node.output))
        for (name, outputs), node in zip(known, graph.node, strict=True)
    )
    return Labelled(Skeleton(proto, weights), nodes)


def labelled_node(name: str) -> int | None:
    """The number of the source node that a name of onnxruntime's was made from; ``None``: of none."""
    found = _LABEL.search(name)
    return int(found.group(2)) if found else None


def labelled_tensor(name: str) -> str | None:
    """The labelled tensor that a name of onnxruntime's was made from; ``None``: of none."""
    found = _LABEL.search(name)
    return found.group(0) if found and found.group(1) == "t" and found.group(3) else None


def _op(node: onnx.NodeProto) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}:{node.op_type}"


def _reads(node: onnx.NodeProto) -> list[str]:
    found = [name for name in node.input if name]
    for body in _bodies(node):
        made = {name for inner in body.node for name in inner.output} | {value.name for value in body.input}
        found += [name for inner in body.node for name in _reads(inner) if name not in made]
        found += [value.name for value in body.output if value.name not in made]
    return found


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [g for a in node.attribute for g in ([a.g] if a.type == onnx.AttributeProto.GRAPH else a.graphs)]


def _rename(graph: onnx.GraphProto, new: dict[str, str], body: bool = False) -> None:
    for number, node in enumerate(graph.node):
        if body:
            node.name = f"body{number}"
        for position, name in enumerate(node.input):
            node.input[position] = new.get(name, name)
        for position, name in enumerate(node.output):
            node.output[position] = new.get(name, name)
        for inner in _bodies(node):
            own = {value.name for value in (*inner.input, *inner.initializer)} | {
                n for x in inner.node for n in x.output
            }
            _rename(inner, {old: name for old, name in new.items() if old not in own}, True)
    for value in graph.output:
        value.name = new.get(value.name, value.name)
