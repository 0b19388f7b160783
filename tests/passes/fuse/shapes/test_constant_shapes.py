"""Rule `constant-shapes`."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from graphopt.model.model import Model
from graphopt.passes.fuse.shapes.constant_shapes import ConstantShapes
from graphopt.passes.fuse.shapes.reshape_targets import ReshapeTargets
from graphopt.pipeline.rules import Limits, Scope
from graphopt.pipeline.selection import Selection
from tests.passes.fuse.harness import distance, examples, rewritten

from .shape_cases import ALL, INT64, Shapes, agree, shape_models


def test_a_pad_of_fixed_dimensions_becomes_constant() -> None:
    draft = Shapes()
    x = draft.input("x", ["n", 3, 7, 7])
    size = draft.op("Slice", draft.op("Shape", x), draft.ints(2), draft.ints(4))
    rest = draft.op("Sub", draft.ints(9, 8), size)
    after = draft.op("Div", rest, draft.ints(2, 2))
    amounts = draft.shape(draft.ints(0, 0), after, draft.ints(0, 0), draft.op("Sub", rest, after))
    draft.node("Pad", [x, amounts], "y")
    draft.output("y", ["n", 3, None, None])
    done = rewritten(draft.model("pad"), ConstantShapes)
    assert done.ops == ["Pad"]
    assert agree(done, {"n": 1}, {"n": 3})


def test_dynamic_dimensions_may_cancel() -> None:
    draft = Shapes()
    x = draft.input("x", ["n", "m"])
    n, m = draft.dim(x, 0), draft.dim(x, 1)
    both = draft.op("Mul", n, m)
    left = draft.op("Sub", draft.op("Div", both, n), m)
    draft.node("Reshape", [x, draft.shape(draft.op("Add", left, draft.ints(1)), draft.ints(-1))], "y")
    draft.output("y", [None, None])
    done = rewritten(draft.model("cancel"), ConstantShapes)
    assert done.ops == ["Reshape"]
    assert agree(done, {"n": 2, "m": 3}, {"n": 4, "m": 1})


def test_the_pad_chain_that_pytorch_exports() -> None:
    draft = Shapes()
    x = draft.input("x", ["n", 3, 8, 8])
    given = draft.ints(1, 2, 0, 1)
    missing = draft.op("Sub", draft.op("Mul", draft.op("Size", draft.op("Shape", x)), draft.ints(2)), draft.ints(4))
    zeros = draft.op("ConstantOfShape", missing, value=helper.make_tensor("v", INT64, [1], [0]))
    pairs = draft.op("Reshape", draft.shape(given, zeros), draft.ints(-1, 2))
    back = draft.op("Slice", pairs, draft.ints(-1), draft.ints(-(2**63) + 1), draft.ints(0), draft.ints(-1))
    flat = draft.op("Reshape", draft.op("Transpose", back, perm=[1, 0]), draft.ints(-1))
    draft.node("Pad", [x, draft.op("Cast", flat, to=INT64)], "y")
    draft.output("y", ["n", 3, None, None])
    done = rewritten(draft.model("torch"), ConstantShapes)
    assert done.ops == ["Pad"]
    assert agree(done, {"n": 1}, {"n": 2})


def test_what_the_run_decides_stays() -> None:
    draft = Shapes()
    x = draft.input("x", ["n", "n", 4])
    difference = draft.op("Sub", draft.dim(x, 0), draft.dim(x, 1))
    draft.node("Reshape", [x, draft.shape(draft.op("Add", difference, draft.ints(1)), draft.ints(-1))], "y")
    draft.output("y", [None, None])
    assert not rewritten(draft.model("same name"), ConstantShapes, ReshapeTargets).sites


def test_a_graph_output_stays_computed() -> None:
    draft = Shapes()
    draft.node("Shape", [draft.input("x", [2, 3])], "y")
    draft.output("y", [2], INT64)
    assert not rewritten(draft.model("output"), *ALL).sites


def test_values_given_at_run_time_stay() -> None:
    draft = Shapes()
    x, k = draft.input("x", ["n", 4]), draft.input("k", [1], INT64)
    draft.node("Reshape", [x, draft.shape(draft.op("Mul", k, draft.ints(2)), draft.ints(-1))], "y")
    draft.output("y", [None, None])
    assert not rewritten(draft.model("given"), *ALL).sites


def test_32_bits_may_overflow() -> None:
    draft = Shapes()
    x = draft.input("x", ["n", 4])
    narrow = draft.op("Cast", draft.op("Mul", draft.dim(x, 0), draft.ints(2**30)), to=TensorProto.INT32)
    draft.node("Div", [narrow, draft.const("half", np.array([2**30], np.int32))], "y")
    draft.output("y", [1], TensorProto.INT32)
    done = rewritten(draft.model("narrow"), *ALL)
    assert agree(done, {"n": 2}, {"n": 5})


def test_a_result_of_which_a_body_makes_use() -> None:
    draft = Shapes()
    x, flag = draft.input("x", [2, 3]), draft.input("flag", [], TensorProto.BOOL)
    size = draft.dim(x, 1)
    bodies = [
        helper.make_graph(
            [helper.make_node(op, [size, size], [f"{op}_out"])],
            op,
            [],
            [helper.make_tensor_value_info(f"{op}_out", INT64, [1])],
        )
        for op in ("Add", "Mul")
    ]
    draft.node("If", [flag], "y", then_branch=bodies[0], else_branch=bodies[1])
    draft.output("y", [1], INT64)
    done = rewritten(draft.model("body"), ConstantShapes)
    assert done.ops == ["If"]
    assert distance(done, {"x": np.zeros((2, 3), np.float32), "flag": np.array(True)}) == 0


@settings(max_examples=examples(), deadline=None, derandomize=True)
@given(shape_models(), st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_random_arithmetic(proto: onnx.ModelProto, n: int, m: int, narrow: bool) -> None:
    done = rewritten(proto, *ALL)
    feed = {"x": np.ones((n, m, 4, 3), np.float32), "other": np.ones((1 if narrow else n, m), np.float32)}
    assert distance(done, feed) == 0


@settings(max_examples=examples() // 8, deadline=None, derandomize=True)
@given(shape_models())
def test_a_second_time_changes_nothing(proto: onnx.ModelProto) -> None:
    assert not rewritten(rewritten(proto, *ALL).after.to_proto(), *ALL).sites


def test_nodes_that_contradict_themselves_are_left_alone() -> None:
    draft = Shapes()
    x = draft.input("x", ["n", 4])
    picked = draft.op("Gather", draft.op("Shape", x), draft.ints(0), axis=0)
    draft.node("Reshape", [x, draft.shape(picked, draft.ints(-1))], "y")
    draft.output("y", [None, None])
    proto = draft.model("contradiction")
    proto.graph.node[1].attribute[0].i = 1
    model = Model.from_proto(proto)
    scope = Scope(model, Selection.of(model, (), ()), Limits(0))
    assert ConstantShapes().apply(scope) == ([], [])


def test_fmod_takes_the_sign_of_the_dividend_and_stays() -> None:
    draft = Shapes(opset=17)
    x = draft.input("x", [4, 3])
    below = draft.op("Sub", draft.dim(x, 0), draft.ints(7))
    draft.output(draft.op("Mod", below, draft.ints(5), fmod=1), [1], INT64)
    done = rewritten(draft.model("fmod"), ConstantShapes)
    assert "Mod" in done.ops
    assert agree(done, {})
