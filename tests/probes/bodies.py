"""Features of control flow: bodies, what they capture, and what they hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.probes.probe import Probe, X, entries, kept, node, plain, relu, trunk, value, weight

BOOL, INT64 = TensorProto.BOOL, TensorProto.INT64
OUTER = np.arange(8, dtype=np.float32).reshape(2, 4)
FLAG = {"x": X, "flag": np.array(True)}


def probes() -> Iterator[Probe]:
    """All probes of this module."""
    yield from _if()
    yield from _loop()
    yield from _scan()
    yield from _rare()


def _graph(name: str, nodes: list[onnx.NodeProto], output: str, **graph: object) -> onnx.GraphProto:
    return helper.make_graph(nodes, name, [], [value(output)], **graph)  # type: ignore[arg-type]


def _branches(
    op: str = "Add", *, then: onnx.GraphProto | None = None, other: onnx.GraphProto | None = None
) -> onnx.NodeProto:
    then = then or _graph("then", [node(op, ["s", "outer"], ["t"], "then/op")], "t")
    other = other or _graph("else", [node("Mul", ["s", "outer"], ["e"], "else/op")], "e")
    return node("If", ["flag"], ["f"], then_branch=then, else_branch=other)


def _choice(branch: onnx.NodeProto, **graph: object) -> onnx.ModelProto:
    return trunk(
        branch,
        inputs=[value("flag", (), BOOL)],
        weights=[weight("outer", OUTER)],
        **graph,  # type: ignore[arg-type]
    )


def copies(name: str) -> Callable[[onnx.ModelProto], object]:
    """Counts how many initializers of a name a model holds at the top and in its bodies."""

    def look(model: onnx.ModelProto) -> tuple[int, int]:
        inner = [a.g for n in model.graph.node for a in n.attribute if a.type == onnx.AttributeProto.GRAPH]
        return (
            sum(t.name == name for t in model.graph.initializer),
            sum(t.name == name for g in inner for t in g.initializer),
        )

    return look


def _held(model: onnx.ModelProto, name: str) -> onnx.GraphProto:
    return next(a.g for a in kept(model).attribute if a.name == name)


def body(name: str) -> Callable[[onnx.ModelProto], object]:
    """Shows the nodes of one body of the node with the feature."""
    return lambda model: [(n.name, n.op_type, list(n.output)) for n in _held(model, name).node]


def _papers(graph: onnx.GraphProto) -> object:
    inner = graph.node[0]
    papers = entries(graph.metadata_props), entries(inner.metadata_props), graph.doc_string, inner.doc_string
    return papers, [plain(v) for v in graph.value_info]


def _if() -> Iterator[Probe]:
    yield Probe("If whose branches read an outer weight", _choice(_branches()), copies("outer"), feed=FLAG)
    held = _graph("then", [node("Add", ["s", "own"], ["t"], "then/op")], "t", initializer=[weight("own", OUTER)])
    yield Probe("initializer of a body", _choice(_branches(then=held)), copies("own"), feed=FLAG)
    twins = [
        _graph(name, [node("Add", ["s", "own"], [out], f"{name}/op")], out, initializer=[weight("own", OUTER * k)])
        for name, out, k in (("then", "t", 1), ("else", "e", 2))
    ]
    yield Probe(
        "one name for two bodies' initializers",
        _choice(_branches(then=twins[0], other=twins[1])),
        copies("own"),
        feed=FLAG,
    )
    same = [_graph(n, [node("Add", ["s", "outer"], ["t"], f"{n}/op")], "t") for n in ("then", "else")]
    yield Probe(
        "one name for two bodies' values",
        _choice(_branches(then=same[0], other=same[1])),
        body("else_branch"),
        feed=FLAG,
    )
    documented = _graph("then", [node("Add", ["s", "outer"], ["t"], "then/op", doc_string="doc")], "t", doc_string="g")
    documented.node[0].metadata_props.add(key="k", value="v")
    documented.metadata_props.add(key="k", value="v")
    documented.value_info.append(value("t"))
    yield Probe(
        "documents of a body",
        _choice(_branches(then=documented)),
        lambda m: _papers(_held(m, "then_branch")),
        feed=FLAG,
    )
    captured = _graph(
        "then",
        [node("ReduceSum", ["fc.bias"], ["sum"], "then/sum", keepdims=0), node("Add", ["s", "sum"], ["t"], "then/op")],
        "t",
    )
    yield Probe(
        "body that reads another layer's weight", _choice(_branches(then=captured)), copies("fc.bias"), feed=FLAG
    )
    direct = helper.make_graph([], "then", [], [value("s")])
    yield Probe("branch that returns an outer value as it is", _choice(_branches(then=direct)), feed=FLAG)
    constant = helper.make_graph([], "then", [], [value("own")], initializer=[weight("own", OUTER)])
    yield Probe("branch that returns its initializer", _choice(_branches(then=constant)), copies("own"), feed=FLAG)
    sure = trunk(_branches(), weights=[weight("outer", OUTER), weight("flag", np.array(True))])
    yield Probe("If on a constant", sure)


def _loop() -> Iterator[Probe]:
    inner = helper.make_graph(
        [node("Identity", ["c"], ["c.next"], "loop/c"), node("Add", ["carried", "outer"], ["next"], "loop/op")],
        "body",
        [value("i", (), INT64), value("c", (), BOOL), value("carried")],
        [value("c.next", (), BOOL), value("next")],
    )
    fixed = [weight("trip", np.int64(3)), weight("cond", np.array(True)), weight("outer", OUTER)]
    loop = node("Loop", ["trip", "cond", "s"], ["f"], body=inner)
    yield Probe("Loop that reads an outer weight", trunk(loop, weights=fixed), copies("outer"))
    branch = [
        helper.make_graph([node(op, ["carried", "outer"], [out], f"{out}/op")], out, [], [value(out)])
        for op, out in (("Add", "t"), ("Sub", "e"))
    ]
    nested = helper.make_graph(
        [
            node("Identity", ["c"], ["c.next"], "loop/c"),
            node("If", ["c"], ["next"], "loop/if", then_branch=branch[0], else_branch=branch[1]),
        ],
        "body",
        [value("i", (), INT64), value("c", (), BOOL), value("carried")],
        [value("c.next", (), BOOL), value("next")],
    )
    loop = node("Loop", ["trip", "cond", "s"], ["f"], body=nested)
    yield Probe("If in a Loop that reads an outer weight", trunk(loop, weights=fixed), copies("outer"))
    loop = node("Loop", ["", "cond", "s"], ["f"], body=_once())
    yield Probe("Loop without a trip count", trunk(loop, weights=fixed[1:]))


def _once() -> onnx.GraphProto:
    return helper.make_graph(
        [
            node("Constant", [], ["c.next"], "loop/stop", value=weight("", np.array(False))),
            node("Add", ["carried", "outer"], ["next"], "loop/op"),
        ],
        "body",
        [value("i", (), INT64), value("c", (), BOOL), value("carried")],
        [value("c.next", (), BOOL), value("next")],
    )


def _scan() -> Iterator[Probe]:
    step = helper.make_graph(
        [node("Add", ["row", "bias"], ["row.out"], "scan/op"), node("Identity", ["state"], ["state.out"], "scan/s")],
        "step",
        [value("state", (4,)), value("row", (4,))],
        [value("state.out", (4,)), value("row.out", (4,))],
    )
    start = [weight("zero", np.zeros(4, np.float32)), weight("bias", np.ones(4, np.float32))]
    scan = node("Scan", ["zero", "s"], ["last", "f"], body=step, num_scan_inputs=1)
    yield Probe("Scan that reads an outer weight", trunk(scan, weights=start), copies("bias"))


def _rare() -> Iterator[Probe]:
    each = helper.make_graph([relu("item", "mapped", "map/op")], "each", [value("item")], [value("mapped")])
    model = trunk(
        node("SequenceConstruct", ["s"], ["q"], "make"),
        node("SequenceMap", ["q"], ["r"], body=each),
        node("SequenceAt", ["r", "zero"], ["f"], "take"),
        weights=[weight("zero", np.int64(0))],
    )
    yield Probe("SequenceMap", model, body("body"))
    shadow = _graph("then", [node("Identity", ["s"], ["s"], "then/op")], "s")
    yield Probe("body that defines an outer name again", _choice(_branches(then=shadow)), refused="GO-304", feed=FLAG)
    typed = node("Foo", ["s"], ["f"], domain="org.x", body=_graph("body", [relu("s", "t", "body/op")], "t"))
    yield Probe("body of a custom operator", trunk(typed, domains={"org.x": 1}), body("body"))
