"""Rule `shared-shapes`."""

from __future__ import annotations

import numpy as np

from graphopt.passes.fuse.shapes.shared_shapes import SharedShapes
from tests.passes.fuse.harness import distance, rewritten

from .shape_cases import ALL, INT64, Shapes, agree


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
    assert agree(done, {"n": 2, "m": 3}, {"n": 1, "m": 5})


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
