"""Every kind of bad file gets its own error code, and says what to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import GraphoptError, ModelError
from graphopt.model.model import Model

from .probes import PROBES, model_of, relu, value, with_nested_bodies


def refused(path: Path, data: bytes | onnx.ModelProto) -> ModelError:
    path.write_bytes(data if isinstance(data, bytes) else data.SerializeToString())
    with pytest.raises(ModelError) as caught:
        Model.open(path)
    assert str(caught.value) and caught.value.exit_code == 3
    return caught.value


def test_missing_folder_or_forbidden_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.onnx", tmp_path, tmp_path / "none" / "m.onnx"):
        with pytest.raises(ModelError) as caught:
            Model.open(path)
        assert caught.value.code == "GO-301"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"x")
    path.chmod(0)
    with pytest.raises(ModelError) as caught:
        Model.open(path)
    assert caught.value.code == "GO-301"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError) as caught:
        Model.open(tmp_path / "pipe")
    assert caught.value.code == "GO-301"


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(64), "PNG"),
        (b"\xff\xd8\xff\xe0" + bytes(64), "JPEG"),
        (b"PK\x03\x04" + bytes(64), "zip"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "LFS"),
        (b'{"ir_version": 8}', "JSON"),
        (b"once upon a time there was a text file\n" * 9, "text"),
        (b"ORTM" + bytes(64), "onnxruntime"),
        (b"\x93NUMPY\x01\x00" + bytes(64), "numpy"),
        (bytes(64), "ONNX"),
    ],
)
def test_a_file_that_is_something_else_is_named(tmp_path: Path, data: bytes, word: str) -> None:
    error = refused(tmp_path / "m.onnx", data)
    assert error.code == "GO-302"
    assert word in error.what


def test_a_git_lfs_pointer_gets_the_command_that_fetches_it(tmp_path: Path) -> None:
    error = refused(tmp_path / "m.onnx", b"version https://git-lfs.github.com/spec/v1\n")
    assert "git lfs pull" in (error.hint or "")


def test_a_truncated_file_is_incomplete_wherever_it_is_cut(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((64, 4), np.float32), "w")
    data = model_of([helper.make_node("Add", ["x", "w"], ["y"])], initializer=[weight]).SerializeToString()
    codes = {refused(tmp_path / "m.onnx", data[: len(data) * part // 8]).code for part in range(1, 8)}
    assert codes == {"GO-303"}


def no_graph() -> onnx.ModelProto:
    model = model_of([relu()])
    model.ClearField("graph")
    return model


def no_opset() -> onnx.ModelProto:
    model = model_of([relu()])
    del model.opset_import[:]
    return model


def no_ir_version() -> onnx.ModelProto:
    model = model_of([relu()])
    model.ClearField("ir_version")
    return model


def unknown_opset() -> onnx.ModelProto:
    return model_of([relu()], opset=999)


def unknown_ir_version() -> onnx.ModelProto:
    return model_of([relu()], ir_version=999)


def unknown_operator() -> onnx.ModelProto:
    return model_of([helper.make_node("NoSuchThing", ["x"], ["y"], name="here")])


def operator_of_a_later_opset() -> onnx.ModelProto:
    return model_of([helper.make_node("Gelu", ["x"], ["y"], name="here")], opset=17)


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (no_graph, "GO-304"),
        (no_opset, "GO-305"),
        (no_ir_version, "GO-305"),
        (unknown_opset, "GO-305"),
        (unknown_ir_version, "GO-305"),
        (unknown_operator, "GO-305"),
        (operator_of_a_later_opset, "GO-305"),
    ],
)
def test_versions(make: Callable[[], onnx.ModelProto], code: str) -> None:
    with pytest.raises(ModelError) as caught:
        Model.from_proto(make())
    assert caught.value.code == code


def dangling_input() -> onnx.ModelProto:
    return model_of([relu("nowhere", "y")])


def dangling_output() -> onnx.ModelProto:
    return model_of([relu("x", "a")])


def defined_twice() -> onnx.ModelProto:
    return model_of([relu("x", "y"), relu("x", "y")])


def initializer_and_output() -> onnx.ModelProto:
    return model_of([relu("x", "y")], initializer=[numpy_helper.from_array(np.ones(1, np.float32), "y")])


def initializer_twice() -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones(1, np.float32), "w")
    return model_of([relu("x", "y")], initializer=[weight, weight])


def dangling_in_a_body() -> onnx.ModelProto:
    model = with_nested_bodies()
    model.graph.node[1].attribute[0].g.node[0].input[0] = "nowhere"
    return model


def short_weight() -> onnx.ModelProto:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3, 3], raw_data=bytes(4))
    return model_of([helper.make_node("Add", ["x", "w"], ["y"])], initializer=[weight])


def negative_dimension() -> onnx.ModelProto:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[-1], raw_data=bytes(4))
    return model_of([helper.make_node("Add", ["x", "w"], ["y"])], initializer=[weight])


def overflowing_dimensions() -> onnx.ModelProto:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2**62, 2**62], raw_data=bytes(4))
    return model_of([helper.make_node("Add", ["x", "w"], ["y"])], initializer=[weight])


def too_many_typed_values() -> onnx.ModelProto:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], float_data=[1, 2, 3])
    return model_of([helper.make_node("Add", ["x", "w"], ["y"])], initializer=[weight])


def recursive_function() -> onnx.ModelProto:
    model = model_of([helper.make_node("F", ["x"], ["y"], domain="f")], domains={"f": 1})
    body = [helper.make_node("F", ["p"], ["q"], domain="f")]
    model.functions.append(helper.make_function("f", "F", ["p"], ["q"], body, [helper.make_opsetid("f", 1)]))
    return model


def sparse_index_out_of_range() -> onnx.ModelProto:
    values = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    sparse = helper.make_sparse_tensor(values, helper.make_tensor("i", TensorProto.INT64, [1], [9]), [4])
    return model_of([helper.make_node("Add", ["x", "w"], ["y"])], sparse_initializer=[sparse])


def text_that_is_not_utf8() -> onnx.ModelProto:
    data = model_of([relu("x", "y", name="MARK")]).SerializeToString().replace(b"MARK", b"MA\xffK")
    return onnx.ModelProto.FromString(data)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (dangling_input, "nowhere"),
        (dangling_output, "'y'"),
        (defined_twice, "'y'"),
        (initializer_and_output, "'y'"),
        (initializer_twice, "'w'"),
        (dangling_in_a_body, "nowhere"),
        (short_weight, "'w'"),
        (negative_dimension, "'w'"),
        (overflowing_dimensions, "'w'"),
        (too_many_typed_values, "'w'"),
        (recursive_function, "F -> F"),
        (sparse_index_out_of_range, "'w'"),
        (text_that_is_not_utf8, "UTF-8"),
    ],
)
def test_malformed_models_are_refused_by_name(make: Callable[[], onnx.ModelProto], names: str) -> None:
    with pytest.raises(ModelError) as caught:
        Model.from_proto(make())
    assert caught.value.code == "GO-304"
    assert names in str(caught.value)


def test_the_sizes_of_a_short_weight_are_told() -> None:
    with pytest.raises(ModelError, match="holds 4 bytes, 36 are needed"):
        Model.from_proto(short_weight())


def test_a_cycle_is_told_with_its_path() -> None:
    nodes = [
        helper.make_node("Add", ["x", "c"], ["a"], name="first"),
        relu("a", "b", name="second"),
        relu("b", "c", name="third"),
        relu("c", "y", name="last"),
    ]
    with pytest.raises(ModelError) as caught:
        Model.from_proto(model_of(nodes))
    path = str(caught.value.where).split(" -> ")
    assert path[0] == path[-1] and set(path) == {"first", "second", "third"}


def test_a_cycle_of_a_thousand_nodes_needs_no_deep_stack() -> None:
    nodes = [relu(f"t{(i + 1) % 5000}", f"t{i}") for i in range(5000)]
    with pytest.raises(ModelError, match="cycle"):
        Model.from_proto(model_of([*nodes, relu("t0", "y")]))


def test_unsorted_nodes_are_sorted_and_noted() -> None:
    model = Model.from_proto(model_of([relu("a", "y", name="2"), relu("x", "a", name="1")]))
    assert [node.name for node in model.editor.nodes()] == ["1", "2"]
    assert any("sorted" in note for note in model.notes)


def test_the_alias_of_the_standard_domain_is_normalised() -> None:
    source = model_of([helper.make_node("Relu", ["x"], ["y"], domain="ai.onnx")])
    source.opset_import[0].domain = "ai.onnx"
    model = Model.from_proto(source)
    written = model.to_proto()
    assert [(e.domain, e.version) for e in written.opset_import] == [("", 21)]
    assert written.graph.node[0].domain == ""
    assert source.opset_import[0].domain == "ai.onnx"
    assert model.opset == 21


def test_equal_opsets_under_both_spellings_are_one() -> None:
    source = model_of([relu()])
    source.opset_import.add(domain="ai.onnx", version=21)
    assert [(e.domain, e.version) for e in Model.from_proto(source).to_proto().opset_import] == [("", 21)]


def test_a_list_of_graphs_cannot_be_carried() -> None:
    node = helper.make_node("Foo", ["x"], ["y"], domain="d")
    body = helper.make_graph([relu("x", "z")], "b", [], [value("z")])
    node.attribute.add(name="bodies", type=onnx.AttributeProto.GRAPHS).graphs.append(body)
    with pytest.raises(ModelError) as caught:
        Model.from_proto(model_of([node], domains={"d": 1}))
    assert caught.value.code == "GO-308"


def test_mutated_bytes_raise_nothing_but_our_own_errors(tmp_path: Path) -> None:
    """Single flipped bits, replaced and dropped bytes in the headers of every probe (seeded)."""
    random = np.random.default_rng(0)
    sources = [probe().SerializeToString() for probe in PROBES]
    path = tmp_path / "m.onnx"
    opened = 0
    for _ in range(400):
        data = bytearray(sources[random.integers(len(sources))])
        at = int(random.integers(len(data)))
        kind = int(random.integers(3))
        if kind == 0:
            data[at] ^= 1 << int(random.integers(8))
        elif kind == 1:
            data[at] = int(random.integers(256))
        else:
            del data[at : at + int(random.integers(1, 5))]
        path.write_bytes(data)
        try:
            model = Model.open(path)
            model.clone().finish()
            model.to_proto()
            opened += 1
        except GraphoptError:
            continue
    assert 20 < opened < 380
