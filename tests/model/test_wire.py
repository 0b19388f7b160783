"""Weights are left in a file, and written from where they are, byte for byte as protobuf would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import ModelError
from graphopt.model import load
from graphopt.model.mapping import place_of
from graphopt.model.model import Model
from graphopt.model.wire import lift, splice

from .probes import PROBES, model_of, value

WEIGHT = np.arange(512, dtype=np.float32).reshape(2, 256)
SHAPE = [2, 256]


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of any size are mapped, and tensors of any size stay in them."""
    monkeypatch.setattr(load, "MAPPED_ABOVE", 0)
    monkeypatch.setattr(load, "LIFTED_ABOVE", 1)


def everywhere() -> onnx.ModelProto:
    """The same weight as an initializer, a Constant node's value, and in both branches of an If."""
    weight = numpy_helper.from_array(WEIGHT, "w")
    weight.doc_string = "kept"

    def branch(name: str) -> onnx.GraphProto:
        held = numpy_helper.from_array(WEIGHT, f"w_{name}")
        node = helper.make_node("Add", ["a", f"w_{name}"], [name])
        return helper.make_graph([node], name, [], [value(name, SHAPE)], [held])

    nodes = [
        helper.make_node("Add", ["x", "w"], ["a"]),
        helper.make_node("If", ["flag"], ["b"], then_branch=branch("t"), else_branch=branch("e")),
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(WEIGHT)),
        helper.make_node("Add", ["b", "c"], ["y"]),
    ]
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    return model_of(nodes, [value("x", SHAPE), flag], [value("y", SHAPE)], initializer=[weight])


def test_weights_stay_in_a_large_file_and_everything_survives(tmp_path: Path, mapped: None) -> None:
    proto = everywhere()
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString(deterministic=True))
    model = Model.open(path)
    constant = next(node for node in model.editor.nodes() if node.op == "Constant")
    arrays = [*model.skeleton()[1].values(), constant.attrs["value"].values]
    places = [place_of(array) for array in arrays]
    assert len(places) == 2
    for array, place in zip(arrays, places, strict=True):
        assert place is not None and place.map.path == path.resolve()
        assert path.read_bytes()[place.offset : place.offset + place.length] == WEIGHT.tobytes()
        assert not array.flags.writeable
    assert model.to_proto() == proto
    model.save(tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == path.read_bytes()


def test_an_open_file_may_be_replaced(tmp_path: Path, mapped: None) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(everywhere().SerializeToString())
    model = Model.open(path)
    before = model.fingerprint()
    model.clone().save(path, overwrite=True)
    assert model.fingerprint() == before == Model.open(path).fingerprint()


def test_small_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(everywhere().SerializeToString())
    assert place_of(Model.open(path).skeleton()[1]["w"]) is None


@pytest.mark.parametrize("make", PROBES, ids=lambda p: p.__name__)
def test_every_kind_of_model_is_the_same_mapped_or_read(
    make: Callable[[], onnx.ModelProto], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(make().SerializeToString())
    read = _opened(path)
    monkeypatch.setattr(load, "MAPPED_ABOVE", 0)
    monkeypatch.setattr(load, "LIFTED_ABOVE", 1)
    assert _opened(path) == read


def _opened(path: Path) -> onnx.ModelProto | str:
    try:
        return Model.open(path).to_proto()
    except ModelError as error:
        return str(error)


@pytest.mark.parametrize("cut", [1, 100, 1000, 2000])
def test_a_mapped_file_that_is_cut_off_is_incomplete(tmp_path: Path, mapped: None, cut: int) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(everywhere().SerializeToString()[:-cut])
    with pytest.raises(ModelError) as caught:
        Model.open(path)
    assert caught.value.code == "GO-303"


def test_wrong_lengths_are_malformed_whether_mapped_or_not(tmp_path: Path, mapped: None) -> None:
    proto = everywhere()
    proto.graph.initializer[0].raw_data = b"\0" * 2044
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError) as caught:
        Model.open(tmp_path / "m.onnx")
    assert caught.value.code == "GO-304" and "2044 bytes" in str(caught.value)


def test_lifting_leaves_the_rest_byte_for_byte() -> None:
    proto = everywhere()
    data = proto.SerializeToString()
    skeleton = lift(memoryview(data), "here", 1024)
    assert skeleton is not None and len(skeleton) < len(data) - 4 * 1900
    found = onnx.ModelProto.FromString(skeleton)
    stub = found.graph.initializer[0]
    fields = {entry.key: entry.value for entry in stub.external_data}
    assert fields["location"] == "here" and stub.doc_string == "kept"
    start = int(fields["offset"])
    assert data[start : start + int(fields["length"])] == WEIGHT.tobytes()
    assert lift(memoryview(data), "here", 1 << 20) == data


@pytest.mark.parametrize("data", [b"\xff" * 20, b"\x3a\x05ab", b"\x0b", b"\x3a" + b"\x80" * 12])
def test_what_is_no_protobuf_is_left_to_protobuf(data: bytes) -> None:
    assert lift(memoryview(data), "here", 0) is None


def test_nesting_without_end_is_left_to_protobuf() -> None:
    inner = b""
    for _ in range(200):
        body = b"\x32" + _varint(len(inner)) + inner  # AttributeProto.g
        node = b"\x2a" + _varint(len(body)) + body  # NodeProto.attribute
        inner = b"\x0a" + _varint(len(node)) + node  # GraphProto.node
    assert lift(memoryview(b"\x3a" + _varint(len(inner)) + inner), "here", 0) is None


def _varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def test_splicing_gives_what_protobuf_would_write() -> None:
    proto = everywhere()
    whole = proto.SerializeToString(deterministic=True)
    proto.graph.initializer[0].raw_data = b""
    pieces = splice(proto.SerializeToString(deterministic=True), {"w": WEIGHT})
    assert b"".join(p.tobytes() if isinstance(p, np.ndarray) else bytes(p) for p in pieces) == whole
    model = Model.from_proto(everywhere())
    assert model.file_size == len(whole)


def test_unaligned_weights_compute_the_same(tmp_path: Path, mapped: None) -> None:
    proto = everywhere()
    for pad in range(4):
        proto.producer_name = "p" * (1 + pad)
        path = tmp_path / f"m{pad}.onnx"
        path.write_bytes(proto.SerializeToString())
        array = Model.open(path).skeleton()[1]["w"]
        np.testing.assert_array_equal(np.abs(array), WEIGHT)
    feed = {"x": np.ones(SHAPE, np.float32), "flag": np.array(True)}
    outputs = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feed)
    np.testing.assert_array_equal(outputs[0], 1 + 3 * WEIGHT)


def test_a_weight_with_a_long_description_keeps_its_values(tmp_path: Path) -> None:
    held = numpy_helper.from_array(WEIGHT, "w")
    held.doc_string = "d" * (2 << 20)
    node = helper.make_node("Add", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", [value("x", SHAPE)], [value("y", SHAPE)], [held])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    Model.from_proto(proto).save(tmp_path / "out.onnx")
    assert onnx.load(tmp_path / "out.onnx").graph.initializer[0] == held
