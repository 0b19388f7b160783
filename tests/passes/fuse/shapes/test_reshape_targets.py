"""Rule `reshape-targets`."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from graphopt.passes.fuse.shapes.reshape_targets import ReshapeTargets
from tests.passes.fuse.harness import distance, examples, rewritten

from .shape_cases import ALL, Shapes, agree


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
    assert agree(done, {"n": 2, "m": 3}, {"n": 1, "m": 1})


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
    assert agree(done, {"n": 2, "m": 3})


def test_reshape_to_the_shape_there_is_goes() -> None:
    draft = Shapes()
    x = draft.op("Neg", draft.input("x", ["n", "m"]))
    same = draft.op("Reshape", draft.op("Exp", x), draft.shape(draft.dim(x, 0), draft.dim(x, 1)))
    draft.node("Neg", [same], "y")
    draft.output("y", ["n", "m"])
    done = rewritten(draft.model("reshape"), ReshapeTargets)
    assert done.ops == ["Neg", "Exp", "Neg"]
    assert agree(done, {"n": 2, "m": 3})


def test_expand_to_another_inputs_shape_stays() -> None:
    draft = Shapes()
    x, other = draft.input("x", ["n", "m"]), draft.input("other", ["n", "m"])
    draft.node("Expand", [draft.op("Neg", x), draft.op("Shape", other)], "y")
    draft.output("y", [None, None])
    done = rewritten(draft.model("expand"), ReshapeTargets)
    assert not done.sites
    assert distance(done, {"x": np.ones((1, 3), np.float32), "other": np.ones((2, 3), np.float32)}) == 0


@st.composite
def _random_targets(draw: st.DrawFn) -> onnx.ModelProto:
    """A Reshape to the dimensions of x, or of another input, in some order, merged, split and inferred."""
    draft = Shapes(opset=draw(st.sampled_from([11, 13, 17])))
    x, other = draft.input("x", ["n", "m", 12]), draft.input("other", ["n", "m"])
    y = draft.op("Neg", x)
    sources = [y if draw(st.booleans()) else other for _ in range(2)]
    parts = [draft.dim(sources[0], 0), draft.dim(sources[1], 1), draft.ints(draw(st.sampled_from([1, 3])))]
    parts.append(draft.op("Div", draft.dim(y, 2), parts[2]))
    if draw(st.booleans()):
        parts = draw(st.permutations(parts))
    if draw(st.booleans()):
        place = draw(st.integers(0, 2))
        parts[place : place + 2] = [draft.op("Mul", parts[place], parts[place + 1])]
    if draw(st.booleans()):
        parts[draw(st.integers(0, len(parts) - 1))] = draft.ints(-1)
    draft.node("Reshape", [y, draft.shape(*parts)], "y")
    draft.output("y", [None] * len(parts))
    return draft.model("random")


@settings(max_examples=examples(), deadline=None, derandomize=True)
@given(_random_targets(), st.integers(1, 3), st.integers(1, 3))
def test_random_targets(proto: onnx.ModelProto, n: int, m: int) -> None:
    assert distance(rewritten(proto, ReshapeTargets), n=n, m=m) == 0
