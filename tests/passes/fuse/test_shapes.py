"""Rules `constant-shapes`, `reshape-targets` and `shared-shapes`, and the facts they rest on."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from graphopt.passes.fuse.constant_shapes import ConstantShapes
from graphopt.passes.fuse.reshape_targets import ReshapeTargets
from graphopt.passes.fuse.shared_shapes import SharedShapes
from graphopt.passes.fuse.symbols import Algebra
from graphopt.testing.draft import Draft

from .harness import Done, distance, examples, rewritten

ALL = (ConstantShapes, ReshapeTargets, SharedShapes)
INT64 = TensorProto.INT64


class Shapes(Draft):
    """A draft with a shorthand for shape arithmetic."""

    count = 0

    def ints(self, *values: int) -> str:
        """A constant vector."""
        self.count += 1
        return self.const(f"k{self.count}", np.array(values, np.int64))

    def op(self, op: str, *inputs: str, **attributes: Any) -> str:
        """A node under a fresh name."""
        self.count += 1
        return self.node(op, list(inputs), f"{op.lower()}{self.count}", **attributes)

    def dim(self, tensor: str, axis: int) -> str:
        """One dimension, as a vector of one."""
        return self.op("Gather", self.op("Shape", tensor), self.ints(axis), axis=0)

    def shape(self, *parts: str) -> str:
        """A vector of all parts."""
        return self.op("Concat", *parts, axis=0)


def _agree(done: Done, *sizes: dict[str, int]) -> bool:
    return all(distance(done, **size) == 0 for size in sizes)


# The algebra


@settings(max_examples=examples(), deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(["add", "sub", "mul", "div"]), st.integers(-3, 6)), max_size=6), st.data())
def test_formulas_are_what_they_compute(steps: list[tuple[str, int]], data: st.DataObject) -> None:
    algebra = Algebra()
    terms = [algebra.symbol("a", count=True), algebra.symbol("b", count=True), 2]
    values = [data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9)), 2]
    for op, pick in steps:
        left, right = pick % len(terms), (pick + 1) % len(terms)
        if op == "div":
            found = algebra.quotient(terms[left], terms[right])
            if found is None or values[right] == 0:
                continue
            assert values[left] % values[right] == 0
            terms.append(found)
            values.append(values[left] // values[right])
        else:
            terms.append(getattr(algebra, op)(terms[left], terms[right]))
            x, y = values[left], values[right]
            values.append({"add": x + y, "sub": x - y, "mul": x * y}[op])
    for term, value in zip(terms, values, strict=True):
        assert not isinstance(term, int) or term == value
        assert not algebra.is_count(term) or value >= 0
        for other, number in zip(terms, values, strict=True):
            if (equal := algebra.equal(term, other)) is not None:
                assert equal == (value == number)


def test_broadcast_sizes() -> None:
    algebra = Algebra()
    a, b = algebra.symbol("a", count=True), algebra.symbol("b", count=True)
    assert algebra.joined(a, a) == a
    assert algebra.joined(1, a) == a
    assert algebra.joined(a, 3) == 3
    assert algebra.joined(a, b) == algebra.joined(b, a) != a


# constant-shapes


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
    assert _agree(done, {"n": 1}, {"n": 3})


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
    assert _agree(done, {"n": 2, "m": 3}, {"n": 4, "m": 1})


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
    assert _agree(done, {"n": 1}, {"n": 2})


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
    assert _agree(done, {"n": 2}, {"n": 5})


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


# reshape-targets


def _viewed(kind: str) -> onnx.ModelProto:
    draft = Shapes()
    x, other = draft.input("x", ["n", "m", 12]), draft.input("other", ["n", "m"])
    y = draft.op("Neg", x)
    n, m = draft.dim(y, 0), draft.dim(y, 1)
    targets = {
        "heads": lambda: draft.shape(n, m, draft.ints(3, 4)),
        "inferred": lambda: draft.shape(n, m, draft.ints(-1), draft.ints(4)),
        "flattened": lambda: draft.shape(n, draft.ints(-1)),
        "moved": lambda: draft.shape(m, n, draft.ints(12)),
        "named alike": lambda: draft.shape(draft.dim(other, 0), draft.dim(other, 1), draft.ints(3, 4)),
        "product": lambda: draft.shape(draft.op("Mul", n, m), draft.ints(12)),
        "beside a copy": lambda: draft.shape(n, draft.op("Mul", m, draft.ints(12))),
        "halved": lambda: draft.shape(n, draft.op("Div", m, draft.ints(2)), draft.ints(24)),
    }
    draft.node("Reshape", [y, targets[kind]()], "y")
    draft.output("y", [None] * {"heads": 4, "inferred": 4, "named alike": 4, "moved": 3, "halved": 3}.get(kind, 2))
    return draft.model("viewed")


@pytest.mark.parametrize(
    ("kind", "left", "target"),
    [
        ("heads", "Reshape", [0, 0, 3, 4]),
        ("inferred", "Reshape", [0, 0, 3, 4]),
        ("flattened", "Flatten", None),
        ("product", "Reshape", [-1, 12]),
    ],
)
def test_targets_become_constant(kind: str, left: str, target: list[int] | None) -> None:
    done = rewritten(_viewed(kind), ReshapeTargets)
    assert done.ops == ["Neg", left]
    if target is not None:
        value = done.after.editor.constant(done.after.editor.nodes()[1].inputs[1])
        assert value is not None and value.tolist() == target
    assert _agree(done, {"n": 2, "m": 3}, {"n": 1, "m": 1})


@pytest.mark.parametrize("kind", ["moved", "named alike", "beside a copy", "halved"])
def test_targets_that_are_not_proven_stay(kind: str) -> None:
    assert not rewritten(_viewed(kind), ReshapeTargets).sites


def test_empty_batches_still_run() -> None:
    feed = {"x": np.zeros((0, 3, 12), np.float32), "other": np.zeros((0, 3), np.float32)}
    for kind in ("heads", "beside a copy"):
        assert distance(rewritten(_viewed(kind), *ALL), feed) == 0


def test_allowzero_stays() -> None:
    proto = _viewed("heads")
    proto.graph.node[-1].attribute.append(helper.make_attribute("allowzero", 1))
    assert not rewritten(proto, ReshapeTargets).sites


def test_expand_to_the_shape_there_is_goes() -> None:
    draft = Shapes()
    x = draft.op("Neg", draft.input("x", ["n", "m"]))
    same = draft.op("Expand", x, draft.shape(draft.ints(1), draft.dim(x, 1)))
    draft.node("Neg", [same], "y")
    draft.output("y", ["n", "m"])
    done = rewritten(draft.model("expand"), ReshapeTargets)
    assert done.ops == ["Neg", "Neg"]
    assert _agree(done, {"n": 2, "m": 3})


def test_reshape_to_the_shape_there_is_goes() -> None:
    draft = Shapes()
    x = draft.op("Neg", draft.input("x", ["n", "m"]))
    same = draft.op("Reshape", draft.op("Exp", x), draft.shape(draft.dim(x, 0), draft.dim(x, 1)))
    draft.node("Neg", [same], "y")
    draft.output("y", ["n", "m"])
    done = rewritten(draft.model("reshape"), ReshapeTargets)
    assert done.ops == ["Neg", "Exp", "Neg"]
    assert _agree(done, {"n": 2, "m": 3})


def test_expand_to_another_inputs_shape_stays() -> None:
    draft = Shapes()
    x, other = draft.input("x", ["n", "m"]), draft.input("other", ["n", "m"])
    draft.node("Expand", [draft.op("Neg", x), draft.op("Shape", other)], "y")
    draft.output("y", [None, None])
    done = rewritten(draft.model("expand"), ReshapeTargets)
    assert not done.sites
    assert distance(done, {"x": np.ones((1, 3), np.float32), "other": np.ones((2, 3), np.float32)}) == 0


# shared-shapes


def test_one_chain_for_all_places() -> None:
    draft = Shapes()
    x = draft.input("x", ["n", "m", 12])
    ends = []
    for tensor in (x, draft.op("Exp", draft.op("Neg", x))):
        n, m = draft.dim(tensor, 0), draft.dim(tensor, 1)
        flat = draft.op("Reshape", tensor, draft.ints(-1, 12))
        ends.append(draft.op("Reshape", flat, draft.shape(n, m, draft.ints(3, 4))))
    draft.node("Add", ends, "y")
    draft.output("y", ["n", "m", 3, 4])
    done = rewritten(draft.model("sites"), SharedShapes)
    assert {op: done.ops.count(op) for op in ("Shape", "Gather", "Concat")} == {"Shape": 1, "Gather": 2, "Concat": 1}
    assert _agree(done, {"n": 2, "m": 3}, {"n": 1, "m": 5})


def test_alike_named_dimensions_of_two_inputs_are_not_shared() -> None:
    draft = Shapes()
    x, other = draft.input("x", ["n", "m"]), draft.input("other", ["n", "m"])
    draft.node("Sub", [draft.op("Shape", x), draft.op("Shape", other)], "y")
    draft.output("y", [2], INT64)
    assert not rewritten(draft.model("inputs"), SharedShapes).sites


def test_broadcast_dimensions_are_not_shared_with_either_operand() -> None:
    draft = Shapes()
    x, other = draft.input("x", ["n", "m"]), draft.input("other", ["n", "m"])
    total = draft.op("Add", x, other)
    draft.node("Sub", [draft.op("Shape", total), draft.op("Shape", x)], "y")
    draft.output("y", [2], INT64)
    done = rewritten(draft.model("broadcast"), *ALL)
    assert not done.sites
    assert distance(done, {"x": np.ones((1, 3), np.float32), "other": np.ones((2, 3), np.float32)}) == 0


def test_a_shared_value_that_is_a_graph_output_stays() -> None:
    draft = Shapes()
    x = draft.input("x", ["n", 3])
    draft.node("Shape", [x], "first")
    draft.node("Shape", [draft.op("Neg", x)], "second")
    draft.output("first", [2], INT64)
    draft.output("second", [2], INT64)
    assert not rewritten(draft.model("outputs"), SharedShapes).sites


# Random shape arithmetic


@st.composite
def _models(draw: st.DrawFn) -> onnx.ModelProto:
    draft = Shapes(opset=draw(st.sampled_from([13, 17, 21])))
    x, other = draft.input("x", ["n", "m", 4, 3]), draft.input("other", ["n", "m"])
    same = draft.op("Neg", x)
    joined = draft.op("Add", draft.op("ReduceSum", x, draft.ints(2, 3), keepdims=0), other)
    parts = [draft.dim(t, k) for t, k in ((x, 0), (x, 1), (same, 0), (same, 2), (other, 1), (joined, 0))]
    for _ in range(draw(st.integers(1, 7))):
        op = draw(st.sampled_from(["Add", "Sub", "Mul", "Div", "Max", "Min", "Cast", "Pick", "Where", "Mod"]))
        a, b = draw(st.sampled_from(parts)), draw(st.sampled_from(parts))
        if op == "Cast":
            narrow = draft.op("Cast", a, to=TensorProto.INT32)
            parts.append(draft.op("Cast", narrow, to=INT64))
        elif op == "Pick":
            place = draw(st.integers(-2, 1))
            parts.append(draft.op("Gather", draft.shape(a, b), draft.ints(place), axis=0))
        elif op == "Where":
            minus = draft.ints(draw(st.sampled_from([-1, 2])))
            parts.append(draft.op("Where", draft.op("Equal", a, minus), b, a))
        elif op in ("Div", "Mod"):
            parts.append(draft.op(op, a, draw(st.sampled_from([*parts[:6], draft.ints(2)]))))
        else:
            parts.append(draft.op(op, a, b))
    draft.node("Reshape", [same, draft.shape(parts[2], parts[1], draft.ints(-1))], "y")
    draft.node("Identity", [draft.shape(*parts)], "z")
    draft.output("y", [None] * 3)
    draft.output("z", [len(parts)], INT64)
    return draft.model("random")


@settings(max_examples=examples(), deadline=None, derandomize=True)
@given(_models(), st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_random_arithmetic(proto: onnx.ModelProto, n: int, m: int, narrow: bool) -> None:
    done = rewritten(proto, *ALL)
    feed = {"x": np.ones((n, m, 4, 3), np.float32), "other": np.ones((1 if narrow else n, m), np.float32)}
    assert distance(done, feed) == 0


@settings(max_examples=examples() // 8, deadline=None, derandomize=True)
@given(_models())
def test_a_second_time_changes_nothing(proto: onnx.ModelProto) -> None:
    assert not rewritten(rewritten(proto, *ALL).after.to_proto(), *ALL).sites
