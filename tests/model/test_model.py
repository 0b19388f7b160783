"""The model: facts, clones, shapes after edits, and what finish() does and does not do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import ModelError
from graphopt.model.model import Model
from graphopt.testing.draft import Draft

from .probes import (
    PROBES,
    canonical,
    model_of,
    relu,
    value,
    with_constant_nodes,
    with_map_output,
    with_optional_io,
    with_overridable_initializer,
    with_quantization_annotation,
    with_sequence_io,
    with_training_info,
)


def chain(width: int = 300) -> onnx.ModelProto:
    """x[N,16] @ w1 -> Relu -> @ w2, reshaped by a constant; inner values declared."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((16, width)).astype(np.float32), "w1"),
        numpy_helper.from_array(rng.standard_normal((width, 16)).astype(np.float32), "w2"),
        numpy_helper.from_array(np.array([0, 8, -1], np.int64), "shape"),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="first"),
        relu("a", "b"),
        helper.make_node("MatMul", ["b", "w2"], ["c"], name="second"),
        helper.make_node("Reshape", ["c", "shape"], ["y"], name="reshape"),
    ]
    return model_of(
        nodes,
        [value("x", ["N", 16])],
        [value("y", ["N", 8, "k"])],
        initializer=weights,
        value_info=[value("a", ["N", width]), value("b", ["N", width])],
    )


def narrowed(model: Model, width: int) -> Model:
    """Keeps the first ``width`` inner channels."""
    twin = model.clone()
    first, _, second, _ = twin.editor.nodes()
    w1, w2 = twin.editor.constant(first.inputs[1]), twin.editor.constant(second.inputs[1])
    assert w1 is not None and w2 is not None
    twin.editor.set_constant(first, 1, w1[:, :width])
    twin.editor.set_constant(second, 1, w2[:width])
    return twin


def test_facts() -> None:
    model = Model.from_proto(chain())
    assert (model.node_count, model.opset, model.ir_version) == (4, 21, 10)
    assert model.parameter_count == 2 * 16 * 300 + 3
    assert model.weight_bytes == 2 * 16 * 300 * 4 + 24
    assert model.file_size == len(chain().SerializeToString())
    assert dict(model.opsets) == {"": 21}
    assert model.path is None and model.notes == ()


def test_interface() -> None:
    made = Model.from_proto(chain()).interface
    assert [(s.name, s.dtype, s.shape, s.kind) for s in made.inputs] == [("x", np.float32, ("N", 16), "tensor")]
    assert [(s.name, s.shape) for s in made.outputs] == [("y", ("N", 8, "k"))]
    kinds = [
        Model.from_proto(with_optional_io()).interface.inputs[0],
        Model.from_proto(with_sequence_io()).interface.inputs[0],
        Model.from_proto(with_map_output()).interface.outputs[0],
    ]
    assert [(s.kind, s.dtype, s.shape) for s in kinds] == [
        ("optional", None, None),
        ("sequence", None, None),
        ("sequence", None, None),
    ]


def test_shapes_follow_an_edit_and_no_stale_declaration_survives() -> None:
    model = narrowed(Model.from_proto(chain()), 200)
    model.finish()
    first = model.editor.nodes()[0]
    assert model.shape_of(first.outputs[0]) == ("N", 200)
    declared = {v.name: v.type.tensor_type.shape.dim[1].dim_value for v in model.to_proto().graph.value_info}
    assert declared == {"a": 200, "b": 200}
    onnx.checker.check_model(model.to_proto(), full_check=True)
    assert model.interface == Model.from_proto(chain()).interface


def test_a_shape_conflict_is_an_error_that_names_the_node() -> None:
    model = Model.from_proto(chain())
    second = model.editor.nodes()[2]
    model.editor.set_constant(second, 1, np.ones((7, 16), np.float32))
    with pytest.raises(ModelError) as caught:
        model.finish()
    assert caught.value.code == "GO-307"
    assert "second" in str(caught.value)


def test_a_conflict_the_source_has_is_noted_and_a_new_one_refused() -> None:
    source = chain()
    source.graph.output[0].CopyFrom(value("y", ["N", 9, 9]))
    model = Model.from_proto(source)
    assert model.clone().editor is not None
    model.metadata["edited"] = "1"
    model.finish()
    assert any("strict shape inference" in note for note in model.notes)
    broken = narrowed(model, 200)
    broken.editor.set_constant(broken.editor.nodes()[2], 1, np.ones((7, 16), np.float32))
    with pytest.raises(ModelError) as caught:
        broken.finish()
    assert caught.value.code == "GO-307" and "second" in str(caught.value)


def test_what_an_output_is_declared_to_be_is_not_believed() -> None:
    """onnxruntime only warns where an output has another size than declared."""
    draft = Draft()
    x = draft.input("x", ["n", 3])
    batch = draft.node("Gather", [draft.node("Shape", [x], "s"), draft.const("zero", np.array([0]))], "b")
    sizes = draft.node("Concat", [batch, draft.const("six", np.array([6]))], "t", axis=0)
    draft.node("Expand", [draft.node("Neg", [draft.input("z", [1, 6])], "q"), sizes], "y")
    draft.node("Shape", ["y"], "asked")
    draft.output("y", [1, 6])
    draft.output("asked", [2], onnx.TensorProto.INT64)
    model = Model.from_proto(draft.model("claim"))
    (y,) = (t for t in model.graph.outputs if t.name == "y")
    assert (model.shape_of(y) or ("?",))[0] != 1
    assert list(y.shape) == [1, 6]


def test_a_declared_output_that_cannot_be_is_a_conflict() -> None:
    draft = Draft()
    draft.node("Relu", [draft.input("x", [2, 3])], "y")
    draft.output("y", [2, 3])
    proto = draft.model("claim")
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 4
    model = Model.from_proto(proto)
    assert model.editor.nodes()
    assert any("output y: declared [4, 3], inferred [2, 3]" in note for note in model.notes)


def test_what_only_a_custom_operator_knows_stays_declared() -> None:
    nodes = [helper.make_node("Foo", ["x"], ["a"], domain="custom"), relu("a", "b"), relu("b", "y")]
    source = model_of(nodes, value_info=[value("a", [1, 4]), value("b", [1, 4])], domains={"custom": 1})
    model = Model.from_proto(source)
    model.metadata["edited"] = "1"
    model.finish()
    assert model.shape_of(model.editor.tensor("b")) == (1, 4)
    assert [v.name for v in model.to_proto().graph.value_info] == ["a", "b"]


def test_a_declaration_that_nothing_confirms_is_dropped_after_an_edit_and_kept_without_one() -> None:
    nodes = [helper.make_node("Reshape", ["x", "s"], ["a"]), relu("a", "y")]
    inputs = [value("x", [4]), helper.make_tensor_value_info("s", TensorProto.INT64, None)]
    source = model_of(nodes, inputs, [value("y", [None])], value_info=[value("a", [77])])
    source.graph.value_info[0].type.tensor_type.shape.dim.add(dim_value=3)
    model = Model.from_proto(source)
    assert model.finish() == ()
    assert canonical(model.to_proto()) == canonical(source)
    model.metadata["edited"] = "1"
    model.finish()
    assert not model.to_proto().graph.value_info


def test_finish_on_an_untouched_model_changes_nothing() -> None:
    for probe in PROBES:
        model = Model.from_proto(probe())
        before = canonical(model.to_proto())
        assert model.finish() == ()
        assert canonical(model.to_proto()) == before, probe.__name__


def test_finish_is_idempotent() -> None:
    model = narrowed(Model.from_proto(chain()), 200)
    model.finish()
    before = model.fingerprint()
    assert model.finish() == ()
    assert model.fingerprint() == before


def test_clones_are_independent_and_share_weights() -> None:
    model = Model.from_proto(chain())
    before = model.fingerprint()
    twin = narrowed(model, 200)
    twin.metadata["k"] = "v"
    twin.finish()
    assert model.fingerprint() == before != twin.fingerprint()
    assert model.node_count == 4 and model.metadata == {}
    assert model.shape_of(model.editor.nodes()[0].outputs[0]) == ("N", 300)


def test_the_fingerprint_sees_every_byte_and_nothing_else() -> None:
    base = Model.from_proto(chain()).fingerprint()
    assert Model.from_proto(chain()).fingerprint() == base
    changed = chain()
    weight = numpy_helper.to_array(changed.graph.initializer[0]).copy()
    weight[3, 3] = np.nextafter(weight[3, 3], np.float32(9))
    changed.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w1"))
    assert Model.from_proto(changed).fingerprint() != base
    renamed = chain()
    renamed.graph.node[0].name = "other"
    assert Model.from_proto(renamed).fingerprint() != base


def test_metadata_is_kept_and_can_be_edited() -> None:
    source = chain()
    helper.set_model_props(source, {"a": "1", "b": "2"})
    model = Model.from_proto(source)
    assert model.metadata == {"a": "1", "b": "2"}
    model.metadata["c"] = "3"
    del model.metadata["a"]
    assert [(e.key, e.value) for e in model.to_proto().metadata_props] == [("b", "2"), ("c", "3")]


def test_the_skeleton_and_its_weights_run_like_the_file() -> None:
    source = chain()
    proto, arrays = Model.from_proto(source).skeleton()
    assert sorted(arrays) == ["w1", "w2"]
    assert proto.ByteSize() < 800
    options = ort.SessionOptions()
    values = [ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(a)) for a in arrays.values()]
    options.add_external_initializers(list(arrays), values)
    x = np.random.default_rng(1).standard_normal((3, 16)).astype(np.float32)
    providers = ["CPUExecutionProvider"]
    bare = ort.InferenceSession(proto.SerializeToString(), options, providers=providers).run(None, {"x": x})[0]
    full = ort.InferenceSession(source.SerializeToString(), providers=providers).run(None, {"x": x})[0]
    np.testing.assert_array_equal(bare, full)


def test_a_quantization_annotation_of_a_removed_tensor_is_dropped_with_a_note() -> None:
    source = with_quantization_annotation()
    source.graph.quantization_annotation[0].tensor_name = "gone"
    source.graph.node[0].output[0] = "gone"
    source.graph.node.extend([relu("gone", "y")])
    model = Model.from_proto(source)
    model.editor.bypass(model.editor.nodes()[0])
    notes = model.finish()
    assert any("gone" in note for note in notes)
    assert not model.to_proto().graph.quantization_annotation


def test_training_information_is_not_left_dangling() -> None:
    model = Model.from_proto(with_training_info())
    node = model.editor.nodes()[0]
    model.editor.set_input(node, 1, model.editor.add_constant("other", np.ones(4, np.float32)))
    with pytest.raises(ModelError) as caught:
        model.finish()
    assert caught.value.code == "GO-308" and "'w'" in str(caught.value)


def test_a_new_operator_domain_is_imported() -> None:
    model = Model.from_proto(chain())
    editor = model.editor
    node = editor.nodes()[1]
    fused = editor.add_node("QuickGelu", [node.inputs[0]], domain="com.microsoft")
    editor.replace_uses(node.outputs[0], fused.outputs[0])
    model.finish()
    assert {e.domain: e.version for e in model.to_proto().opset_import} == {"": 21, "com.microsoft": 1}


def test_a_model_without_the_standard_domain_opens() -> None:
    source = model_of([helper.make_node("Foo", ["x"], ["y"], domain="d")], domains={"d": 1})
    del source.opset_import[0]
    model = Model.from_proto(source)
    assert model.opset == 0
    assert canonical(model.to_proto()) == canonical(source)


def test_of_takes_whatever_stands_for_a_model(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(chain().SerializeToString())
    opened = Model.of(path)
    assert opened.path == path
    for source in (path, str(path), chain(), opened):
        made = Model.of(source)
        assert made is not opened and made.fingerprint() == opened.fingerprint()


def test_a_writable_array_put_in_past_the_editor_is_frozen() -> None:
    model = Model.from_proto(chain())
    array = np.zeros((16, 300), np.float32)
    model.editor.nodes()[0].inputs[1].values = array
    model.finish()
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 1


def test_an_overridable_default_is_written_back_with_its_input() -> None:
    model = Model.from_proto(with_overridable_initializer())
    model.metadata["edited"] = "1"
    model.finish()
    written = model.to_proto()
    assert [i.name for i in written.graph.input] == ["x", "w"]
    assert [t.name for t in written.graph.initializer] == ["w"]
    assert model.parameter_count == 4


def test_constant_nodes_count_as_parameters() -> None:
    model = Model.from_proto(with_constant_nodes())
    assert model.parameter_count == 2


@pytest.mark.shared
def test_real_models_give_the_same_outputs_after_finish(shared: Path) -> None:
    """Everything cleared and inferred anew: bit-identical outputs where onnxruntime runs the model."""
    path = shared / "models" / "mobilenet_v1" / "model.onnx"
    model = Model.open(path)
    model.metadata["edited"] = "1"
    model.finish()
    x = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    outputs = [
        ort.InferenceSession(source, providers=["CPUExecutionProvider"]).run(None, {"input": x})[0]
        for source in (str(path), model.to_proto().SerializeToString())
    ]
    np.testing.assert_array_equal(*outputs)


def sparse(name: str) -> onnx.SparseTensorProto:
    values = helper.make_tensor(name, TensorProto.FLOAT, [2], [1.0, 2.0])
    return helper.make_sparse_tensor(values, helper.make_tensor("at", TensorProto.INT64, [2], [0, 7]), [4, 2])


def test_sparse_weights_have_types_for_inference() -> None:
    """In the graph and in bodies: onnx's own inference fails at whatever reads one."""
    ends = [value(name, [1, 2]) for name in ("a", "b")]
    bodies = [
        helper.make_graph([helper.make_node("MatMul", ["x", weight], [end.name])], end.name, [], [end], **held)
        for end, weight, held in zip(
            ends, ("inner", "outer"), ({"sparse_initializer": [sparse("inner")]}, {}), strict=True
        )
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "outer"], ["h"]),
        helper.make_node("If", ["which"], ["i"], then_branch=bodies[0], else_branch=bodies[1]),
        helper.make_node("Add", ["h", "i"], ["y"]),
    ]
    inputs = [value("x"), value("which", [], TensorProto.BOOL)]
    model = Model.from_proto(model_of(nodes, inputs, [value("y", [1, 2])], sparse_initializer=[sparse("outer")]))
    assert not model.inference_failures
    assert [node.outputs[0].shape for node in model.graph.nodes[:2]] == [[1, 2], [1, 2]]
    assert len(model.to_proto().graph.sparse_initializer) == 1
