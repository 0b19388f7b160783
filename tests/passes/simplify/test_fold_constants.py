"""Rules `fold-constants` and `fold-arithmetic`."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from graphopt.pipeline.rules import Limits
from graphopt.testing.draft import Draft
from graphopt.testing.formats import quantized

from .harness import constant, distance, multi_output, outputs, simplified

RNG = np.random.default_rng(5)
MATRIX = RNG.standard_normal((4, 6)).astype(np.float32)


def _adds(
    op: str,
    *parameters: Any,
    opset: int = 17,
    shape: tuple[int, ...] = (4, 6),
    dtype: int = TensorProto.FLOAT,
    **attributes: Any,
) -> onnx.ModelProto:
    """``y = x + op(parameters…)``: an x of ``shape`` and something constant."""
    draft = Draft(opset=opset)
    names = [constant(draft, f"p{k}", value) for k, value in enumerate(parameters)]
    made = draft.node(op, names, "made", name="tested", **attributes)
    draft.node("Add", [draft.input("x", shape, dtype), made], "y")
    draft.output("y", shape, dtype)
    return draft.model("adds")


EXACT = {
    "transpose": _adds("Transpose", MATRIX.T.copy(), perm=[1, 0]),
    "concat": _adds("Concat", MATRIX[:1], MATRIX[1:], axis=0),
    "arithmetic": _adds("Div", MATRIX, np.float32(3)),
    "double": _adds("Sub", MATRIX.astype(np.float64), np.float64(0.1), dtype=TensorProto.DOUBLE),
    "cast": _adds("Cast", MATRIX.astype(np.float64), to=TensorProto.FLOAT),
    "filled": _adds(
        "ConstantOfShape", np.array([4, 6]), value=numpy_helper.from_array(np.array([0.3], np.float32), "value")
    ),
    "expand": _adds("Expand", MATRIX[:1], np.array([4, 6])),
    "range": _adds("Range", np.float32(0), np.float32(0.55), np.float32(0.1), shape=(6,)),
    "slice": _adds(
        "Slice", RNG.standard_normal((9, 6)).astype(np.float32), np.array([1]), np.array([5]), np.array([0])
    ),
    "opset 9 slice": _adds("Slice", RNG.standard_normal((9, 6)).astype(np.float32), opset=9, starts=[1], ends=[5]),
    "where": _adds("Where", MATRIX > 0, MATRIX, np.float32(0)),
}

ROUNDING = {
    "matmul": _adds(
        "MatMul", RNG.standard_normal((4, 8)).astype(np.float32), RNG.standard_normal((8, 6)).astype(np.float32)
    ),
    "exp": _adds("Exp", MATRIX),
    "mean": _adds("ReduceMean", RNG.standard_normal((4, 6, 9)).astype(np.float32), axes=[2], keepdims=0),
    "softmax": _adds("Softmax", MATRIX),
}


@pytest.mark.parametrize("name", EXACT)
def test_constants_are_computed_to_the_bit(name: str) -> None:
    done = simplified(EXACT[name], exact_only=True)
    assert done.ops == ["Add"]
    assert done.rules["fold-constants"] == 1
    assert distance(done) == 0


@pytest.mark.parametrize("name", ROUNDING)
def test_sums_and_approximations_are_left_to_the_rounding_rule(name: str) -> None:
    assert "tested" in [node.name for node in simplified(ROUNDING[name], exact_only=True).after.editor.nodes()]
    done = simplified(ROUNDING[name])
    assert done.ops == ["Add"]
    assert done.rules["fold-arithmetic"] == 1
    assert distance(done) < 1e-6


def test_a_whole_tree_folds() -> None:
    draft = Draft()
    base = constant(draft, "base", np.array([1, 2, 3]))
    for index in range(6):
        base = draft.node("Mul", [draft.node("Neg", [base], f"neg{index}"), base], f"product{index}")
    draft.node("Sub", [draft.input("x", [3], TensorProto.INT64), base], "y")
    draft.output("y", [3], TensorProto.INT64)
    assert simplified(draft.model("tree"), exact_only=True).rules["fold-constants"] == 12


@pytest.mark.parametrize(
    ("op", "parameters", "attributes"),
    [
        ("RandomNormalLike", (MATRIX,), {}),
        ("RandomUniformLike", (MATRIX,), {}),
        ("Dropout", (MATRIX, np.float32(0.5), np.array(True)), {}),
    ],
)
def test_random_operators_are_never_folded(op: str, parameters: Any, attributes: Any) -> None:
    done = simplified(_adds(op, *parameters, **attributes))
    assert op in done.ops
    assert f"{op} is random and never folded" in [skip.reason for skip in done.result.skipped]


def test_random_operators_without_inputs_are_never_folded() -> None:
    draft = Draft()
    drawn = draft.node("RandomNormal", [], "drawn", shape=[2, 3])
    draft.node("Sum", [draft.input("x", [2, 3]), draft.node("Neg", [drawn], "turned")], "y")
    draft.output("y", [2, 3])
    assert not simplified(draft.model("random")).result.modified


def test_multinomial_and_bernoulli_are_never_folded() -> None:
    draft = Draft()
    half = constant(draft, "half", np.full((2, 8), 0.5, np.float32))
    drawn = draft.node("Bernoulli", [half], "drawn")
    sampled = draft.node("Multinomial", [half], "sampled", sample_size=8, dtype=TensorProto.INT32)
    as_float = draft.node("Cast", [sampled], "as_float", to=TensorProto.FLOAT)
    draft.node("Sum", [draft.input("x", [2, 8]), drawn, as_float], "y")
    draft.output("y", [2, 8])
    done = simplified(draft.model("draws"))
    assert {"Bernoulli", "Multinomial"} <= set(done.ops)


def test_quantization_in_the_model_is_left_alone() -> None:
    before = quantized()
    done = simplified(before)
    assert done.ops == [node.op_type for node in before.graph.node]


def test_other_domains_are_left_alone() -> None:
    draft = Draft()
    made = draft.node("Gelu", [constant(draft, "c", MATRIX)], "made", domain="com.microsoft")
    draft.node("Add", [draft.input("x", [4, 6]), made], "y")
    draft.output("y", [4, 6])
    assert "Gelu" in simplified(draft.model("custom", domains={"com.microsoft": 1})).ops


def test_a_constant_graph_output_stays_computed() -> None:
    draft = Draft()
    draft.node("Neg", [draft.input("x", [2])], "y")
    draft.output("y", [2])
    draft.node("Neg", [constant(draft, "c", MATRIX)], "fixed")
    draft.output("fixed", [4, 6])
    assert not simplified(draft.model("constant output")).result.modified


def test_a_bomb_is_not_set_off() -> None:
    draft = Draft()
    zeros = draft.node("ConstantOfShape", [constant(draft, "size", np.array([20_000, 1000]))], "zeros")
    draft.node("Add", [draft.input("x", [1]), draft.node("ReduceMax", [zeros], "top", keepdims=0)], "y")
    draft.output("y", [1])
    done = simplified(draft.model("bomb"))
    assert "ConstantOfShape" in done.ops
    assert done.reasons("fold-constants") == [
        "its value would add 79999984 bytes to the file, more than max_fold_bytes = 65536"
    ]


@pytest.mark.parametrize(("limit", "folds"), [(56, True), (55, False)])
def test_the_limit_counts_growth(limit: int, folds: bool) -> None:
    proto = _adds("Tile", MATRIX[:1], np.array([4, 1]))  # 24 + 16 bytes become 96, and nobody else uses the 40
    assert ("Tile" not in simplified(proto, max_fold_bytes=limit).ops) is folds


def test_what_shrinks_always_folds() -> None:
    proto = _adds("Slice", RNG.standard_normal((4000, 6)).astype(np.float32), np.array([0]), np.array([4]))
    done = simplified(proto, max_fold_bytes=0)
    assert done.ops == ["Add"]
    assert done.after.weight_bytes == 96


def test_a_shared_input_is_not_counted_as_freed() -> None:
    draft = Draft()
    weight = constant(draft, "w", RNG.standard_normal((200, 200)).astype(np.float32))
    x = draft.input("x", [200, 200])
    y = draft.node("Add", [x, draft.node("Transpose", [weight], "turned", perm=[1, 0])], "sum")
    draft.node("Add", [y, weight], "y")
    draft.output("y", [200, 200])
    done = simplified(draft.model("shared"))
    assert "Transpose" in done.ops
    assert "would add 160000 bytes" in done.reasons("fold-constants")[0]


def test_all_values_together_have_a_limit_too() -> None:
    limits = Limits(node=100, total=150)
    assert limits.refusal(100) is None
    limits.added = 100
    assert limits.refusal(60) == "all computed values together would add more than 150 bytes to the file"
    assert limits.refusal(-60) is None


def test_unknown_sizes_are_not_computed() -> None:
    draft = Draft()
    multi_output(draft, "Unique", [constant(draft, "c", np.array([1, 2, 2, 3]))], ["unique"])
    draft.node("Add", [draft.input("x", [1], TensorProto.INT64), "unique"], "y")
    draft.output("y", [None], TensorProto.INT64)
    done = simplified(draft.model("unique"))
    assert "Unique" in done.ops
    assert done.reasons("fold-constants") == ["the size of its value is not known before it is computed"]


def test_nonzero_is_bounded_by_its_input() -> None:
    draft = Draft()
    found = draft.node("NonZero", [constant(draft, "c", np.array([1, 0, 2], np.float32))], "found")
    draft.node("Add", [draft.input("x", [1, 2], TensorProto.INT64), found], "y")
    draft.output("y", [1, 2], TensorProto.INT64)
    done = simplified(draft.model("nonzero"), exact_only=True)
    assert done.ops == ["Add"]
    assert distance(done) == 0


def test_what_the_runtime_has_no_kernel_for_stays_with_its_words() -> None:
    done = simplified(_adds("Erf", MATRIX.astype(np.float64), dtype=TensorProto.DOUBLE))
    assert "Erf" in done.ops
    assert done.reasons("fold-arithmetic")[0].startswith("onnxruntime cannot compute it: ")


def test_a_computed_weight_stays_unpacked_in_exact_mode() -> None:
    draft = Draft()
    turned = draft.node("Transpose", [draft.weight("w", 32, 64)], "turned", perm=[1, 0])
    draft.node("MatMul", [draft.input("x", [4, 64]), turned], "y")
    draft.output("y", [4, 32])
    proto = draft.model("weight")
    exact = simplified(proto, exact_only=True)
    assert exact.ops == ["Transpose", "MatMul"]
    done = simplified(proto)
    assert done.ops == ["MatMul"]
    assert distance(done) < 1e-5


def test_half_precision_may_be_kept_in_single_from_node_to_node() -> None:
    proto = _adds("Mul", MATRIX.astype(np.float16), np.float16(3), dtype=TensorProto.FLOAT16)
    assert not simplified(proto, exact_only=True).result.modified
    done = simplified(proto)
    assert done.ops == ["Add"]
    assert distance(done) < 1e-3


def test_bodies_that_capture_a_folded_value_still_see_it(captured: onnx.ModelProto) -> None:
    done = simplified(captured)
    assert done.rules["fold-constants"] == 1
    for flag in (True, False):
        feed = {"x": np.float32([1, -2]), "flag": np.array(flag)}
        np.testing.assert_array_equal(outputs(done.before, feed)["y"], outputs(done.after, feed)["y"])


@pytest.fixture
def captured() -> onnx.ModelProto:
    """An If whose branches capture ``half``, which is computed from constants outside."""
    from onnx import helper

    def branch(op: str) -> onnx.GraphProto:
        node = helper.make_node(op, ["x", "half"], [f"{op}_y"])
        return helper.make_graph([node], op, [], [helper.make_tensor_value_info(f"{op}_y", 1, [2])])

    draft = Draft()
    draft.input("x", [2])
    draft.input("flag", [], TensorProto.BOOL)
    draft.node("Div", [constant(draft, "one", np.float32([1, 1])), constant(draft, "two", np.float32(2))], "half")
    draft.node("If", ["flag"], "y", then_branch=branch("Add"), else_branch=branch("Mul"))
    draft.output("y", [2])
    return draft.model("captured")


_BINARY = ["Add", "Sub", "Mul", "Div", "Max", "Min"]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_random_trees_fold_to_the_bit(data: Any) -> None:
    draft = Draft(data.draw(st.integers(0, 2**16)))
    pool = [draft.weight(f"w{k}", 3, 4, scale=1.0) for k in range(3)]
    for index in range(data.draw(st.integers(1, 6))):
        op = data.draw(st.sampled_from([*_BINARY, "Neg", "Abs", "Floor", "Sqrt"]))
        inputs = [data.draw(st.sampled_from(pool)) for _ in range(2 if op in _BINARY else 1)]
        pool.append(draft.node(op, inputs, f"t{index}"))
    draft.node("Where", ["pick", pool[-1], draft.input("x", [3, 4])], "y")
    draft.input("pick", [3, 4], TensorProto.BOOL)
    draft.output("y", [3, 4])
    done = simplified(draft.model("random tree"), exact_only=True)
    assert done.ops == ["Where"]
    feed = {"x": np.zeros((3, 4), np.float32), "pick": np.ones((3, 4), bool)}
    before, after = (outputs(model, feed)["y"] for model in (done.before, done.after))
    np.testing.assert_array_equal(before, after)
