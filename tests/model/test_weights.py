"""Weights: read-only, mapped, and external data only where it is safe."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import ModelError
from graphopt.model import dtypes
from graphopt.model.arrays import frozen, stored_bytes, stored_size
from graphopt.model.model import Model

from .probes import model_of, with_every_element_type

WEIGHT = np.arange(512, dtype=np.float32).reshape(2, 256)


def external_model(folder: Path, fields: dict[str, str], data: bytes = WEIGHT.tobytes()) -> Path:
    """y = x + w with w in ``w.bin``; ``fields`` are its external data entries."""
    folder.mkdir(exist_ok=True)
    (folder / "w.bin").write_bytes(data)
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=WEIGHT.shape, data_location=TensorProto.EXTERNAL)
    for key, entry in fields.items():
        weight.external_data.add(key=key, value=entry)
    shape = list(WEIGHT.shape)
    made = model_of(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        initializer=[weight],
    )
    (folder / "m.onnx").write_bytes(made.SerializeToString())
    return folder / "m.onnx"


def weight_of(model: Model) -> np.ndarray:
    value = model.editor.constant(model.editor.nodes()[0].inputs[1])
    assert value is not None
    return value


def refusal(path: Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        Model.open(path)
    assert caught.value.code == "GO-306"
    assert "'w'" in str(caught.value.where)
    return caught.value


@pytest.mark.parametrize("fields", [{}, {"offset": "0", "length": "2048"}, {"length": "2048"}, {"offset": "0"}])
def test_external_data_is_mapped(tmp_path: Path, fields: dict[str, str]) -> None:
    path = external_model(tmp_path / "m", {"location": "w.bin", **fields})
    array = weight_of(Model.open(path))
    np.testing.assert_array_equal(array, WEIGHT)
    assert not array.flags.writeable and not array.flags.owndata
    assert Model.open(path).to_proto().graph.initializer[0].raw_data == WEIGHT.tobytes()


def test_external_data_is_found_from_any_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    external_model(tmp_path / "m", {"location": "w.bin"})
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(weight_of(Model.open("m/m.onnx")), WEIGHT)
    monkeypatch.chdir(tmp_path / "m")
    np.testing.assert_array_equal(weight_of(Model.open("m.onnx")), WEIGHT)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"location": "missing.bin"}, "missing.bin"),
        ({}, "missing"),
        ({"location": "w.bin", "offset": "8"}, "the file has 2048"),
        ({"location": "w.bin", "offset": "-8"}, "the file has 2048"),
        ({"location": "w.bin", "length": "4"}, "2048 are needed"),
        ({"location": "w.bin", "length": str(2**62)}, "2048 are needed"),
        ({"location": "w.bin", "offset": str(2**80)}, "the file has 2048"),
        ({"location": "w.bin", "offset": "many"}, "not a number"),
    ],
)
def test_ranges_outside_the_file_are_refused(tmp_path: Path, fields: dict[str, str], words: str) -> None:
    assert words in str(refusal(external_model(tmp_path / "m", fields)))


@pytest.mark.parametrize("location", ["../secret.bin", "a/../../secret.bin", "sub/../../secret.bin"])
def test_parent_folders_are_refused(tmp_path: Path, location: str) -> None:
    """CVE-2022-25882 and its incomplete fix CVE-2024-27318."""
    (tmp_path / "secret.bin").write_bytes(WEIGHT.tobytes())
    (tmp_path / "m" / "sub").mkdir(parents=True)
    refusal(external_model(tmp_path / "m", {"location": location}))


def test_absolute_paths_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(WEIGHT.tobytes())
    refusal(external_model(tmp_path / "m", {"location": str(tmp_path / "secret.bin")}))


def test_symbolic_links_are_refused(tmp_path: Path) -> None:
    """CVE-2026-27489, CVE-2026-34447: the file itself, and a folder on the way."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "secret.bin").write_bytes(WEIGHT.tobytes())
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "link.bin").symlink_to(tmp_path / "out" / "secret.bin")
    (tmp_path / "m" / "folder").symlink_to(tmp_path / "out")
    refusal(external_model(tmp_path / "m", {"location": "link.bin"}))
    refusal(external_model(tmp_path / "m", {"location": "folder/secret.bin"}))


def test_hard_links_are_refused(tmp_path: Path) -> None:
    """CVE-2026-34446."""
    (tmp_path / "secret.bin").write_bytes(WEIGHT.tobytes())
    (tmp_path / "m").mkdir()
    os.link(tmp_path / "secret.bin", tmp_path / "m" / "hard.bin")
    refusal(external_model(tmp_path / "m", {"location": "hard.bin"}))


def test_unknown_external_keys_set_nothing(tmp_path: Path) -> None:
    """CVE-2026-34445: keys of the file became attributes of an object."""
    fields = {"location": "w.bin", "__class__": "x", "read": "x", "checksum": "x"}
    np.testing.assert_array_equal(weight_of(Model.open(external_model(tmp_path / "m", fields))), WEIGHT)


def test_a_model_in_memory_has_no_external_data(tmp_path: Path) -> None:
    path = external_model(tmp_path / "m", {"location": "w.bin"})
    with pytest.raises(ModelError) as caught:
        Model.from_proto(onnx.load(path, load_external_data=False))
    assert caught.value.code == "GO-306"


def test_weights_of_an_inline_model_are_not_copied_by_a_clone() -> None:
    weight = numpy_helper.from_array(WEIGHT, "w")
    shape = list(WEIGHT.shape)
    model = Model.from_proto(
        model_of(
            [helper.make_node("Add", ["x", "w"], ["y"])],
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
            initializer=[weight],
        )
    )
    assert weight_of(model.clone()) is weight_of(model)
    proto, arrays = model.skeleton()
    assert arrays["w"] is weight_of(model)
    assert proto.ByteSize() < 400


def test_replaced_values_of_every_type_are_written_as_they_are() -> None:
    """New arrays of each element type: fp8 fnuz, 4-bit and strings came out wrong or not at all in plain gs."""
    model = Model.from_proto(with_every_element_type())
    expected = {}
    for node in model.editor.nodes():
        old = model.editor.constant(node.inputs[0])
        assert old is not None
        fresh = np.array(["x", "yé"], object) if old.dtype == object else np.array([1, 0, 1]).astype(old.dtype)
        expected[node.inputs[0].name] = fresh
        model.editor.set_constant(node, 0, fresh)
    model.finish()
    written = {t.name: t for t in model.to_proto().graph.initializer}
    for name, array in expected.items():
        assert dtypes.onnx_of(array.dtype) == TensorProto.DataType.Value(name)
        assert written[name].data_type == TensorProto.DataType.Value(name)
        if array.dtype == object:
            assert list(written[name].string_data) == [text.encode() for text in array]
        else:
            assert written[name].raw_data == stored_bytes(array)
            assert numpy_helper.to_array(written[name]).tobytes() == array.tobytes()


@pytest.mark.parametrize(("name", "size"), [("INT4", 3), ("UINT2", 2), ("BFLOAT16", 10), ("FLOAT8E5M2FNUZ", 5)])
def test_stored_sizes_are_packed(name: str, size: int) -> None:
    dtype = dtypes.numpy_of(TensorProto.DataType.Value(name))
    array = frozen(np.ones(5, dtype))
    assert stored_size(array) == size == len(stored_bytes(array))


def test_sparse_initializers_are_seen_dense_and_written_sparse_until_replaced() -> None:
    values = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [2, 2], [0, 1, 1, 2])
    sparse = helper.make_sparse_tensor(values, indices, [2, 3])
    shape = [2, 3]
    source = model_of(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        sparse_initializer=[sparse],
    )
    model = Model.from_proto(source)
    np.testing.assert_array_equal(weight_of(model), [[0, 1, 0], [0, 0, 2]])
    assert len(model.to_proto().graph.sparse_initializer) == 1
    model.editor.set_constant(model.editor.nodes()[0], 1, np.ones((2, 3), np.float32))
    model.finish()
    assert len(model.to_proto().graph.sparse_initializer) == 0
    assert [t.name for t in model.to_proto().graph.initializer] == ["w"]


def test_a_huge_sparse_tensor_is_refused_before_it_is_expanded() -> None:
    values = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    source = model_of(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        sparse_initializer=[helper.make_sparse_tensor(values, indices, [2**40])],
    )
    with pytest.raises(ModelError) as caught:
        Model.from_proto(source)
    assert caught.value.code == "GO-308"
