"""The editor: links stay true, names unique, outputs keep their names, arrays read-only."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import PassError
from graphopt.model.model import Model
from graphopt.testing.draft import Draft

from .probes import model_of, relu, value, with_constant_nodes, with_nested_bodies, with_overridable_initializer

X = np.array([[-1.0, 2.0, -3.0, 4.0]], np.float32)


def run(model: Model, feed: dict[str, np.ndarray] | None = None) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.to_proto().SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feed or {"x": X})


def shared_weight() -> onnx.ModelProto:
    """y = (x + w) * w"""
    weight = numpy_helper.from_array(np.full((1, 4), 3.0, np.float32), "w")
    nodes = [
        helper.make_node("Add", ["x", "w"], ["a"], name="add"),
        helper.make_node("Mul", ["a", "w"], ["y"], name="mul"),
    ]
    return model_of(nodes, initializer=[weight])


def node_named(model: Model, name: str) -> gs.Node:
    return next(node for node, _ in model.editor.all_nodes() if node.name == name)


def links_are_true(model: Model) -> bool:
    """Every reader list says exactly what the nodes' inputs say."""
    model.editor.flush()
    readers: dict[int, list[int]] = {}
    tensors: dict[int, gs.Tensor] = {}
    for node, _ in model.editor.all_nodes():
        for tensor in node.inputs:
            if tensor.name:
                readers.setdefault(id(tensor), []).append(id(node))
        tensors.update((id(t), t) for t in [*node.inputs, *node.outputs] if t.name)
        for tensor in node.outputs:
            if tensor.name and [id(n) for n in tensor.inputs] != [id(node)]:
                return False
    return all(sorted(readers.get(i, [])) == sorted(id(n) for n in t.outputs) for i, t in tensors.items())


def test_arrays_cannot_be_edited_in_place() -> None:
    model = Model.from_proto(shared_weight())
    weight = model.editor.constant(node_named(model, "add").inputs[1])
    assert weight is not None
    with pytest.raises(ValueError, match="read-only"):
        weight[0] = 9
    with pytest.raises(ValueError, match="read-only"):
        node_named(model, "add").inputs[1].values[0] = 9
    mine = np.ones(4, np.float32)
    model.editor.add_constant("mine", mine)
    with pytest.raises(ValueError, match="read-only"):
        mine[0] = 9


def test_a_view_of_writable_memory_is_copied() -> None:
    base = np.zeros((2, 4), np.float32)
    model = Model.from_proto(shared_weight())
    constant = model.editor.add_constant("c", base[0])
    base[0, 0] = 5
    assert constant.values[0] == 0
    broadcast = model.editor.add_constant("b", np.broadcast_to(np.float32(1), (4,)))
    assert broadcast.values.flags.c_contiguous


def test_set_constant_touches_this_use_only() -> None:
    model = Model.from_proto(shared_weight())
    add, mul = node_named(model, "add"), node_named(model, "mul")
    fresh = model.editor.set_constant(add, 1, np.zeros((1, 4), np.float32))
    assert fresh is add.inputs[1] and fresh is not mul.inputs[1]
    model.finish()
    np.testing.assert_array_equal(run(model)[0], X * 3)
    assert links_are_true(model)


def test_set_constant_keeps_the_name_of_a_constant_used_once() -> None:
    weight = numpy_helper.from_array(np.ones(4, np.float32), "w")
    model = Model.from_proto(model_of([helper.make_node("Add", ["x", "w"], ["y"], name="n")], initializer=[weight]))
    changed = model.editor.set_constant(node_named(model, "n"), 1, np.zeros(4, np.float32))
    assert changed.name == "w"
    np.testing.assert_array_equal(run(model)[0], X)


def test_an_overridable_input_is_no_constant() -> None:
    model = Model.from_proto(with_overridable_initializer())
    node = model.editor.nodes()[0]
    assert model.editor.constant(node.inputs[1]) is None
    assert model.editor.is_input(node.inputs[1])
    assert [s.name for s in model.interface.overridable] == ["w"]
    assert [s.name for s in model.interface.inputs] == ["x"]
    with pytest.raises(PassError) as caught:
        model.editor.set_constant(node, 1, np.zeros(4, np.float32))
    assert caught.value.code == "GO-801"


def test_freezing_an_overridable_input_makes_it_an_initializer() -> None:
    model = Model.from_proto(with_overridable_initializer())
    frozen = model.editor.freeze_input(model.graph.inputs[1])
    model.finish()
    assert model.editor.constant(frozen) is not None
    assert model.interface.overridable == ()
    assert [i.name for i in model.to_proto().graph.input] == ["x"]
    np.testing.assert_array_equal(run(model)[0], X + 1)


def test_constant_nodes_are_seen_through() -> None:
    model = Model.from_proto(with_constant_nodes())
    found = [model.editor.constant(node.outputs[0]) for node in model.editor.nodes()]
    assert all(array is not None and not array.flags.writeable for array in found)
    assert [array.dtype for array in found if array is not None] == [
        np.dtype(k) for k in ("f4", "f4", "f4", "i8", "i8", "O", "O")
    ]
    assert [array.shape for array in found if array is not None] == [(2,), (), (2,), (), (2,), (), (2,)]


def test_names_are_unique_and_deterministic() -> None:
    names = []
    for _ in range(2):
        model = Model.from_proto(shared_weight())
        names.append([model.editor.unique_name(hint) for hint in ("add", "w", "w", "new", "new", "")])
    assert names[0] == names[1] == ["add_1", "w_1", "w_2", "new", "new_1", "_1"]


def test_unnamed_and_repeated_node_names_are_made_unique_in_the_view_only_as_needed() -> None:
    model = Model.from_proto(model_of([relu("x", "a"), relu("a", "b", name="r"), relu("b", "y", name="r")]))
    assert [node.name for node in model.editor.nodes()] == ["Relu_0", "r", "r_1"]
    assert [node.name for node in model.to_proto().graph.node] == ["", "r", "r_1"]
    assert any("share" in note for note in model.notes)


def test_a_new_node_is_placed_just_before_its_first_consumer() -> None:
    model = Model.from_proto(model_of([relu("x", "a", name="1"), relu("a", "b", name="2"), relu("b", "y", name="3")]))
    editor = model.editor
    negated = editor.add_node("Neg", [editor.tensor("a")], name="neg").outputs[0]
    editor.set_input(node_named(model, "2"), 0, negated)
    model.finish()
    assert [node.name for node in editor.nodes()] == ["1", "neg", "2", "3"]


def test_quantizers_can_be_put_behind_a_tensor() -> None:
    """The new nodes between the old and the new tensor keep reading the old one: no cycle."""
    model = Model.from_proto(model_of([relu("x", "a", name="1"), relu("a", "y", name="2")]))
    editor = model.editor
    tensor = editor.tensor("a")
    assert tensor is not None
    scale, zero = editor.add_constant("s", np.float32(0.5)), editor.add_constant("z", np.uint8(0))
    quantized = editor.add_node("QuantizeLinear", [tensor, scale, zero]).outputs[0]
    editor.replace_uses(tensor, editor.add_node("DequantizeLinear", [quantized, scale, zero]).outputs[0])
    model.finish()
    assert [n.op for n in editor.nodes()] == ["Relu", "QuantizeLinear", "DequantizeLinear", "Relu"]
    assert links_are_true(model)


def test_an_output_keeps_its_name_when_another_node_computes_it() -> None:
    model = Model.from_proto(shared_weight())
    editor = model.editor
    output = model.graph.outputs[0]
    node = editor.add_node("Neg", [editor.tensor("a")])
    editor.replace_uses(output, node.outputs[0])
    model.finish()
    assert [o.name for o in model.to_proto().graph.output] == ["y"]
    assert node.outputs[0].name == "y"
    np.testing.assert_array_equal(run(model)[0], -(X + 3))


@pytest.mark.parametrize("source", ["x", "w"])
def test_an_output_that_becomes_an_input_or_a_weight_is_copied(source: str) -> None:
    model = Model.from_proto(shared_weight())
    model.editor.replace_uses(model.graph.outputs[0], model.editor.tensor(source))
    model.finish()
    assert [o.name for o in model.graph.outputs] == ["y"]
    expected = X if source == "x" else np.full((1, 4), 3.0, np.float32)
    np.testing.assert_array_equal(run(model)[0], expected)


def test_bypass_of_an_output_node_keeps_the_name() -> None:
    model = Model.from_proto(model_of([relu("x", "a"), helper.make_node("Identity", ["a"], ["y"], name="id")]))
    model.editor.bypass(node_named(model, "id"))
    model.finish()
    assert [node.op for node in model.editor.nodes()] == ["Relu"]
    assert model.interface.outputs[0].name == "y"
    assert links_are_true(model)


def test_bypass_keeps_an_identity_between_an_input_and_an_output() -> None:
    model = Model.from_proto(model_of([helper.make_node("Identity", ["x"], ["y"], name="id")]))
    before = model.fingerprint()
    model.editor.bypass(node_named(model, "id"))
    model.finish()
    assert model.fingerprint() == before


def shadowing() -> onnx.ModelProto:
    """The bodies of an If call a tensor ``a``, and so is an output called that an Identity behind it computes."""
    flag = numpy_helper.from_array(np.array(True), "flag")
    arms = [helper.make_graph([helper.make_node(op, ["x"], ["a"])], op, [], [value("a")]) for op in ("Neg", "Abs")]
    nodes = [
        relu("x", "q"),
        helper.make_node("If", ["flag"], ["y"], then_branch=arms[0], else_branch=arms[1]),
        helper.make_node("Identity", ["q"], ["a"], name="id"),
    ]
    return model_of(nodes, None, [value("y"), value("a")], initializer=[flag])


def test_an_output_whose_name_bodies_use_for_their_own_is_copied() -> None:
    """Its source took the name over, and hid the bodies' tensor: onnx's checker rejects that."""
    source = shadowing()
    onnx.checker.check_model(source)
    expected = run(Model.from_proto(source))
    for edit in ("bypass", "replace_uses"):
        model = Model.from_proto(source)
        if edit == "bypass":
            model.editor.bypass(node_named(model, "id"))
        else:
            model.editor.replace_uses(model.graph.outputs[1], model.editor.tensor("q"))
        model.finish()
        onnx.checker.check_model(model.to_proto())
        assert [output.name for output in model.graph.outputs] == ["y", "a"]
        for found, value_before in zip(run(model), expected, strict=True):
            np.testing.assert_array_equal(found, value_before)


def test_a_name_that_only_the_other_branch_uses_is_taken_over() -> None:
    flag = numpy_helper.from_array(np.array(True), "flag")
    arms = []
    for op in ("Neg", "Abs"):
        inner = [helper.make_node(op, ["x"], [f"{op}_q"]), helper.make_node("Identity", [f"{op}_q"], ["a"])]
        arms.append(helper.make_graph(inner, op, [], [value("a")]))
    choice = helper.make_node("If", ["flag"], ["y"], then_branch=arms[0], else_branch=arms[1])
    model = Model.from_proto(model_of([choice], initializer=[flag]))
    for node, _ in model.editor.all_nodes():
        if node.op == "Identity":
            model.editor.bypass(node)
    model.finish()
    assert sorted(node.op for node, _ in model.editor.all_nodes()) == ["Abs", "If", "Neg"]
    np.testing.assert_array_equal(run(model)[0], -X)


def test_what_is_an_input_or_an_output_stays_true_amid_edits() -> None:
    model = Model.from_proto(shadowing())
    editor = model.editor
    first, last = model.graph.outputs
    assert editor.is_output(first) and editor.is_output(last) and editor.is_input(editor.tensor("x"))
    copy = editor.add_node("Relu", [editor.tensor("q")]).outputs[0]
    editor.replace_uses(first, copy)
    assert editor.is_output(copy) and not editor.is_output(first)
    assert model.graph.outputs[0] is copy and copy.name == "y"
    frozen = Model.from_proto(with_overridable_initializer())
    tensor = frozen.graph.inputs[1]
    assert frozen.editor.is_input(tensor)
    frozen.editor.freeze_input(tensor)
    assert not frozen.editor.is_input(tensor)


def test_a_node_in_use_is_not_removed() -> None:
    model = Model.from_proto(shared_weight())
    for name in ("add", "mul"):
        with pytest.raises(PassError) as caught:
            model.editor.remove_node(node_named(model, name))
        assert caught.value.code == "GO-801"


def test_taking_over_an_output_leaves_the_former_producer_dead() -> None:
    model = Model.from_proto(shared_weight())
    editor = model.editor
    editor.add_node("Sub", [editor.tensor("x"), editor.tensor("w")], outputs=[model.graph.outputs[0]])
    model.finish()
    assert [node.op for node in editor.nodes()] == ["Sub"]
    assert links_are_true(model)


def test_readers_inside_bodies_count() -> None:
    model = Model.from_proto(with_nested_bodies())
    editor = model.editor
    weight, outer = editor.tensor("w"), editor.tensor("outer")
    assert weight is not None and outer is not None
    assert sorted(node.op for node in editor.consumers(weight)) == ["Add", "Mul"]
    assert sorted(node.op for node in editor.consumers(outer)) == ["Add", "Mul"]
    assert editor.is_output(editor.tensor("p")) and not editor.is_output(outer)


def test_replacing_a_captured_tensor_reaches_into_bodies() -> None:
    model = Model.from_proto(with_nested_bodies())
    editor = model.editor
    outer = editor.tensor("outer")
    assert outer is not None
    negated = editor.add_node("Neg", [outer]).outputs[0]
    editor.replace_uses(outer, negated)
    model.finish()
    assert [node.op for node in editor.nodes()] == ["Relu", "Neg", "Loop"]
    np.testing.assert_array_equal(run(model)[0], -np.maximum(X, 0) + 2)


def test_a_node_on_body_tensors_joins_the_body() -> None:
    model = Model.from_proto(with_nested_bodies())
    editor = model.editor
    inner = editor.tensor("p")
    assert inner is not None
    negated = editor.add_node("Neg", [inner])
    editor.replace_uses(inner, negated.outputs[0])
    model.finish()
    assert any(node is negated and level.name == "branchp" for node, level in editor.all_nodes())
    np.testing.assert_array_equal(run(model)[0], -(np.maximum(X, 0) + 2))
    onnx.checker.check_model(model.to_proto(), full_check=True)


def test_a_new_constant_used_in_one_body_stays_there_and_a_shared_one_goes_to_the_top() -> None:
    model = Model.from_proto(with_nested_bodies())
    editor = model.editor
    inside = [node for node, level in editor.all_nodes() if level.name.startswith("branch")]
    local, common = (
        editor.add_constant("local", np.ones(4, np.float32)),
        editor.add_constant("both", np.ones(4, np.float32)),
    )
    editor.set_input(inside[0], 1, local)
    editor.set_input(inside[1], 1, common)
    editor.set_input(editor.nodes()[1], 2, editor.add_node("Add", [editor.tensor("x"), common]).outputs[0])
    model.finish()
    written = model.to_proto()
    assert "both" in {t.name for t in written.graph.initializer}
    assert "local" not in {t.name for t in written.graph.initializer}
    assert run(model)[0].shape == (1, 4)


def test_captured_weights_are_not_copied_into_the_branches() -> None:
    model = Model.from_proto(with_nested_bodies())
    model.editor.set_constant(
        next(n for n, _ in model.editor.all_nodes() if n.op == "Mul"), 1, np.full(4, 5.0, np.float32)
    )
    model.finish()
    loop = next(node for node in model.to_proto().graph.node if node.op_type == "Loop")
    branch = next(node for node in loop.attribute[0].g.node if node.op_type == "If")
    sizes = sorted(len(attribute.g.initializer) for attribute in branch.attribute)
    assert sizes == [0, 1]


@pytest.mark.parametrize("call", ["cleanup", "toposort", "fold_constants", "layer", "copy"])
def test_dangerous_graph_calls_are_refused(call: str) -> None:
    model = Model.from_proto(with_nested_bodies())
    for graph in [model.graph, *model.graph.subgraphs(recursive=True)]:
        with pytest.raises(PassError) as caught:
            getattr(graph, call)()
        assert caught.value.code == "GO-803"


def test_attributes_take_the_type_the_operator_declares() -> None:
    model = Model.from_proto(model_of([helper.make_node("LeakyRelu", ["x"], ["y"], alpha=0.5, name="n")]))
    model.editor.set_attr(node_named(model, "n"), "alpha", 1)
    model.finish()
    assert model.to_proto().graph.node[0].attribute[0].type == onnx.AttributeProto.FLOAT
    model.editor.set_attr(node_named(model, "n"), "alpha", "no number")
    with pytest.raises(PassError, match="alpha"):
        model.to_proto()


def test_an_attribute_list_edited_in_place_is_written() -> None:
    node = helper.make_node("Transpose", ["x"], ["y"], perm=[0, 1], name="n")
    model = Model.from_proto(model_of([node], outputs=[value("y", [None, None])]))
    model.editor.nodes()[0].attrs["perm"][:] = [1, 0]
    assert list(model.to_proto().graph.node[0].attribute[0].ints) == [1, 0]


def test_bypassing_thousands_of_nodes_that_share_a_weight_leaves_true_links() -> None:
    scale = numpy_helper.from_array(np.float32(2), "s")
    count = 200
    nodes = [helper.make_node("Mul", [f"t{i}", "s"], [f"t{i + 1}"]) for i in range(count)]
    model = Model.from_proto(model_of(nodes, [value("t0")], [value(f"t{count}")], initializer=[scale]))
    editor = model.editor
    for node in editor.nodes()[1:]:
        editor.bypass(node)
    shared = editor.tensor("s")
    assert shared is not None
    assert len(editor.consumers(shared)) == 1
    assert links_are_true(model)
    model.finish()
    assert model.node_count == 1


def test_random_edits_keep_the_links_true_and_the_model_valid() -> None:
    """Bypasses, new nodes and replaced inputs in random order, on 20 seeds."""
    for seed in range(20):
        random = np.random.default_rng(seed)
        nodes = [helper.make_node("Add", [f"t{random.integers(0, i + 1)}", f"t{i}"], [f"t{i + 1}"]) for i in range(12)]
        model = Model.from_proto(model_of(nodes, [value("t0")], [value("t12")]))
        editor = model.editor
        for _ in range(10):
            candidates = editor.nodes()
            node = candidates[int(random.integers(len(candidates)))]
            action = int(random.integers(3))
            if action == 0 and len(candidates) > 2:
                editor.bypass(node, int(random.integers(len(node.inputs))))
            elif action == 1:
                fresh = editor.add_node("Neg", [node.outputs[0]])
                editor.replace_uses(node.outputs[0], fresh.outputs[0])
            else:
                editor.set_input(node, 0, editor.add_constant("c", np.ones((1, 4), np.float32)))
            assert links_are_true(model), seed
        model.finish()
        assert [o.name for o in model.to_proto().graph.output] == ["t12"]
        onnx.checker.check_model(model.to_proto(), full_check=True)


def test_same_edits_give_the_same_bytes() -> None:
    def edited() -> bytes:
        model = Model.from_proto(shared_weight())
        model.editor.set_constant(node_named(model, "mul"), 1, np.zeros(4, np.float32))
        editor = model.editor
        editor.replace_uses(editor.tensor("a"), editor.add_node("Neg", [editor.tensor("a")]).outputs[0])
        model.finish()
        written: bytes = model.to_proto().SerializeToString(deterministic=True)
        return written

    assert edited() == edited()


def test_ir3_models_list_every_initializer_among_the_inputs() -> None:
    weight = numpy_helper.from_array(np.ones(4, np.float32), "w")
    nodes = [helper.make_node("Add", ["x", "w"], ["a"]), helper.make_node("Mul", ["a", "w"], ["y"], name="n")]
    source = model_of(nodes, [value("w", [4]), value("x")], initializer=[weight], opset=8, ir_version=3)
    model = Model.from_proto(source)
    assert model.editor.constant(model.editor.tensor("w")) is not None
    model.editor.set_constant(node_named(model, "n"), 1, np.zeros(4, np.float32))
    model.finish()
    written = model.to_proto()
    assert [i.name for i in written.graph.input] == ["w", "x", "w_1"]
    onnx.checker.check_model(written)
    assert [s.name for s in model.interface.inputs] == ["x"]


def test_a_boolean_output_keeps_its_declared_symbols() -> None:
    source = model_of(
        [helper.make_node("Greater", ["x", "x"], ["y"])],
        [value("x", ["N", 4])],
        [value("y", ["N", 4], TensorProto.BOOL)],
    )
    model = Model.from_proto(source)
    assert model.shape_of(model.graph.outputs[0]) == ("N", 4)
    assert model.dtype_of(model.graph.outputs[0]) == np.dtype(bool)


def test_a_name_that_a_body_defines_for_itself_is_not_given_to_another_tensor() -> None:
    draft = Draft()
    branch = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "b", [], [value("y", [2])])
    draft.node("If", [draft.input("c", [], TensorProto.BOOL)], "r", then_branch=branch, else_branch=branch)
    draft.node("Relu", [draft.input("x", [2])], "a")
    draft.node("Identity", ["a"], "y")
    for name in ("r", "y"):
        draft.output(name, [2])
    graph = helper.make_graph(draft.nodes, "g", draft.inputs, draft.outputs)
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    identity = next(n for n in model.editor.nodes() if n.op == "Identity")
    model.editor.bypass(identity)
    model.finish()
    assert [n.op for n in model.editor.nodes() if n.outputs[0].name == "y"] == ["Identity"]
