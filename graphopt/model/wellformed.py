"""What must hold before a model is imported: checked on the protobuf, with the names of what is wrong."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator

import onnx
from google.protobuf.message import Message  # type: ignore[import-untyped]
from onnx import AttributeProto

from graphopt.errors import ModelError
from graphopt.model.algorithms import CycleError, cycle_error, stable_order


def check_versions(proto: onnx.ModelProto) -> None:
    """Refuses a model without graph, IR version or opsets, and versions newer than the installed onnx.

    Raises:
        ModelError: GO-304 or GO-305.
    """
    if not proto.HasField("graph"):
        raise ModelError("GO-304", "the model has no graph", hint="export it again")
    if not proto.ir_version:
        raise ModelError("GO-305", "the model states no IR version")
    if proto.ir_version > onnx.IR_VERSION:
        raise ModelError(
            "GO-305",
            f"IR version {proto.ir_version} is newer than the installed onnx {onnx.__version__} knows "
            f"({onnx.IR_VERSION})",
            hint="upgrade onnx",
        )
    if not proto.opset_import:
        raise ModelError("GO-305", "the model states no opset version", hint="export it again")
    newest = onnx.defs.onnx_opset_version()
    for entry in proto.opset_import:
        if entry.domain in ("", "ai.onnx") and not 1 <= entry.version <= newest:
            raise ModelError(
                "GO-305",
                f"opset {entry.version} is unknown: the installed onnx {onnx.__version__} knows 1 to {newest}",
                hint="upgrade onnx, or export with an older opset",
            )


def check_functions(proto: onnx.ModelProto) -> None:
    """Refuses local functions that call themselves, directly or through others.

    Raises:
        ModelError: GO-304 with the path (GHSA-7w46-vvrh-m8q5: recursion overflows the stack of whoever inlines them).
    """
    keys = [(f.domain, f.name, f.overload) for f in proto.functions]
    index = {key: i for i, key in enumerate(keys)}
    if len(index) != len(keys):
        raise ModelError("GO-304", "two local functions have the same domain, name and overload")

    def calls(i: int) -> list[int]:
        used = (index.get((n.domain, n.op_type, n.overload)) for n in walk_nodes(proto.functions[i].node))
        return [j for j in used if j is not None]

    try:
        stable_order(len(keys), calls)
    except CycleError as cycle:
        path = " -> ".join(keys[i][1] for i in cycle.path)
        raise ModelError("GO-304", "a local function calls itself", where=path) from None


def knows(op: str, version: int, domain: str) -> bool:
    """Whether onnx has a schema for an operator; no for versions it cannot even represent."""
    try:
        return bool(onnx.defs.has(op, version, domain))
    except TypeError:
        return False


def check_text(message: Message) -> None:
    """Refuses text that is no UTF-8: protobuf hands it out as bytes, or fails when it is read in the middle of an edit.

    Raises:
        ModelError: GO-304 with the text.
    """
    stack = [message]
    while stack:
        for descriptor, value in stack.pop().ListFields():
            if descriptor.type == descriptor.TYPE_MESSAGE:
                stack.extend([value] if isinstance(value, Message) else value)
            elif descriptor.type == descriptor.TYPE_STRING:
                texts = [value] if isinstance(value, str | bytes) else value
                if not all(isinstance(text, str) for text in texts):
                    raise ModelError("GO-304", "a name or text in the model is not UTF-8", why=repr(list(texts)[:3]))


def walk_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """All nodes, those of subgraph bodies included."""
    stack = [iter(nodes)]
    while stack:
        node = next(stack[-1], None)
        if node is None:
            stack.pop()
            continue
        yield node
        for attribute in node.attribute:
            for body in attribute_graphs(attribute):
                stack.append(iter(body.node))


def attribute_graphs(attribute: onnx.AttributeProto) -> list[onnx.GraphProto]:
    """The subgraphs an attribute holds."""
    if attribute.type == AttributeProto.GRAPH:
        return [attribute.g]
    return list(attribute.graphs)


def check_operators(proto: onnx.ModelProto) -> None:
    """Refuses operators of the standard domain that its opset does not have.

    Raises:
        ModelError: GO-305 naming the node.
    """
    version = next((e.version for e in proto.opset_import if e.domain in ("", "ai.onnx")), 0)
    local = {(f.domain, f.name) for f in proto.functions}
    seen: set[str] = set()
    for node in walk_nodes(proto.graph.node):
        if node.domain not in ("", "ai.onnx") or node.op_type in seen or ("", node.op_type) in local:
            continue
        seen.add(node.op_type)
        if not version:
            raise ModelError(
                "GO-305", f"operator {node.op_type} is used, but no opset of the standard domain", where=node.name
            )
        if not knows(node.op_type, version, ""):
            raise ModelError(
                "GO-305",
                f"operator {node.op_type} is not in opset {version}",
                where=f"node {node.name!r}" if node.name else f"the node that makes {list(node.output)}",
                hint="give the node its own domain if it is a custom operator",
            )


def ordered_nodes(
    graph: onnx.GraphProto, outer: Container[str], initializers: onnx.GraphProto
) -> tuple[list[onnx.NodeProto], bool]:
    """The nodes of one graph in a valid order; checks single assignment, dangling names and cycles.

    Args:
        graph: one level; bodies are looked into only for the outer names they capture.
        outer: names that surrounding graphs define.
        initializers: the graph that holds the initializers (the same, unless they were left out of it).

    Returns:
        The nodes, and whether they had to be moved.

    Raises:
        ModelError: GO-304 with the names.
    """
    known = _declared(graph, initializers)
    producer = _producers(graph, known)
    needs = [needed_names(node) for node in graph.node]
    unsorted = False
    for i, node in enumerate(graph.node):
        for name in needs[i]:
            if name in known or (name in outer and name not in producer):
                continue
            if name not in producer:
                raise ModelError("GO-304", f"tensor {name!r} is used but never defined", where=_label(node, i))
            unsorted = True
        known.update(node.output)
    _check_outputs(graph, known, outer)
    if not unsorted:
        return list(graph.node), False
    try:
        order = stable_order(len(needs), lambda i: [producer[n] for n in needs[i] if n in producer])
    except CycleError as cycle:
        raise cycle_error([_label(graph.node[i], i) for i in cycle.path]) from None
    return [graph.node[i] for i in order], True


def _producers(graph: onnx.GraphProto, known: Container[str]) -> dict[str, int]:
    producer: dict[str, int] = {}
    for i, node in enumerate(graph.node):
        for name in filter(None, node.output):
            if name in producer or name in known:
                raise ModelError("GO-304", f"tensor {name!r} is defined twice", where=_label(node, i))
            producer[name] = i
    return producer


def _declared(graph: onnx.GraphProto, source: onnx.GraphProto) -> set[str]:
    inputs = [value.name for value in graph.input]
    initializers = [t.name for t in source.initializer] + [t.values.name for t in source.sparse_initializer]
    for kind, names in (("input", inputs), ("initializer", initializers)):
        seen: set[str] = set()
        for name in names:
            if not name:
                raise ModelError("GO-304", f"an {kind} has no name", where=f"graph {graph.name!r}")
            if name in seen:
                raise ModelError("GO-304", f"{kind} {name!r} is defined twice", where=f"graph {graph.name!r}")
            seen.add(name)
    return {*inputs, *initializers}


def _check_outputs(graph: onnx.GraphProto, known: Container[str], outer: Container[str]) -> None:
    seen: set[str] = set()
    for value in graph.output:
        if value.name in seen:
            raise ModelError("GO-308", f"output {value.name!r} is listed twice", where=f"graph {graph.name!r}")
        if not value.name or (value.name not in known and value.name not in outer):
            raise ModelError("GO-304", f"output {value.name!r} is never computed", where=f"graph {graph.name!r}")
        seen.add(value.name)


def _label(node: onnx.NodeProto, index: int) -> str:
    return node.name or f"{node.op_type} (node {index})"


def needed_names(node: onnx.NodeProto) -> list[str]:
    """Names a node reads from its own graph: its inputs, then what its bodies capture."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for body in attribute_graphs(attribute):
            names.extend(captured_names(body))
    return names


def captured_names(graph: onnx.GraphProto) -> list[str]:
    """Names a body uses and does not define, each once, in order of use."""
    own = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    own.update(t.values.name for t in graph.sparse_initializer)
    own.update(name for node in graph.node for name in node.output)
    found: dict[str, None] = {}
    for node in graph.node:
        found.update((name, None) for name in needed_names(node) if name not in own)
    found.update((v.name, None) for v in graph.output if v.name not in own)
    return list(found)
