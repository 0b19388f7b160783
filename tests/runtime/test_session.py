from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from ml_dtypes import bfloat16
from onnx import TensorProto as T
from onnx import helper as h

from graphopt.errors import RuntimeFailure
from graphopt.model.model import Model
from graphopt.runtime import session
from graphopt.runtime.session import open_session
from graphopt.runtime.target import ProviderSpec
from graphopt.testing.builders import ALL, residual
from graphopt.testing.draft import Draft

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def feed_of(model, seed=0):
    rng = np.random.default_rng(seed)
    return {
        spec.name: rng.standard_normal([d if isinstance(d, int) else 2 for d in spec.shape]).astype(spec.dtype)
        for spec in model.interface.inputs
    }


def tiny(op, in_type=T.FLOAT, domain="", **attributes):
    node = h.make_node(op, ["x"], ["y"], domain=domain, **attributes)
    io = [h.make_tensor_value_info(n, t, ["N", 2]) for n, t in (("x", in_type), ("y", T.FLOAT))]
    opsets = [h.make_opsetid("", 17), *([h.make_opsetid(domain, 1)] if domain else [])]
    return h.make_model(h.make_graph([node], "g", io[:1], io[1:]), opset_imports=opsets, ir_version=9)


@pytest.mark.parametrize(
    "build", [b for n, b in sorted(ALL.items()) if n in ("residual", "attention", "mlp", "concat")]
)
@pytest.mark.parametrize("optimization", ["none", "all"])
def test_a_model_its_bytes_and_its_file_give_equal_outputs(tmp_path, build, optimization):
    proto = build(0)
    onnx.save(proto, tmp_path / "m.onnx")
    model = Model.from_proto(proto)
    feed = feed_of(model)
    results = [
        open_session(source, optimization=optimization).run(feed)
        for source in (model, proto.SerializeToString(), tmp_path / "m.onnx")
    ]
    for name, expected in results[2].items():
        for result in results[:2]:
            assert np.array_equal(result[name], expected)


def test_a_session_sees_the_edited_weights_and_outlives_its_model():
    model = Model.from_proto(residual(0))
    feed = feed_of(model)
    before = open_session(model).run(feed)
    node = next(n for n in model.editor.nodes() if n.op == "Conv")
    model.editor.set_constant(node, 1, model.editor.constant(node.inputs[1]) * np.float32(2))
    model.finish()
    session = open_session(model)
    del model, node
    after = session.run(feed)
    assert any(not np.array_equal(after[name], before[name]) for name in before)
    assert all(np.array_equal(after[name], session.run(feed)[name]) for name in after)


def test_opening_a_session_leaves_the_model_as_it_was():
    model = Model.from_proto(residual(0))
    before = model.fingerprint()
    open_session(model, extra_outputs=[model.editor.nodes()[0].outputs[0].name])
    assert model.fingerprint() == before


@pytest.mark.parametrize("kind", ["model", "bytes", "path"])
def test_extra_outputs_show_tensors_inside(tmp_path, kind):
    proto = residual(0)
    onnx.save(proto, tmp_path / "m.onnx")
    model = Model.from_proto(proto)
    source = {"model": model, "bytes": proto.SerializeToString(), "path": tmp_path / "m.onnx"}[kind]
    add = next(n for n in proto.graph.node if n.op_type == "Add")
    extra = [*add.input, *add.output, proto.graph.output[0].name]
    session = open_session(source, extra_outputs=extra)
    own = tuple(o.name for o in proto.graph.output)
    assert session.output_names == (*own, *add.input, *add.output)
    found = session.run(feed_of(model), outputs=extra[:3])
    assert list(found) == extra[:3]
    np.testing.assert_allclose(found[extra[0]] + found[extra[1]], found[extra[2]], rtol=1e-6)


def test_an_unknown_extra_output_is_refused_by_name():
    with pytest.raises(RuntimeFailure) as caught:
        open_session(residual(0).SerializeToString(), extra_outputs=["nowhere"])
    assert "nowhere" in caught.value.where


def test_read_only_feeds_and_types_unknown_to_numpy_run():
    values = np.array([[1.5, 2.0]], bfloat16)
    values.flags.writeable = False
    session = open_session(tiny("Cast", T.BFLOAT16, to=T.FLOAT).SerializeToString())
    assert session.run({"x": values})["y"].tolist() == [[1.5, 2.0]]


@pytest.mark.parametrize(
    "feed",
    [
        {},
        {"z": np.zeros((1, 2), np.float32)},
        {"x": np.zeros((1, 3), np.float32)},
        {"x": np.zeros((1, 2), np.float64)},
    ],
)
def test_a_run_that_fails_is_one_error_of_one_line(feed, capfd):
    session = open_session(tiny("Relu").SerializeToString())
    with pytest.raises(RuntimeFailure) as caught:
        session.run(feed)
    assert caught.value.code == "GO-604"
    assert "\n" not in caught.value.why
    assert capfd.readouterr() == ("", "")


def with_unread_weights(ir_version):
    """A body captures one initializer, a local function takes one without using it, one is an output; two are idle."""
    weights = [onnx.numpy_helper.from_array(np.full((32, 32), i, np.float32), n) for i, n in enumerate("bfoui")]
    io = [h.make_tensor_value_info(n, T.FLOAT, [1, 32]) for n in "xyc"]
    io[2] = h.make_tensor_value_info("c", T.BOOL, [])
    whole = [h.make_tensor_value_info(n, T.FLOAT, [32, 32]) for n in "bfoui"]
    arms = [
        h.make_graph([h.make_node("MatMul", ["x", "b"], [n])], n, [], [h.make_tensor_value_info(n, T.FLOAT, [1, 32])])
        for n in ("t", "e")
    ]
    nodes = [
        h.make_node("If", ["c"], ["z"], then_branch=arms[0], else_branch=arms[1]),
        h.make_node("F", ["z", "f"], ["y"], domain="d"),
    ]
    ignoring = h.make_function(
        "d", "F", ["p", "q"], ["r"], [h.make_node("Neg", ["p"], ["r"])], [h.make_opsetid("", 17)]
    )
    listed = whole if ir_version < 4 else []
    graph = h.make_graph(nodes, "g", [io[0], io[2], *listed], [io[1], whole[2]], weights)
    opsets = [h.make_opsetid("", 17), h.make_opsetid("d", 1)]
    return h.make_model(graph, opset_imports=opsets, ir_version=ir_version, functions=[ignoring])


@pytest.mark.parametrize("ir_version", [3, 9])
@pytest.mark.parametrize("optimization", ["none", "all"])
@pytest.mark.parametrize("staged", [False, True])
def test_initializers_that_nothing_reads_are_not_handed_over(ir_version, optimization, staged, monkeypatch):
    """onnxruntime removed them first, and then failed: any model with one above 1 KiB did not open."""
    if staged:
        monkeypatch.setattr(session, "LIGHT_ABOVE", 0)
    proto = with_unread_weights(ir_version)
    feed = {"x": np.ones((1, 32), np.float32), "c": np.array(True)}
    expected = onnxruntime.InferenceSession(proto.SerializeToString()).run(["y", "o"], feed)
    opened = open_session(Model.from_proto(proto), optimization=optimization, extra_outputs=["u"], light=True)
    assert opened.input_names == ("x", "c")
    found = opened.run(feed)
    np.testing.assert_array_equal(found.pop("u"), np.full((32, 32), 3.0, np.float32))
    for name, value in zip(found, expected, strict=True):
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize("source", [b"", b"not a model", tiny("Nope", domain="elsewhere").SerializeToString()])
def test_a_model_that_does_not_open_is_one_quiet_error(source, capfd):
    with pytest.raises(RuntimeFailure) as caught:
        open_session(source)
    assert caught.value.code == "GO-603"
    assert capfd.readouterr() == ("", "")


def test_a_missing_file_and_a_missing_library_are_refused(tmp_path):
    with pytest.raises(RuntimeFailure) as caught:
        open_session(tmp_path / "missing.onnx")
    assert caught.value.code == "GO-603"
    with pytest.raises(RuntimeFailure) as caught:
        open_session(tiny("Relu").SerializeToString(), custom_op_libraries=[str(tmp_path / "no.so")])
    assert caught.value.code == "GO-603"
    assert "no.so" in caught.value.where


def test_a_provider_that_is_not_offered_is_refused_before_anything_is_opened(fake_backend):
    backend = fake_backend(offered=(CPU,), working=(CPU,))
    with pytest.raises(RuntimeFailure) as caught:
        open_session(b"", provider=ProviderSpec(CUDA), backend=backend)
    assert caught.value.code == "GO-601"
    assert not backend.requests


def test_a_second_provider_is_asked_for_with_its_options_and_the_cpu_behind_it(fake_backend):
    backend = fake_backend(offered=(CUDA, CPU), working=(CUDA, CPU))
    session = open_session(b"", provider=ProviderSpec(CUDA, {"device_id": "1"}), backend=backend)
    assert backend.requests == [[(CUDA, {"device_id": "1"}), (CPU, {})]]
    assert session.providers == (CUDA, CPU)
    assert session.run({"x": np.ones(2)}).keys() == {"y"}


def test_a_provider_that_silently_gives_way_to_the_cpu_is_an_error(fake_backend):
    backend = fake_backend(offered=(CUDA, CPU), working=(CPU,))
    with pytest.raises(RuntimeFailure) as caught:
        open_session(b"", provider=ProviderSpec(CUDA), backend=backend)
    assert caught.value.code == "GO-602"
    assert CPU in caught.value.why


@pytest.mark.shared
@pytest.mark.parametrize("name", ["fmnist_resnet8", "mnist_opset8", "magika", "cifar10_resnet32"])
def test_skeleton_and_file_agree_on_real_models(shared, name):
    path = shared / "models" / name / "model.onnx"
    model = Model.open(path)
    rng = np.random.default_rng(0)
    spec = model.interface.inputs[0]
    shape = [d if isinstance(d, int) else 1 for d in spec.shape]
    feed = {spec.name: rng.integers(0, 256, shape).astype(spec.dtype)}
    mine, theirs = open_session(model).run(feed), open_session(path).run(feed)
    assert all(np.array_equal(mine[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("listed", [False, True])
def test_a_weight_that_nothing_reads_does_not_keep_the_model_from_running(listed: bool) -> None:
    draft = Draft()
    draft.node("Relu", [draft.input("x", [2, 3])], "y")
    draft.output("y", [2, 3])
    draft.const("unread", np.ones(5000, np.float32))
    if listed:
        draft.input("unread", [5000])
    session = open_session(Model.from_proto(draft.model("unread")))
    assert session.run({"x": np.ones((2, 3), np.float32)})["y"].tolist() == [[1.0] * 3] * 2


def test_a_weight_that_only_a_body_or_an_output_reads_is_there() -> None:
    value = np.arange(5000, dtype=np.float32)
    draft = Draft()
    draft.const("captured", value)
    draft.const("given", value)
    branches = [
        h.make_graph([h.make_node(op, ["captured"], ["r"])], op, [], [h.make_tensor_value_info("r", 1, [5000])])
        for op in ("Neg", "Identity")
    ]
    then, other = branches
    draft.node("If", [draft.input("c", [], T.BOOL)], "y", then_branch=then, else_branch=other)
    draft.output("y", [5000])
    draft.output("given", [5000])
    found = open_session(Model.from_proto(draft.model("read"))).run({"c": np.asarray(True)})
    np.testing.assert_array_equal(found["y"], -value)
    np.testing.assert_array_equal(found["given"], value)
