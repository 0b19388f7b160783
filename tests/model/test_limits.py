"""Each limit refuses just above its value, by name, and the defaults refuse nothing ordinary."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import LimitError, ModelError
from graphopt.model.findings import Finding, raise_first
from graphopt.model.limits import Limits
from graphopt.model.model import Model

from .probes import model_of, relu, value, with_nested_bodies


def adding(tensor: TensorProto) -> onnx.ModelProto:
    return model_of([helper.make_node("Add", ["x", "w"], ["y"])], initializer=[tensor])


def refused(model: onnx.ModelProto, limits: Limits) -> LimitError:
    with pytest.raises(LimitError) as caught:
        Model.from_proto(model, limits)
    assert (caught.value.code, caught.value.exit_code) == ("GO-701", 7)
    return caught.value


def test_nodes_of_bodies_and_functions_count() -> None:
    model = with_nested_bodies()
    count = Model.from_proto(model).node_count
    Model.from_proto(model, Limits(max_nodes=count))
    assert "max_nodes" in refused(model, Limits(max_nodes=count - 1)).what
    body = [relu("p", "a"), relu("a", "q")]
    model = model_of([helper.make_node("F", ["x"], ["y"], domain="f")], domains={"f": 1})
    model.functions.append(helper.make_function("f", "F", ["p"], ["q"], body, [helper.make_opsetid("", 21)]))
    Model.from_proto(model, Limits(max_nodes=3))
    refused(model, Limits(max_nodes=2))


def nested(depth: int) -> onnx.ModelProto:
    graph = helper.make_graph([relu("x", "r0")], "g", [], [value("r0")])
    for i in range(1, depth + 1):
        node = helper.make_node("If", ["c"], [f"r{i}"], then_branch=graph, else_branch=graph)
        graph = helper.make_graph([node], "g", [], [value(f"r{i}")])
    return model_of(list(graph.node), [value("x"), value("c", [], TensorProto.BOOL)], [value(f"r{depth}")])


def test_nesting() -> None:
    Model.from_proto(nested(3), Limits(max_nesting=3))
    assert "max_nesting is 2, the model has 3" in refused(nested(3), Limits(max_nesting=2)).what


def test_a_tensor_is_refused_by_what_it_declares() -> None:
    weight = numpy_helper.from_array(np.ones(4, np.float32), "w")
    Model.from_proto(adding(weight), Limits(max_tensor_bytes=16))
    error = refused(adding(weight), Limits(max_tensor_bytes=15))
    assert error.where == "tensor 'w'"
    bomb = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2**40])
    assert "max_tensor_bytes" in refused(adding(bomb), Limits()).what


def test_a_constant_node_is_refused_too() -> None:
    bomb = TensorProto(name="w", data_type=TensorProto.INT8, dims=[2**40])
    refused(model_of([helper.make_node("Constant", [], ["y"], value=bomb)]), Limits())


@pytest.mark.parametrize("dims", [[2**63 - 1, 2], [2**32, 2**31], [2**62, 2**62, 2**62]])
def test_dimensions_that_overflow_are_malformed(dims: list[int]) -> None:
    with pytest.raises(ModelError, match="overflow") as caught:
        Model.from_proto(adding(TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=bytes(4))))
    assert caught.value.code == "GO-304"


def test_external_data_counts_every_tensor_that_shares_it(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(16))
    model = model_of([relu()])
    for name in "abc":
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="w.bin")
        model.graph.initializer.append(tensor)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    Model.open(tmp_path / "m.onnx", Limits(max_external_bytes=48))
    with pytest.raises(LimitError, match="max_external_bytes"):
        Model.open(tmp_path / "m.onnx", Limits(max_external_bytes=47))


def test_a_file_is_measured_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model_of([relu()]).SerializeToString())
    Model.open(path, Limits(max_file_bytes=path.stat().st_size))
    with pytest.raises(LimitError, match="max_file_bytes"):
        Model.open(path, Limits(max_file_bytes=path.stat().st_size - 1))


def test_the_first_error_is_raised_and_nothing_else() -> None:
    note = Finding("GO-326", "note", "a note")
    raise_first([note, Finding("GO-321", "warning", "a warning")])
    with pytest.raises(ModelError, match="one") as caught:
        raise_first([note, Finding("GO-304", "error", "one", "here", "so", "do"), Finding("GO-305", "error", "two")])
    assert Finding.of(caught.value) == Finding("GO-304", "error", "one", "here", "so", "do")
