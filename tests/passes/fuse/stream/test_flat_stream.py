"""Rule `flat-stream`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from graphopt.passes.fuse.shapes.reshape_targets import ReshapeTargets
from graphopt.passes.fuse.shapes.shared_shapes import SharedShapes
from graphopt.passes.fuse.stream.flat_stream import FlatStream
from graphopt.testing.draft import Draft
from tests.passes.fuse.harness import ROUNDING, distance, examples, rewritten

Size = int | str
WIDTH = 8


class Layers(Draft):
    """A draft with the parts of a transformer."""

    count = 0

    def op(self, op: str, *inputs: str, **attributes: object) -> str:
        """A node under a fresh name."""
        self.count += 1
        return self.node(op, list(inputs), f"{op.lower()}{self.count}", **attributes)

    def row(self, width: int) -> str:
        """A constant of one row."""
        self.count += 1
        return self.weight(f"row{self.count}", width, scale=0.5)

    def linear(self, x: str, width_in: int, width_out: int, *, bias: bool = True) -> str:
        """MatMul, and the bias it comes with."""
        self.count += 1
        y = self.op("MatMul", x, self.weight(f"w{self.count}", width_in, width_out))
        return self.op("Add", self.row(width_out), y) if bias else y

    def norm(self, x: str, width: int = WIDTH) -> str:
        """LayerNormalization over the last axis."""
        return self.op("LayerNormalization", x, self.row(width), self.row(width), axis=-1)

    def heads(self, x: str, tokens: Sequence[int]) -> str:
        """[B, S, 8] → [B, S, 2, 4] with a computed target, then transposed."""
        self.count += 1
        shape = self.op("Shape", x)
        first = self.const(f"first{self.count}", np.array([0, 1], np.int64))
        tail = self.const(f"tail{self.count}", np.array([2, 4], np.int64))
        target = self.op("Concat", self.op("Gather", shape, first, axis=0), tail, axis=0)
        return self.op("Transpose", self.op("Reshape", x, target), perm=list(tokens))

    def attention(self, x: str) -> str:
        """Two heads of attention over ``x``."""
        query, key, value = (self.linear(x, WIDTH, WIDTH) for _ in range(3))
        scores = self.op("MatMul", self.heads(query, [0, 2, 1, 3]), self.heads(key, [0, 2, 3, 1]))
        context = self.op("MatMul", self.op("Softmax", scores, axis=-1), self.heads(value, [0, 2, 1, 3]))
        self.count += 1
        merged = self.const(f"merged{self.count}", np.array([0, 0, WIDTH], np.int64))
        return self.linear(self.op("Reshape", self.op("Transpose", context, perm=[0, 2, 1, 3]), merged), WIDTH, WIDTH)

    def block(self, x: str) -> str:
        """One encoder layer."""
        x = self.norm(self.op("Add", self.attention(x), x))
        inner = self.op("Tanh", self.linear(x, WIDTH, 16))
        return self.norm(self.op("Add", self.linear(inner, 16, WIDTH), x))


def _encoder(batch: Size, tokens: Size, blocks: int = 2) -> onnx.ModelProto:
    draft = Layers()
    x = draft.norm(draft.input("x", [batch, tokens, WIDTH]))
    for _ in range(blocks):
        x = draft.block(x)
    draft.node("Neg", [draft.op("ReduceMean", x, axes=[1], keepdims=0)], "y")
    draft.output("y", [batch, WIDTH])
    return draft.model("encoder")


@pytest.mark.parametrize(("batch", "tokens"), [("n", "m"), ("n", 5), (2, "m"), (2, 5)])
def test_an_encoder_works_on_matrices(batch: Size, tokens: Size) -> None:
    done = rewritten(_encoder(batch, tokens), ReshapeTargets, SharedShapes, FlatStream)
    assert done.rules["flat-stream"] == 1
    assert done.ops.count("Gemm") == 12
    assert done.ops.count("Reshape") == 2 + 2 * 4
    assert done.ops.count("Shape") == (1 if (batch, tokens) == ("n", "m") else 0)
    for n, m in ((1, 3), (2, 5)):
        assert distance(done, n=n, m=m) <= ROUNDING


def test_a_second_time_changes_nothing() -> None:
    done = rewritten(_encoder("n", "m"), ReshapeTargets, SharedShapes, FlatStream)
    assert not rewritten(done.after.to_proto(), ReshapeTargets, SharedShapes, FlatStream).sites


def test_an_empty_batch_still_runs() -> None:
    done = rewritten(_encoder("n", 5), FlatStream)
    assert distance(done, {"x": np.zeros((0, 5, WIDTH), np.float32)}) == 0


def _chain(*, opset: int = 17, shown: bool = False) -> Layers:
    """linear → Tanh → linear; ``shown``: the middle is a graph output."""
    draft = Layers(opset=opset)
    middle = draft.op("Tanh", draft.linear(draft.input("x", ["n", "m", WIDTH]), WIDTH, 16))
    y = draft.linear(middle, 16, WIDTH)
    draft.node("Relu", [y], "y")
    draft.output("y", ["n", "m", WIDTH])
    if shown:
        draft.node("Abs", [middle], "z")
        draft.output("z", ["n", "m", 16])
        draft.node("ReduceSum", [middle], "s", keepdims=0)
        draft.output("s", [])
    return draft


@pytest.mark.parametrize("opset", [9, 13, 17])
def test_layers_between_graph_input_and_output(opset: int) -> None:
    done = rewritten(_chain(opset=opset).model("chain"), FlatStream)
    assert done.ops.count("Gemm") == 2
    assert "MatMul" not in done.ops
    assert done.after.opset == max(opset, 14)
    assert distance(done, n=2, m=3) <= ROUNDING


@pytest.mark.parametrize("opset", [9, 13, 17])
@pytest.mark.parametrize("sizes", [(0, 3), (2, 0), (0, 0)])
def test_empty_dimensions_keep_their_places(opset: int, sizes: tuple[int, int]) -> None:
    done = rewritten(_chain(opset=opset).model("chain"), FlatStream)
    assert distance(done, {"x": np.zeros((*sizes, WIDTH), np.float32)}) == 0


@pytest.mark.parametrize("sizes", [(0, 3), (2, 0)])
def test_an_empty_dimension_reaches_views_that_start_from_the_matrix(sizes: tuple[int, int]) -> None:
    draft = Layers()
    x = draft.linear(draft.linear(draft.input("x", ["n", "m", WIDTH]), WIDTH, WIDTH), WIDTH, WIDTH)
    draft.node("Neg", [draft.heads(x, [0, 2, 1, 3])], "y")
    draft.output("y", ["n", 2, "m", 4])
    done = rewritten(draft.model("heads"), FlatStream)
    assert done.rules["flat-stream"] == 1
    assert distance(done, {"x": np.zeros((*sizes, WIDTH), np.float32)}) == 0


@pytest.mark.parametrize("tokens", ["m", 3])
def test_an_opset_that_cannot_be_raised_is_refused_where_it_is_needed(tokens: Size) -> None:
    draft = Layers(opset=10)
    x = draft.linear(draft.linear(draft.input("x", ["n", tokens, WIDTH]), WIDTH, WIDTH), WIDTH, WIDTH)
    draft.node("Resize", [x, draft.input("scales", [3])], "y", mode="nearest")
    draft.output("y", ["h", "w", "c"])
    done = rewritten(draft.model("resize"), FlatStream)
    assert len(done.sites) == (tokens == 3)
    assert done.after.opset == 10
    reasons = done.reasons("flat-stream")
    assert "opset 14" in reasons[0] if tokens == "m" else not reasons


def test_what_others_read_is_given_back() -> None:
    done = rewritten(_chain(shown=True).model("shown"), FlatStream)
    assert not done.sites
    assert done.reasons("flat-stream") == ["4 Reshapes would be added for 2 products"]
    draft = _chain(shown=True)
    for _ in range(2):
        draft.node("Identity", [draft.linear("y", WIDTH, WIDTH)], f"more{draft.count}")
        draft.output(f"more{draft.count}", ["n", "m", WIDTH])
    done = rewritten(draft.model("shown"), FlatStream)
    assert distance(done, n=2, m=3) <= ROUNDING


def test_a_lone_linear_stays() -> None:
    draft = Layers()
    draft.node("Relu", [draft.linear(draft.input("x", ["n", "m", WIDTH]), WIDTH, WIDTH)], "y")
    draft.output("y", ["n", "m", WIDTH])
    assert not rewritten(draft.model("lone"), FlatStream).sites


def test_products_of_computed_matrices_stay() -> None:
    draft = Layers()
    x, w = draft.input("x", ["n", "m", WIDTH]), draft.input("w", [WIDTH, WIDTH])
    draft.node("MatMul", [draft.op("Tanh", draft.op("MatMul", x, w)), w], "y")
    draft.output("y", ["n", "m", WIDTH])
    assert not rewritten(draft.model("computed"), FlatStream).sites


def test_other_types_stay() -> None:
    draft = Layers()
    x = draft.input("x", ["n", "m", 2], TensorProto.DOUBLE)
    w = draft.const("w", np.eye(2))
    draft.node("MatMul", [draft.op("Tanh", draft.op("MatMul", x, w)), w], "y")
    draft.output("y", ["n", "m", 2], TensorProto.DOUBLE)
    assert not rewritten(draft.model("double"), FlatStream).sites


def test_operands_along_leading_dimensions_end_the_stream() -> None:
    draft = Layers()
    x, other = draft.input("x", ["n", 3, WIDTH]), draft.input("other", ["n", 3, WIDTH])
    x = draft.linear(draft.linear(x, WIDTH, WIDTH), WIDTH, WIDTH)
    x = draft.op("Mul", draft.op("Add", x, draft.weight("along", 3, 1)), other)
    draft.node("Tanh", [draft.linear(draft.linear(x, WIDTH, WIDTH), WIDTH, WIDTH)], "y")
    draft.output("y", [None, 3, WIDTH])
    done = rewritten(draft.model("along"), FlatStream)
    assert done.rules["flat-stream"] == 2
    assert done.ops.count("Reshape") == 4
    assert distance(done, {"x": np.ones((2, 3, 8), np.float32), "other": np.ones((1, 3, 8), np.float32)}) <= ROUNDING


def test_softmax_over_another_axis_stays_outside() -> None:
    draft = Layers()
    x = draft.linear(draft.linear(draft.input("x", ["n", 3, WIDTH]), WIDTH, WIDTH), WIDTH, WIDTH)
    draft.node("Softmax", [x], "y", axis=1)
    draft.output("y", ["n", 3, WIDTH])
    done = rewritten(draft.model("softmax"), FlatStream)
    assert done.ops[-1] == "Softmax"
    assert distance(done, n=2) <= ROUNDING


def test_a_body_reads_the_stream_in_its_old_form() -> None:
    draft = Layers()
    draft.input("flag", [], TensorProto.BOOL)
    x = draft.linear(draft.linear(draft.input("x", ["n", "m", WIDTH]), WIDTH, WIDTH), WIDTH, WIDTH)
    bodies = [
        helper.make_graph(
            [helper.make_node(op, [x], [f"{op}_out"])],
            op,
            [],
            [helper.make_tensor_value_info(f"{op}_out", TensorProto.FLOAT, None)],
        )
        for op in ("Abs", "Exp")
    ]
    draft.node("If", ["flag"], "y", then_branch=bodies[0], else_branch=bodies[1])
    draft.output("y", ["n", "m", WIDTH])
    done = rewritten(draft.model("body"), FlatStream)
    assert done.rules["flat-stream"] == 1
    feed = {"x": np.ones((2, 3, WIDTH), np.float32), "flag": np.array(False)}
    assert distance(done, feed) <= ROUNDING


@st.composite
def _streams(draw: st.DrawFn) -> onnx.ModelProto:
    draft = Layers(draw(st.integers(0, 9)), opset=draw(st.sampled_from([13, 17, 20])))
    batch = draw(st.sampled_from(["n", 2]))
    tokens = draw(st.sampled_from(["m", 3]))
    tensors = [draft.input("x", [batch, tokens, WIDTH])]
    for _ in range(draw(st.integers(2, 9))):
        x = draw(st.sampled_from(tensors[-3:]))
        kind = draw(
            st.sampled_from(["linear", "linear", "bare", "norm", "Tanh", "Softmax", "row", "Add", "number", "heads"])
        )
        tensors.append(_step(draft, kind, x, draw(st.sampled_from(tensors))))
    for place in {len(tensors) - 1, draw(st.integers(1, len(tensors) - 1))}:
        draft.node("Identity", [tensors[place]], f"y{place}")
        draft.output(f"y{place}", [batch, tokens, WIDTH])
    return draft.model("random")


def _step(draft: Layers, kind: str, x: str, other: str) -> str:
    draft.count += 1
    if kind in ("linear", "bare"):
        return draft.linear(x, WIDTH, WIDTH, bias=kind == "linear")
    if kind == "norm":
        return draft.norm(x) if draft.opset >= 17 else draft.op("Softplus", x)
    if kind == "Tanh":
        return draft.op("Tanh", x)
    if kind == "Softmax":
        return draft.op("Softmax", x, axis=draft.count % 2 - 2)
    if kind == "row":
        return draft.op("Mul", x, draft.weight(f"scale{draft.count}", 1, 1, WIDTH, scale=1.0))
    if kind == "Add":
        return draft.op("Add", x, other)
    if kind == "number":
        return draft.op("Add", x, draft.weight(f"along{draft.count}", 1, 1, 1, scale=1.0))
    heads = draft.const(f"heads{draft.count}", np.array([0, 0, 2, 4], np.int64))
    back = draft.const(f"back{draft.count}", np.array([0, 0, WIDTH], np.int64))
    return draft.op("Reshape", draft.op("Softmax", draft.op("Reshape", x, heads), axis=-1), back)


@settings(max_examples=examples(), deadline=None, derandomize=True)
@given(_streams(), st.integers(1, 3))
def test_random_streams(proto: onnx.ModelProto, tokens: int) -> None:
    done = rewritten(proto, ReshapeTargets, SharedShapes, FlatStream)
    assert distance(done, n=2, m=tokens) <= ROUNDING
