"""Sessions that only check leave large weights in their files, and compute what other sessions do."""

from __future__ import annotations

import gc
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.model.model import Model
from graphopt.model.store import WeightStore
from graphopt.runtime import light, session
from graphopt.runtime.session import open_session
from graphopt.testing.draft import Draft

SIZE = 160


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "LIGHT_ABOVE", 0)


def chain(layers: int = 3) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    draft = Draft()
    x = draft.input("x", [1, SIZE], TensorProto.FLOAT)
    for i in range(layers):
        weight = rng.standard_normal((SIZE, SIZE)).astype(np.float32) / 12
        x = draft.node("MatMul", [x, draft.const(f"w{i}", weight)], "y" if i == layers - 1 else f"h{i}")
    draft.output("y", [1, SIZE], TensorProto.FLOAT)
    return draft.model("chain")


def external(folder: Path) -> Path:
    proto = chain()
    path = folder / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


FEED = {"x": np.linspace(-1, 1, SIZE, dtype=np.float32)[None]}


def ran(model: Model, **words: object) -> np.ndarray:
    return open_session(model, **words).run(FEED)["y"]  # type: ignore[arg-type]


@pytest.mark.parametrize("level", ["none", "all"])
@pytest.mark.parametrize("edited", [False, True])
def test_it_computes_what_a_session_with_the_weights_in_memory_does(tmp_path: Path, level: str, edited: bool) -> None:
    model = Model.of(external(tmp_path), store=WeightStore(0))
    if edited:
        node = model.editor.nodes()[1]
        model.editor.set_constant(node, 1, np.array(model.editor.constant(node.inputs[1])) * 2)
        model.finish()
    config = {"session.disable_prepacking": "1"}
    expected = open_session(model, optimization=level, config=config).run(FEED)["y"]  # type: ignore[arg-type]
    np.testing.assert_array_equal(ran(model, optimization=level, light=True), expected)
    np.testing.assert_allclose(ran(model, optimization=level), expected, rtol=1e-5, atol=1e-6)


def taken(model: Model) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """What lies in no file, and the location of what does."""
    skeleton, weights = model.skeleton()
    proto = onnx.ModelProto()
    proto.CopyFrom(skeleton)
    rest, _ = light.leave_in_files(proto, weights, model.store, ort.SessionOptions())
    found = {t.name: t.external_data[0].value for t in proto.graph.initializer if len(t.external_data) > 1}
    return rest, found


def test_weights_are_named_where_they_are(tmp_path: Path) -> None:
    rest, found = taken(Model.open(external(tmp_path)))
    assert rest == {}
    assert {f"/{place}" for place in found.values()} == {str((tmp_path / "weights.bin").resolve())}


def test_weights_in_memory_are_put_into_a_file_once(tmp_path: Path) -> None:
    model = Model.from_proto(chain())
    rest, first = taken(model)
    assert rest == {} and len(set(first.values())) == 3
    assert taken(model.clone())[1] == first
    np.testing.assert_array_equal(ran(model, light=True), ran(model, light=True))
    files = [Path("/", place) for place in first.values()]
    assert all(file.exists() for file in files)
    del model, rest
    gc.collect()
    assert not any(file.exists() for file in files)


def test_a_large_weight_that_nothing_reads_is_left_out() -> None:
    proto = chain()
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((SIZE, SIZE), np.float32), "unread"))
    np.testing.assert_array_equal(ran(Model.from_proto(proto), light=True), ran(Model.from_proto(chain()), light=True))


def test_a_source_that_was_replaced_meanwhile_is_not_read_from_its_path(tmp_path: Path) -> None:
    path = external(tmp_path)
    model = Model.open(path)
    expected = ran(model, light=True)
    zeros = tmp_path / "zeros"
    zeros.write_bytes(bytes((tmp_path / "weights.bin").stat().st_size))
    zeros.replace(tmp_path / "weights.bin")
    np.testing.assert_array_equal(ran(model, light=True), expected)


def test_packed_types_and_small_weights_are_handed_over() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["four", "scale"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "int4",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1 << 18])],
        [
            helper.make_tensor("four", TensorProto.INT4, [2, 1 << 18], bytes(1 << 18), raw=True),
            numpy_helper.from_array(np.full(256, 0.5, np.float32), "unused"),
            numpy_helper.from_array(np.float32(0.5), "scale"),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    rest, found = taken(Model.from_proto(proto))
    assert set(rest) == {"four"} and found == {}


def test_bodies_and_half_types_work(tmp_path: Path) -> None:
    weight = np.full((SIZE, SIZE), 0.5, np.float16)
    node = helper.make_node("MatMul", ["x", "w"], ["t"])
    output = helper.make_tensor_value_info("t", TensorProto.FLOAT16, [1, SIZE])
    then = helper.make_graph([node], "then", [], [output])
    node = helper.make_node("Identity", ["x"], ["e"])
    output = helper.make_tensor_value_info("e", TensorProto.FLOAT16, [1, SIZE])
    other = helper.make_graph([node], "else", [], [output])
    choice = helper.make_node("If", ["flag"], ["y"], then_branch=then, else_branch=other)
    graph = helper.make_graph(
        [choice],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1, SIZE]),
            helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, [1, SIZE])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    feed = {"x": np.ones((1, SIZE), np.float16), "flag": np.array(True)}
    np.testing.assert_array_equal(open_session(model, light=True).run(feed)["y"], np.full((1, SIZE), SIZE / 2))


def test_mapped_weights_do_not_count_towards_a_limit_on_the_process(tmp_path: Path) -> None:
    """In a process of its own: less room than the weights take, but for the files they are mapped from."""
    script = (
        "import resource, sys, numpy as np\n"
        "from graphopt.model.model import Model\n"
        "from graphopt.runtime import session\n"
        "session.LIGHT_ABOVE = 0\n"
        "model = Model.open(sys.argv[1])\n"
        "session.open_session(model, light=True)\n"
        "used = next(int(l.split()[1]) << 10 for l in open('/proc/self/status') if l.startswith('VmData'))\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (used + (16 << 20), resource.RLIM_INFINITY))\n"
        "before = resource.getrlimit(resource.RLIMIT_DATA)\n"
        "opened = session.open_session(model, light=True)\n"
        "opened.run({'x': np.ones((1, 2048), np.float32)})\n"
        "assert resource.getrlimit(resource.RLIMIT_DATA) > before\n"
        "del opened\n"
        "assert resource.getrlimit(resource.RLIMIT_DATA) == before\n"
    )
    draft = Draft()
    x = draft.input("x", [1, 2048], TensorProto.FLOAT)
    for i in range(3):
        x = draft.node("MatMul", [x, draft.const(f"w{i}", np.zeros((2048, 2048), np.float32))], f"y{i}")
    draft.output(x, [1, 2048], TensorProto.FLOAT)
    onnx.save(draft.model("large"), tmp_path / "m.onnx", save_as_external_data=True, location="w.bin")
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "m.onnx")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_a_limit_nothing_is_set(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    opened = open_session(Model.open(external(tmp_path)), light=True)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    del opened
