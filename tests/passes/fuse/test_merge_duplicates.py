"""Rule `merge-duplicates`."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from graphopt.passes.fuse.merge_duplicates import MergeDuplicates
from graphopt.testing.draft import Draft

from .harness import distance, examples, rewritten


def _twins(op: str, *, domain: str = "", other: str | None = None, **attributes: object) -> onnx.ModelProto:
    """y = op(x) - op(x), the second one possibly another operator."""
    draft = Draft()
    x = draft.input("x", [2, 3])
    a = draft.node(op, [x], "a", domain=domain, **attributes)
    b = draft.node(other or op, [x], "b", domain=domain, **attributes)
    draft.node("Sub", [a, b], "y")
    draft.output("y", [2, 3])
    return draft.model("twins", domains={domain: 1} if domain else None)


def test_equal_branches_merge() -> None:
    draft = Draft()
    x = draft.input("x", [1, 2, 5, 5])
    weight = np.ones((3, 2, 3, 3), np.float32)
    ends = []
    for k in "ab":
        y = draft.node("Conv", [x, draft.const(f"w{k}", weight)], f"conv{k}", pads=[1] * 4, kernel_shape=[3, 3])
        ends.append(draft.node("Exp", [draft.node("Relu", [y], f"relu{k}")], f"exp{k}"))
    draft.node("Add", ends, "y")
    draft.output("y", [1, 3, 5, 5])
    done = rewritten(draft.model("branches"), MergeDuplicates)
    assert done.ops == ["Conv", "Relu", "Exp", "Add"]
    assert distance(done) == 0


def test_large_initializers_count_by_their_bytes() -> None:
    for last, left in ((0.0, 1), (1.0, 2), (-0.0, 2)):
        draft = Draft()
        x = draft.input("x", [2, 64])
        weight = np.zeros((64, 64), np.float32)
        other = weight.copy()
        other[30, 30] = last
        a, b = (draft.node("MatMul", [x, draft.const(f"w{k}", w)], f"m{k}") for k, w in enumerate((weight, other)))
        draft.node("Add", [a, b], "y")
        draft.output("y", [2, 64])
        assert rewritten(draft.model("weights"), MergeDuplicates).ops.count("MatMul") == left


def test_one_graph_output_keeps_its_name() -> None:
    draft = Draft()
    x = draft.input("x", [2, 3])
    draft.node("Exp", [x], "kept")
    draft.node("Neg", [draft.node("Exp", [x], "other")], "y")
    draft.output("kept", [2, 3])
    draft.output("y", [2, 3])
    done = rewritten(draft.model("output"), MergeDuplicates)
    assert done.ops == ["Exp", "Neg"]
    assert distance(done) == 0


def test_the_later_of_two_may_be_the_graph_output() -> None:
    draft = Draft()
    x = draft.input("x", [2, 3])
    draft.node("Neg", [draft.node("Exp", [x], "other")], "y")
    draft.node("Exp", [x], "kept")
    draft.output("y", [2, 3])
    draft.output("kept", [2, 3])
    done = rewritten(draft.model("output"), MergeDuplicates)
    assert done.ops == ["Exp", "Neg"]
    assert distance(done) == 0


def test_two_graph_outputs_stay_two() -> None:
    draft = Draft()
    x = draft.input("x", [2, 3])
    for name in ("a", "b"):
        draft.node("Exp", [x], name)
        draft.output(name, [2, 3])
    done = rewritten(draft.model("outputs"), MergeDuplicates)
    assert done.ops == ["Exp", "Exp"]
    assert done.reasons("merge-duplicates") == ["it equals a/Exp, and both are graph outputs"]


def test_random_operators_stay_apart() -> None:
    assert not rewritten(_twins("RandomNormalLike"), MergeDuplicates).sites
    assert not rewritten(_twins("RandomNormalLike", seed=1.0), MergeDuplicates).sites


def test_dropout_stays() -> None:
    assert not rewritten(_twins("Dropout"), MergeDuplicates).sites


def test_other_operators_and_attributes_stay() -> None:
    assert not rewritten(_twins("Exp", other="Abs"), MergeDuplicates).sites
    proto = _twins("LeakyRelu", alpha=0.5)
    proto.graph.node[1].attribute[0].f = 0.25
    assert not rewritten(proto, MergeDuplicates).sites


def test_other_domains_stay() -> None:
    proto = _twins("Exp")
    for node in proto.graph.node[:2]:
        node.op_type, node.domain = "Inverse", "com.microsoft"
    proto.opset_import.add(domain="com.microsoft", version=1)
    assert not rewritten(proto, MergeDuplicates).sites


def test_quantization_stays() -> None:
    draft = Draft()
    x = draft.input("x", [2, 3])
    scale, zero = draft.const("s", np.float32([0.1])[0]), draft.const("z", np.uint8([3])[0])
    ends = []
    for k in "ab":
        q = draft.node("QuantizeLinear", [x, scale, zero], f"q{k}")
        ends.append(draft.node("DequantizeLinear", [q, scale, zero], f"d{k}"))
    draft.node("Add", ends, "y")
    draft.output("y", [2, 3])
    assert not rewritten(draft.model("quantized"), MergeDuplicates).sites


def _choice(draft: Draft, name: str, captured: str) -> str:
    bodies = [
        helper.make_graph(
            [helper.make_node(op, [captured], [f"{name}_{op}"])],
            op,
            [],
            [helper.make_tensor_value_info(f"{name}_{op}", TensorProto.FLOAT, [2, 3])],
        )
        for op in ("Abs", "RandomNormalLike")
    ]
    return draft.node("If", ["flag"], name, then_branch=bodies[0], else_branch=bodies[1])


def test_nodes_with_bodies_stay_and_their_captures_follow() -> None:
    draft = Draft()
    x, _ = draft.input("x", [2, 3]), draft.input("flag", [], TensorProto.BOOL)
    a, b = draft.node("Exp", [x], "a"), draft.node("Exp", [x], "b")
    draft.node("Add", [_choice(draft, "first", a), _choice(draft, "second", b)], "y")
    draft.output("y", [2, 3])
    done = rewritten(draft.model("bodies"), MergeDuplicates)
    assert done.ops == ["Exp", "If", "If", "Add"]
    feed = {"x": np.ones((2, 3), np.float32), "flag": np.array(True)}
    assert distance(done, feed) == 0


def test_overridable_initializers_are_not_constants() -> None:
    draft = Draft()
    x = draft.input("x", [2, 3])
    ends = []
    for k in "ab":
        draft.const(f"w{k}", np.ones(3, np.float32))
        ends.append(draft.node("Mul", [x, draft.input(f"w{k}", [3])], f"m{k}"))
    draft.node("Add", ends, "y")
    draft.output("y", [2, 3])
    assert not rewritten(draft.model("overridable"), MergeDuplicates).sites


def test_outputs_left_out_make_a_difference() -> None:
    draft = Draft()
    x = draft.input("x", [1, 2, 4, 4])
    draft.node("MaxPool", [x], "a", kernel_shape=[2, 2])
    draft.node("MaxPool", [x], "b", kernel_shape=[2, 2])
    draft.nodes[-1].output.append("indices")
    draft.node("Add", ["a", "b"], "y")
    draft.output("y", [1, 2, 3, 3])
    draft.output("indices", [1, 2, 3, 3], TensorProto.INT64)
    assert not rewritten(draft.model("outputs"), MergeDuplicates).sites


@settings(max_examples=examples(), deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.sampled_from(["Abs", "Neg", "Add", "Mul", "Sub"]), st.integers(0, 9), st.integers(0, 9)),
        min_size=2,
        max_size=12,
    ),
    st.sets(st.integers(0, 11), max_size=3),
)
def test_random_expressions(steps: list[tuple[str, int, int]], shown: set[int]) -> None:
    draft = Draft()
    tensors = [draft.input("x", [2, 3]), draft.weight("w0", 2, 3)]
    tensors.append(draft.const("w1", np.full((1, 3), 2, np.float32)))
    tensors.append(draft.const("w2", np.full((1, 3), 2, np.float32)))
    for place, (op, left, right) in enumerate(steps):
        operands = [tensors[left % len(tensors)], tensors[right % len(tensors)]]
        tensors.append(draft.node(op, operands[: 1 if op in ("Abs", "Neg") else 2], f"t{place}"))
    for place in {len(steps) - 1, *(k for k in shown if k < len(steps))}:
        draft.output(f"t{place}", [None] * 2)
    done = rewritten(draft.model("random"), MergeDuplicates)
    assert distance(done) == 0
    again = rewritten(done.after.to_proto(), MergeDuplicates)
    assert not again.sites
