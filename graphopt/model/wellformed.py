"""What must hold before a model is imported: checked on the protobuf, with the names of what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, replace

import onnx
from google.protobuf.message import Message  # type: ignore[import-untyped]
from onnx import AttributeProto

from graphopt.model.algorithms import CycleError, cycle_text, stable_order
from graphopt.model.domains import STANDARD_DOMAINS
from graphopt.model.findings import Finding
from graphopt.model.limits import DEFAULT_LIMITS, Limits, attribute_graphs, excesses
from graphopt.model.schemas import demands_of, schema_of
from graphopt.model.signatures import miscalls, miscounts, misfits, owner, repeated_attributes


def survey(proto: onnx.ModelProto, limits: Limits = DEFAULT_LIMITS) -> Iterator[Finding]:
    """All findings about a model but those about the values of its tensors.

    Found one after another: whoever stops at the first error makes no further checks.
    """
    found = list(versions(proto))
    yield from found
    if any(finding.severity == "error" for finding in found):
        return
    try:
        yield from excesses(proto, limits)
        yield from text(proto)
        yield from functions(proto)
        yield from operators(proto)
        yield from function_nodes(proto)
        yield from calls(proto)
        yield from lists_of_graphs(proto)
        yield from structure(proto.graph)
        yield from repeated_names(proto)
    except UnicodeDecodeError as error:
        yield bad_text(str(error))


def _error(
    code: str, what: str, where: str | None = None, *, why: str | None = None, hint: str | None = None
) -> Finding:
    return Finding(code, "error", what, where, why, hint)


def versions(proto: onnx.ModelProto) -> Iterator[Finding]:
    """No graph or no outputs (GO-304); versions that are missing, in conflict or newer than onnx (GO-305)."""
    if not proto.HasField("graph"):
        yield _error("GO-304", "the model has no graph", hint="export it again")
    elif not proto.graph.output:
        yield _error("GO-304", "the graph has no outputs: it computes nothing", hint="export it again")
    if not proto.ir_version:
        yield _error("GO-305", "the model states no IR version")
    if proto.ir_version > onnx.IR_VERSION:
        yield _error(
            "GO-305",
            f"IR version {proto.ir_version} is newer than the installed onnx {onnx.__version__} knows "
            f"({onnx.IR_VERSION})",
            hint="upgrade onnx",
        )
    if not proto.opset_import:
        yield _error("GO-305", "the model states no opset version", hint="export it again")
    newest = onnx.defs.onnx_opset_version()
    for entry in proto.opset_import:
        if entry.domain in STANDARD_DOMAINS and not 1 <= entry.version <= newest:
            yield _error(
                "GO-305",
                f"opset {entry.version} is unknown: the installed onnx {onnx.__version__} knows 1 to {newest}",
                hint="upgrade onnx, or export with an older opset",
            )
    yield from _conflicts(proto)


def _conflicts(proto: onnx.ModelProto) -> Iterator[Finding]:
    """Operator domains at several versions (GO-305): onnxruntime takes the last one stated, others may not."""
    stated: dict[str, dict[int, str]] = {}
    for entry in proto.opset_import:
        domain = "" if entry.domain in STANDARD_DOMAINS else entry.domain
        stated.setdefault(domain, {})[entry.version] = entry.domain
    for versions_of in stated.values():
        if len(versions_of) > 1:
            shown = " and ".join(f"{version} of {domain!r}" for version, domain in versions_of.items())
            yield _error(
                "GO-305",
                f"the model states several opsets of one operator domain: {shown}",
                why="'ai.onnx' is another spelling of ''" if "ai.onnx" in versions_of.values() else None,
                hint="keep the one that the model was made for",
            )


def functions(proto: onnx.ModelProto) -> Iterator[Finding]:
    """Local functions that call themselves, directly or through others: GO-304 with the path.

    Recursion overflows the stack of whoever inlines them (GHSA-7w46-vvrh-m8q5).
    """
    keys = [(f.domain, f.name, f.overload) for f in proto.functions]
    index = {key: i for i, key in enumerate(keys)}
    if len(index) != len(keys):
        yield _error("GO-304", "two local functions have the same domain, name and overload")

    def calls(i: int) -> list[int]:
        used = (index.get((n.domain, n.op_type, n.overload)) for n in walk_nodes(proto.functions[i].node))
        return [j for j in used if j is not None]

    try:
        stable_order(len(keys), calls)
    except CycleError as cycle:
        path = " -> ".join(keys[i][1] for i in cycle.path)
        yield _error("GO-304", "a local function calls itself", path)


def text(message: Message) -> Iterator[Finding]:
    """Text that is no UTF-8 (GO-304): protobuf hands it out as bytes, or fails when it is read amid an edit."""
    stack = [message]
    while stack:
        for descriptor, value in stack.pop().ListFields():
            if descriptor.type == descriptor.TYPE_MESSAGE:
                stack.extend([value] if isinstance(value, Message) else value)
            elif descriptor.type == descriptor.TYPE_STRING:
                texts = [value] if isinstance(value, str | bytes) else value
                if not all(isinstance(item, str) for item in texts):
                    yield bad_text(repr(list(texts)[:3]))


def bad_text(why: str) -> Finding:
    """The finding for text that is no UTF-8."""
    return Finding("GO-304", "error", "a name or text in the model is not UTF-8", why=why)


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


def operators(proto: onnx.ModelProto) -> Iterator[Finding]:
    """Nodes that do not fit their operator (GO-304), and standard ones that the opset does not have (GO-305).

    Of nodes whose operator is unknown, only the first is named; local functions are not looked into.
    """
    version = _standard_version(proto)
    local = {f.name for f in proto.functions if not f.domain}
    seen: set[str] = set()
    for node in walk_nodes(proto.graph.node):
        yield from repeated_attributes(node)
        if not node.op_type:
            yield _error("GO-304", "the node has no operator", owner(node), hint="export the model again")
        elif node.domain not in STANDARD_DOMAINS or node.op_type in local:
            continue
        elif version and schema_of(node.op_type, version) is not None:
            yield from miscounts(node, version)
            yield from misfits(node, version)
        elif node.op_type not in seen:
            seen.add(node.op_type)
            yield _unknown(node, version)


def function_nodes(proto: onnx.ModelProto) -> Iterator[Finding]:
    """Nodes in local functions that do not fit their operator (GO-304).

    The version that the function states decides. onnxruntime (1.32, measured) counts inputs and outputs in every
    function; the rest it sees when it inlines a function into the graph, where the model's version decides: what the
    two versions define differently is let pass.
    """
    version = _standard_version(proto)
    local = {f.name for f in proto.functions if not f.domain}
    for function in proto.functions:
        own = _standard_version(function)
        for node in _standard_nodes(function, local):
            yield from _in_function(function, miscounts(node, own))
    for function in _inlined(proto):
        own = _standard_version(function)
        for node in _standard_nodes(function, local):
            if demands_of(node.op_type, own) == demands_of(node.op_type, version):
                yield from _in_function(function, misfits(node, own))


def calls(proto: onnx.ModelProto) -> Iterator[Finding]:
    """Calls that do not fit the local function they call (GO-304), of functions that onnxruntime inlines."""
    inlined = _inlined(proto)
    functions = {(f.domain, f.name, f.overload): f for f in inlined}

    def of(nodes: Iterable[onnx.NodeProto]) -> Iterator[Finding]:
        for node in walk_nodes(nodes):
            called = functions.get((node.domain, node.op_type, node.overload))
            if called is not None:
                yield from miscalls(node, called)

    yield from of(proto.graph.node)
    for function in inlined:
        yield from _in_function(function, of(function.node))


def _in_function(function: onnx.FunctionProto, found: Iterable[Finding]) -> Iterator[Finding]:
    yield from (replace(one, where=f"{one.where} of function {function.name!r}") for one in found)


def _standard_nodes(function: onnx.FunctionProto, local: Container[str]) -> Iterator[onnx.NodeProto]:
    """Nodes of the standard domain; those that are ``local`` functions of that domain are left out."""
    for node in walk_nodes(function.node):
        if node.domain in STANDARD_DOMAINS and node.op_type not in local:
            yield node


def _inlined(proto: onnx.ModelProto) -> list[onnx.FunctionProto]:
    """Local functions that the graph calls, directly or through others, where onnxruntime has no operator so named."""
    functions = {
        (f.domain, f.name, f.overload): f
        for f in proto.functions
        if f.domain and not f.domain.startswith(("ai.onnx", "com.microsoft"))
    }
    found: list[onnx.FunctionProto] = []
    stack = [proto.graph.node]
    while stack:
        for node in walk_nodes(stack.pop()):
            called = functions.pop((node.domain, node.op_type, node.overload), None)
            if called is not None:
                found.append(called)
                stack.append(called.node)
    return found


def _standard_version(imports: onnx.ModelProto | onnx.FunctionProto) -> int:
    """The version of the standard domain that is stated, the last of several, as onnxruntime takes it; 0: none."""
    return next((e.version for e in reversed(imports.opset_import) if e.domain in STANDARD_DOMAINS), 0)


def _unknown(node: onnx.NodeProto, version: int) -> Finding:
    if not version:
        what = f"operator {node.op_type} is used, but no opset of the standard domain"
        return _error("GO-305", what, owner(node))
    hint = "give the node its own domain if it is a custom operator"
    return _error("GO-305", f"operator {node.op_type} is not in opset {version}", owner(node), hint=hint)


def lists_of_graphs(proto: onnx.ModelProto) -> Iterator[Finding]:
    """Attributes that hold a list of graphs (GO-308): no standard operator has one, and the view cannot carry it."""
    for node in walk_nodes(proto.graph.node):
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPHS:
                yield _error("GO-308", f"attribute {attribute.name!r} is a list of graphs", owner(node))


def repeated_names(proto: onnx.ModelProto) -> Iterator[Finding]:
    """Node names that several nodes have: they are made unique on opening, where onnxruntime refuses the file."""
    names = _repeated(walk_nodes(proto.graph.node))
    if not names:
        return
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    what = f"node names are used more than once ({len(names)}): made unique"
    bodies = (
        body
        for node in walk_nodes(proto.graph.node)
        for attribute in node.attribute
        for body in attribute_graphs(attribute)
    )
    # Between a graph and its bodies they may repeat.
    if any(_repeated(graph.node) for graph in (proto.graph, *bodies)):
        yield Finding("GO-326", "warning", f"{what}; onnxruntime does not open the file as it is", shown)
    else:
        yield Finding("GO-326", "note", what, shown)


def _repeated(nodes: Iterable[onnx.NodeProto]) -> list[str]:
    counts = Counter(node.name for node in nodes if node.name)
    return [name for name, count in counts.items() if count > 1]


def structure(graph: onnx.GraphProto) -> Iterator[Finding]:
    """What is wrong with the wiring of a graph and of all bodies in it."""
    stack: list[tuple[onnx.GraphProto, frozenset[str]]] = [(graph, frozenset())]
    while stack:
        level, outer = stack.pop()
        yield from order_nodes(level, outer, level).findings
        bodies = [g for node in level.node for attribute in node.attribute for g in attribute_graphs(attribute)]
        if bodies:
            own = {v.name for v in level.input} | {t.name for t in level.initializer}
            own |= {t.values.name for t in level.sparse_initializer}
            own.update(name for node in level.node for name in node.output)
            stack += [(body, outer | own) for body in bodies]


@dataclass(frozen=True)
class Order:
    """One graph's nodes, ready to be taken in turn.

    Attributes:
        nodes: in a valid order; as they stand where a finding is an error.
        moved: whether they had to be moved.
        findings: what is wrong with the graph's wiring.
    """

    nodes: list[onnx.NodeProto]
    moved: bool
    findings: tuple[Finding, ...]


def order_nodes(graph: onnx.GraphProto, outer: Container[str], initializers: onnx.GraphProto) -> Order:
    """The nodes of one graph in a valid order; finds double assignment, dangling names and cycles (GO-304).

    Args:
        graph: one level; bodies are looked into only for the outer names they capture.
        outer: names that surrounding graphs define.
        initializers: the graph that holds the initializers (the same, unless they were left out of it).
    """
    found: list[Finding] = []
    known = _declared(graph, initializers, found)
    producer = _producers(graph, known, found)
    needs = [needed_names(node) for node in graph.node]
    unsorted = False
    for i, node in enumerate(graph.node):
        for name in needs[i]:
            if name in known or (name in outer and name not in producer):
                continue
            if name not in producer:
                found.append(_error("GO-304", f"tensor {name!r} is used but never defined", _label(node, i)))
            else:
                unsorted = True
        known.update(node.output)
    found += _outputs(graph, known, outer)
    nodes = list(graph.node)
    if unsorted:
        try:
            order = stable_order(len(needs), lambda i: [producer[n] for n in needs[i] if n in producer])
        except CycleError as cycle:
            where = cycle_text([_label(nodes[i], i) for i in cycle.path])
            found.append(_error("GO-304", "the graph has a cycle", where))
        else:
            nodes = [nodes[i] for i in order]
            what = "the nodes are not in topological order: sorted on opening"
            found.append(Finding("GO-326", "note", what, f"graph {graph.name!r}"))
    return Order(nodes, unsorted, tuple(found))


def _producers(graph: onnx.GraphProto, known: Container[str], found: list[Finding]) -> dict[str, int]:
    producer: dict[str, int] = {}
    for i, node in enumerate(graph.node):
        for name in filter(None, node.output):
            if name in producer or name in known:
                found.append(_error("GO-304", f"tensor {name!r} is defined twice", _label(node, i)))
            producer.setdefault(name, i)
    return producer


def _declared(graph: onnx.GraphProto, source: onnx.GraphProto, found: list[Finding]) -> set[str]:
    inputs = [value.name for value in graph.input]
    initializers = [t.name for t in source.initializer] + [t.values.name for t in source.sparse_initializer]
    where = f"graph {graph.name!r}"
    for kind, names in (("input", inputs), ("initializer", initializers)):
        for name, count in Counter(names).items():
            if not name:
                found.append(_error("GO-304", f"an {kind} has no name", where))
            elif count > 1:
                found.append(_error("GO-304", f"{kind} {name!r} is defined twice", where))
    return {*inputs, *initializers}


def _outputs(graph: onnx.GraphProto, known: Container[str], outer: Container[str]) -> Iterator[Finding]:
    where = f"graph {graph.name!r}"
    for name, count in Counter(value.name for value in graph.output).items():
        if count > 1:
            yield _error("GO-308", f"output {name!r} is listed twice", where)
        if not name or (name not in known and name not in outer):
            yield _error("GO-304", f"output {name!r} is never computed", where)


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
