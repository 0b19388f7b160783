"""Weights that were external data stay external: sharing, alignment and values kept, the rest inside the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import GraphoptError
from graphopt.model import save
from graphopt.model.limits import Limits
from graphopt.model.model import Model
from graphopt.runtime.session import open_session

from .probes import model_of, value

SIZE = 64


def matrix(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((SIZE, SIZE)).astype(np.float32)


def places(path: Path) -> dict[str, tuple[str, int, int]]:
    """Location, offset and length of each external tensor."""
    found = {}
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            fields = {entry.key: entry.value for entry in tensor.external_data}
            found[tensor.name] = (fields["location"], int(fields["offset"]), int(fields["length"]))
    return found


def source(folder: Path, offsets: dict[str, int], inline: dict[str, np.ndarray] | None = None) -> Path:
    """A chain of MatMuls; weights at ``offsets`` in weights.bin (equal offsets: one matrix), others inside."""
    folder.mkdir(exist_ok=True)
    matrices = {offset: matrix(i) for i, offset in enumerate(sorted(set(offsets.values())))}
    data = bytearray(max(offsets.values(), default=0) + 4 * SIZE * SIZE)
    for offset, array in matrices.items():
        data[offset : offset + array.nbytes] = array.tobytes()
    (folder / "weights.bin").write_bytes(data)
    tensors, nodes = [], []
    for i, name in enumerate([*offsets, *(inline or {})]):
        if name in offsets:
            tensor = TensorProto(name=name, data_type=1, dims=[SIZE, SIZE], data_location=TensorProto.EXTERNAL)
            length = 4 * SIZE * SIZE
            for key, entry in (("location", "weights.bin"), ("offset", offsets[name]), ("length", length)):
                tensor.external_data.add(key=key, value=str(entry))
        else:
            tensor = numpy_helper.from_array((inline or {})[name], name)
        tensors.append(tensor)
        nodes.append(helper.make_node("MatMul", [f"x{i}", name], [f"x{i + 1}"]))
    ends = [value("x0", [1, SIZE])], [value(f"x{len(nodes)}", [1, SIZE])]
    path = folder / "m.onnx"
    path.write_bytes(model_of(nodes, *ends, initializer=tensors).SerializeToString())
    return path


def outputs(path: Path) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"x0": np.full((1, SIZE), 0.01, np.float32)})[0]
    return found


def test_what_was_external_stays_external_and_what_was_inside_stays_inside(tmp_path: Path) -> None:
    path = source(tmp_path / "in", {"a": 0, "b": 16384}, {"c": matrix(7)})
    target = tmp_path / "out.onnx"
    Model.open(path).save(target)
    found = places(target)
    assert set(found) == {"a", "b"}
    (location,) = {place[0] for place in found.values()}
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["out.onnx", location]
    onnx.checker.check_model(target)
    np.testing.assert_array_equal(outputs(target), outputs(path))
    assert Model.open(target).fingerprint() == Model.open(path).fingerprint()


def test_shared_bytes_stay_shared(tmp_path: Path) -> None:
    path = source(tmp_path / "in", {"a": 0, "b": 16384, "tied": 0})
    target = tmp_path / "out.onnx"
    model = Model.open(path)
    model.save(target)
    found = places(target)
    assert found["a"] == found["tied"] != found["b"]
    assert (tmp_path / found["a"][0]).stat().st_size == 2 * 16384
    assert model.file_size == sum(p.stat().st_size for p in tmp_path.iterdir() if p.is_file()) - _longer_names(target)


def _longer_names(target: Path) -> int:
    """What locations, offsets and lengths take in the model file, beyond those of a stub."""
    whole = onnx.load(target, load_external_data=False)
    before = whole.ByteSize()
    for tensor in whole.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            del tensor.external_data[:]
            tensor.external_data.add(key="location", value="__graphopt__")
    return before - whole.ByteSize()


@pytest.mark.parametrize("fill", [(3.0, 3.0), (3.0, 4.0)])
def test_replaced_weights_are_shared_where_they_are_still_equal(tmp_path: Path, fill: tuple[float, float]) -> None:
    model = Model.open(source(tmp_path / "in", {"a": 0, "tied": 0}))
    for node, number in zip(model.editor.nodes(), fill, strict=True):
        model.editor.set_constant(node, 1, np.full((SIZE, SIZE), number, np.float32))
    model.finish()
    model.save(tmp_path / "out.onnx")
    found = places(tmp_path / "out.onnx")
    assert (found["a"] == found["tied"]) == (fill[0] == fill[1])
    tensors = onnx.load(tmp_path / "out.onnx").graph.initializer
    assert [numpy_helper.to_array(t)[0, 0] for t in tensors] == list(fill)


@pytest.mark.parametrize(("offset", "step"), [(65536, 65536), (16384, 16384), (16384 + 64, 4096), (3 * 65536, 65536)])
def test_alignment_is_kept_and_is_a_page_at_least(tmp_path: Path, offset: int, step: int) -> None:
    path = source(tmp_path / "in", {"a": 0, "b": offset})
    Model.open(path).save(tmp_path / "out.onnx")
    assert places(tmp_path / "out.onnx")["b"][1] % step == 0


def test_unaligned_external_data_is_read_and_aligned(tmp_path: Path) -> None:
    path = source(tmp_path / "in", {"a": 1, "b": 16389})
    Model.open(path).save(tmp_path / "out.onnx")
    assert {offset % 4096 for _, offset, _ in places(tmp_path / "out.onnx").values()} == {0}
    np.testing.assert_array_equal(outputs(tmp_path / "out.onnx"), outputs(path))


def test_a_new_large_weight_joins_them_and_a_small_one_does_not(tmp_path: Path) -> None:
    model = Model.open(source(tmp_path / "in", {"a": 0}))
    editor = model.editor
    (node,) = editor.nodes()
    out = editor.add_node("MatMul", [node.inputs[0], editor.add_constant("large", matrix(3))]).outputs[0]
    out = editor.add_node("Add", [out, editor.add_constant("small", np.ones(SIZE, np.float32))]).outputs[0]
    editor.set_input(node, 0, out)
    model.finish()
    model.save(tmp_path / "out.onnx")
    assert set(places(tmp_path / "out.onnx")) == {"a", "large"}


def test_above_the_limit_all_large_weights_are_external(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = source(tmp_path / "in", {"a": 0}, {"c": matrix(7)})
    monkeypatch.setattr(save, "EXTERNAL_LIMIT", 1024)
    Model.open(path).save(tmp_path / "out.onnx")
    assert set(places(tmp_path / "out.onnx")) == {"a", "c"}
    np.testing.assert_array_equal(outputs(tmp_path / "out.onnx"), outputs(path))


def test_small_external_tensors_stay_external_and_close_together(tmp_path: Path) -> None:
    count = 50
    tensors = []
    for i in range(count):
        tensor = TensorProto(name=f"b{i}", data_type=1, dims=[SIZE], data_location=TensorProto.EXTERNAL)
        for key, entry in (("location", "weights.bin"), ("offset", 256 * i), ("length", 256)):
            tensor.external_data.add(key=key, value=str(entry))
        tensors.append(tensor)
    nodes = [helper.make_node("Add", [f"x{i}", f"b{i}"], [f"x{i + 1}"]) for i in range(count)]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "weights.bin").write_bytes(np.arange(SIZE * count, dtype=np.float32).tobytes())
    ends = [value("x0", [1, SIZE])], [value(f"x{count}", [1, SIZE])]
    (tmp_path / "in" / "m.onnx").write_bytes(model_of(nodes, *ends, initializer=tensors).SerializeToString())
    Model.open(tmp_path / "in" / "m.onnx").save(tmp_path / "out.onnx")
    found = places(tmp_path / "out.onnx")
    assert len(found) == count
    # Each keeps its alignment, a few of them that of a page.
    assert (tmp_path / found["b0"][0]).stat().st_size < 4 * 256 * count
    np.testing.assert_array_equal(outputs(tmp_path / "out.onnx"), outputs(tmp_path / "in" / "m.onnx"))


def test_saving_over_the_source_keeps_the_data(tmp_path: Path) -> None:
    path = source(tmp_path / "in", {"a": 0, "b": 16384})
    expected = outputs(path)
    model = Model.open(path)
    model.save(path, overwrite=True)
    again = Model.open(path)
    again.save(path, overwrite=True)
    np.testing.assert_array_equal(outputs(path), expected)
    assert Model.open(path).fingerprint() == model.fingerprint()


def in_file(folder: Path, name: str, array: np.ndarray) -> TensorProto:
    """A tensor whose bytes lie in a file of its own."""
    (folder / f"{name}.bin").write_bytes(array.tobytes())
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor = TensorProto(name=name, data_type=kind, dims=array.shape, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=f"{name}.bin")
    return tensor


def in_attributes(folder: Path) -> dict[str, onnx.ModelProto]:
    """x0 times a matrix that a node attribute keeps in a data file: in the graph, in a body, sparse, in a function."""
    folder.mkdir(exist_ok=True)
    constant = helper.make_node("Constant", [], ["w"], value=in_file(folder, "w", matrix(0)))
    multiply = helper.make_node("MatMul", ["x0", "w"], ["x1"])
    ends = [value("x0", [1, SIZE])], [value("x1", [1, SIZE])]
    body = helper.make_graph([constant, multiply], "body", [], ends[1])
    flag = numpy_helper.from_array(np.array(True), "flag")
    choice = helper.make_node("If", ["flag"], ["x1"], then_branch=body, else_branch=body)
    index = np.arange(SIZE * SIZE, dtype=np.int64)
    sparse = onnx.SparseTensorProto(
        values=in_file(folder, "s", matrix(0).reshape(-1)), indices=in_file(folder, "i", index), dims=[SIZE, SIZE]
    )
    expanded = helper.make_node("Constant", [], ["w"], sparse_value=sparse)
    function = helper.make_function("d", "F", ["x0"], ["x1"], [constant, multiply], [helper.make_opsetid("", 21)])
    calling = model_of([helper.make_node("F", ["x0"], ["x1"], domain="d")], *ends, domains={"d": 1})
    calling.functions.append(function)
    return {
        "node": model_of([constant, multiply], *ends),
        "body": model_of([choice], *ends, initializer=[flag]),
        "sparse": model_of([expanded, multiply], *ends),
        "function": calling,
    }


@pytest.mark.parametrize("kind", ["node", "body", "sparse", "function"])
@pytest.mark.parametrize("beside", [False, True])
def test_external_data_of_attributes_goes_into_the_model_file(tmp_path: Path, kind: str, beside: bool) -> None:
    """onnxruntime looked for it in the current directory."""
    folder = tmp_path / "in"
    path = folder / "m.onnx"
    proto = in_attributes(folder)[kind]
    path.write_bytes(proto.SerializeToString())
    expected = np.full((1, SIZE), 0.01, np.float32) @ matrix(0)
    model = Model.open(path)
    found = open_session(model).run({"x0": np.full((1, SIZE), 0.01, np.float32)})["x1"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    target = folder / "out.onnx" if beside else tmp_path / "out.onnx"
    model.save(target)
    assert list(target.parent.glob("*.data")) == []
    assert target.stat().st_size == model.file_size > 4 * SIZE * SIZE
    np.testing.assert_allclose(outputs(target), expected, rtol=1e-5)
    again = Model.open(target)
    assert again.fingerprint() == model.fingerprint()
    again.save(target, overwrite=True)
    assert target.read_bytes() == again.to_proto().SerializeToString(deterministic=True)


@pytest.mark.parametrize("kind", ["node", "body", "sparse", "function"])
def test_external_data_of_attributes_is_read_as_carefully_as_that_of_weights(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "in" / "m.onnx"
    path.parent.mkdir()
    path.write_bytes(in_attributes(path.parent)[kind].SerializeToString())
    with pytest.raises(GraphoptError) as caught:
        Model.open(path, Limits(max_tensor_bytes=4 * SIZE * SIZE - 1))
    assert caught.value.code == "GO-701"
    name = "s.bin" if kind == "sparse" else "w.bin"
    (path.parent / name).rename(tmp_path / name)
    (path.parent / name).symlink_to(tmp_path / name)
    with pytest.raises(GraphoptError) as caught:
        Model.open(path)
    assert caught.value.code == "GO-306"
