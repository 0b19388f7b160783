"""Rule `compose-transposes`."""

from __future__ import annotations

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from graphopt.passes.fuse.views.compose_transposes import ComposeTransposes
from graphopt.testing.draft import Draft
from tests.passes.fuse.harness import distance, examples, rewritten


def _chain(*perms: list[int] | None, also: int | None = None) -> onnx.ModelProto:
    """Neg → Transposes → Neg; ``also``: the Transpose whose result is read once more."""
    draft = Draft()
    x = draft.node("Neg", [draft.input("x", ["n", 2, 3, 4])], "before")
    for place, perm in enumerate(perms):
        x = draft.node("Transpose", [x], f"t{place}", **({} if perm is None else {"perm": perm}))
        if place == also:
            draft.node("Abs", [x], "z")
            draft.output("z", [None] * 4)
    draft.node("Neg", [x], "y")
    draft.output("y", [None] * 4)
    return draft.model("transposes")


def test_two_become_one() -> None:
    done = rewritten(_chain([0, 2, 3, 1], [1, 0, 2, 3]), ComposeTransposes)
    assert done.ops == ["Neg", "Transpose", "Neg"]
    assert done.after.editor.nodes()[1].attrs["perm"] == [2, 0, 3, 1]
    assert distance(done, n=2) == 0


@pytest.mark.parametrize("perms", [([0, 2, 3, 1], [0, 3, 1, 2]), (None, None), (None, [3, 2, 1, 0])])
def test_two_that_cancel_go(perms: tuple[list[int] | None, ...]) -> None:
    done = rewritten(_chain(*perms), ComposeTransposes)
    assert done.ops == ["Neg", "Neg"]
    assert distance(done, n=2) == 0


def test_the_inner_result_is_kept_for_others() -> None:
    done = rewritten(_chain([0, 2, 3, 1], [1, 0, 2, 3], also=0), ComposeTransposes)
    assert done.reasons("compose-transposes") == ["the output of t0/Transpose has another user or is a graph output"]
    done = rewritten(_chain([0, 2, 3, 1], [0, 3, 1, 2], also=0), ComposeTransposes)
    assert done.ops == ["Neg", "Transpose", "Abs", "Neg"]
    assert distance(done, n=2) == 0


def test_an_inner_graph_output_is_kept() -> None:
    proto = _chain([0, 2, 3, 1], [1, 0, 2, 3])
    proto.graph.output.append(helper.make_tensor_value_info("t0", TensorProto.FLOAT, ["n", 3, 4, 2]))
    assert not rewritten(proto, ComposeTransposes).sites


def test_between_graph_input_and_output_one_is_left() -> None:
    draft = Draft()
    inner = draft.node("Transpose", [draft.input("x", [2, 3])], "inner", perm=[1, 0])
    draft.node("Transpose", [inner], "y", perm=[1, 0])
    draft.output("y", [2, 3])
    done = rewritten(draft.model("ends"), ComposeTransposes)
    assert done.ops == ["Transpose"]
    assert distance(done) == 0


@settings(max_examples=examples(), deadline=None, derandomize=True)
@given(
    st.lists(st.one_of(st.none(), st.permutations(range(4)).map(list)), min_size=1, max_size=4),
    st.one_of(st.none(), st.integers(0, 3)),
)
def test_random_chains(perms: list[list[int] | None], also: int | None) -> None:
    done = rewritten(_chain(*perms, also=also), ComposeTransposes)
    assert distance(done, n=2) == 0
    if also is None or also >= len(perms):
        assert done.ops.count("Transpose") <= 1
