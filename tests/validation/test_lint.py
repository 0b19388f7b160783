"""Every kind of finding on a model that has it, and nothing on one that has none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.model.findings import Finding
from graphopt.model.limits import Limits
from graphopt.validation.lint import lint
from tests.model.probes import model_of, relu, value


def findings(tmp_path: Path, model: onnx.ModelProto, limits: Limits | None = None) -> tuple[Finding, ...]:
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return lint(path, limits=limits or Limits())


def adding(array: object, shape: Sequence[int] = (1, 4), **more: object) -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.asarray(array), "w")
    return model_of([helper.make_node("Add", ["x", "w"], ["y"], "add")], initializer=[weight], **more)


def shown(found: Sequence[Finding]) -> list[tuple[str, str]]:
    return [(finding.code, finding.severity) for finding in found]


def test_nothing_is_found_on_a_model_without_fault(tmp_path: Path, cnn: Path) -> None:
    assert findings(tmp_path, model_of([relu()])) == ()
    assert lint(cnn) == ()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_nan_and_infinity_are_counted(tmp_path: Path, dtype: type) -> None:
    model = adding(np.array([1, np.nan, np.inf, -np.inf], dtype))
    model.graph.input[0].type.tensor_type.elem_type = model.graph.initializer[0].data_type
    model.graph.output[0].type.tensor_type.elem_type = model.graph.initializer[0].data_type
    (found,) = findings(tmp_path, model)
    assert (found.code, found.severity, found.where) == ("GO-321", "warning", "tensor 'w'")
    assert found.what == "1 NaN and 2 infinite of 4 values"


def test_one_infinite_number_is_a_note(tmp_path: Path) -> None:
    assert shown(findings(tmp_path, adding(np.float32(-np.inf)))) == [("GO-321", "note")]


def test_a_nan_in_a_body_is_found(tmp_path: Path) -> None:
    def branch(name: str) -> onnx.GraphProto:
        nan = numpy_helper.from_array(np.full(4, np.nan, np.float32), f"nan_{name}")
        return helper.make_graph(
            [helper.make_node("Add", ["x", f"nan_{name}"], [name])], name, [], [value(name)], [nan]
        )

    node = helper.make_node("If", ["c"], ["y"], then_branch=branch("a"), else_branch=branch("b"))
    model = model_of([node], [value("x"), value("c", [], TensorProto.BOOL)])
    assert [found.where for found in findings(tmp_path, model)].count("tensor 'nan_a'") == 1


def test_overridable_initializers(tmp_path: Path) -> None:
    model = adding(np.ones(4, np.float32), inputs=[value("x"), value("w", [4])])
    assert shown(findings(tmp_path, model)) == [("GO-324", "note")]


def test_quantized_already(tmp_path: Path) -> None:
    scale = [numpy_helper.from_array(np.float32(0.1), "s"), numpy_helper.from_array(np.uint8(0), "z")]
    nodes = [
        helper.make_node(f"{op}Linear", [i, "s", "z"], [o], op)
        for op, i, o in (("Quantize", "x", "q"), ("Dequantize", "q", "y"))
    ]
    assert shown(findings(tmp_path, model_of(nodes, initializer=scale))) == [("GO-325", "note")]


def test_an_unknown_domain_is_a_barrier_and_does_not_open(tmp_path: Path) -> None:
    model = model_of([helper.make_node("Foo", ["x"], ["y"], "foo", domain="d")], domains={"d": 1})
    found = findings(tmp_path, model)
    assert shown(found) == [("GO-322", "warning"), ("GO-603", "warning")]
    assert found[0].where == "node 'foo'"
    assert "Foo" in (found[1].why or "")


def test_the_runtimes_own_domain_is_known(tmp_path: Path) -> None:
    model = model_of([helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")], domains={"com.microsoft": 1})
    assert findings(tmp_path, model) == ()


def test_unsorted_nodes_are_noted_and_repeated_names_that_onnxruntime_refuses_warned_of(tmp_path: Path) -> None:
    found = findings(tmp_path, model_of([relu("a", "y", name="same"), relu("x", "a", name="same")]))
    assert shown(found) == [("GO-326", "warning"), ("GO-326", "note")]
    assert {"same", "graph 'g'"} == {finding.where for finding in found}


def test_a_shape_conflict_is_told_with_its_node(tmp_path: Path) -> None:
    found = findings(tmp_path, adding(np.ones(3, np.float32)))
    assert ("GO-307", "warning") in shown(found)
    assert next(f.where for f in found if f.code == "GO-307") == "node 'add'"


def test_an_ir_version_that_the_runtime_does_not_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt.validation.lint.opens_version", lambda *_args, **_named: "too new")
    (found,) = findings(tmp_path, model_of([relu()]))
    assert (found.code, found.severity, found.why) == ("GO-323", "warning", "too new")


def test_zero_size_dimensions(tmp_path: Path) -> None:
    model = model_of([relu()], [value("x", [0, 4])], [value("y", [0, 4])])
    (found,) = findings(tmp_path, model)
    assert (found.code, found.severity, found.where) == ("GO-327", "note", "x, y")


def test_all_errors_are_found_at_once(tmp_path: Path) -> None:
    short = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], raw_data=bytes(4))
    lost = TensorProto(name="v", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    lost.external_data.add(key="location", value="none.bin")
    nan = numpy_helper.from_array(np.full(2, np.nan, np.float32), "n")
    nodes = [relu("nowhere", "a"), relu("x", "a"), helper.make_node("Foo", ["x"], ["y"], "foo")]
    found = findings(tmp_path, model_of(nodes, initializer=[short, lost, nan]))
    assert sorted(f.code for f in found if f.severity == "error") == ["GO-304", "GO-304", "GO-304", "GO-305", "GO-306"]
    assert shown(found)[-1] == ("GO-321", "warning")


def test_a_limit_is_an_error(tmp_path: Path) -> None:
    (found,) = findings(tmp_path, model_of([relu("x", "a"), relu("a", "y")]), Limits(max_nodes=1))
    assert (found.code, found.severity) == ("GO-701", "error")
    assert "max_nodes" in found.what


@pytest.mark.shared
def test_an_unknown_domain_in_a_real_model(shared: Path) -> None:
    found = lint(shared / "models" / "odd" / "unknown_domain.onnx")
    assert shown(found) == [("GO-322", "warning"), ("GO-603", "warning"), ("GO-324", "note")]
