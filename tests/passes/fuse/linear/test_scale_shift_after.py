"""Rule `scale-shift-after`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from graphopt.passes.fuse.linear.scale_shift_after import ScaleShiftAfter
from graphopt.passes.fuse.linear.scale_shift_before import ScaleShiftBefore
from graphopt.pipeline.fold_batchnorm import FoldBatchNorm
from graphopt.testing.draft import Draft
from tests.passes.fuse.harness import ROUNDING, distance, examples, rewritten
from tests.passes.fuse.layers import (
    ALL,
    BARE,
    FORMS,
    FREE,
    PADDED,
    SCALES,
    Kind,
    arithmetic,
    constant,
    finished,
    spread,
)

Change = Callable[[Draft, str], Any]


def behind(kind: Kind, *forms: str, shape: tuple[int, ...] | None = None, seed: int = 0) -> onnx.ModelProto:
    """The layer with arithmetic behind it, by one constant per output channel unless ``shape`` is given."""
    draft = Draft(seed)
    y = kind.build(draft, draft.input("x", kind.x), "z")
    for index, form in enumerate(forms):
        value = spread(draft.rng, kind.behind if shape is None else shape)
        y = arithmetic(draft, form, y, value, f"y{index}")
    return finished(draft, y)


def layer_ops(kind: Kind) -> list[str]:
    return [kind.op, kind.added] if kind.added else [kind.op]


@pytest.mark.parametrize("name", [*FREE, *PADDED])
@pytest.mark.parametrize("form", FORMS)
def test_one_number_per_channel_folds(name: str, form: str) -> None:
    done = rewritten(behind(ALL[name], form), ScaleShiftAfter)
    assert done.ops == layer_ops(ALL[name])
    assert done.rules == {"scale-shift-after": 1}
    assert distance(done, n=2) <= ROUNDING


@pytest.mark.parametrize("name", ["conv", "gemm", "matmul and bias"])
@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("form", FORMS)
def test_one_number_folds(name: str, shape: tuple[int, ...], form: str) -> None:
    done = rewritten(behind(ALL[name], form, shape=shape), ScaleShiftAfter)
    assert done.ops == layer_ops(ALL[name])
    assert distance(done, n=2) <= ROUNDING


def test_a_bare_product_takes_a_scale_and_leaves_a_shift() -> None:
    assert rewritten(behind(BARE["matmul"], "x / c"), ScaleShiftAfter).ops == ["MatMul"]
    for form in ("x + c", "x - c", "c - x"):
        done = rewritten(behind(BARE["matmul"], form), ScaleShiftAfter)
        assert done.ops == ["MatMul", FORMS[form][0]]
        assert not done.skips


def test_a_chain_folds_to_a_fixed_point() -> None:
    for kind in (ALL["conv"], BARE["matmul"]):
        done = rewritten(behind(kind, "x * c", "x + c", "x / c", "c - x", "x - c"), ScaleShiftAfter)
        assert done.ops == ([kind.op] if kind.op == "Conv" else ["MatMul", "Add"])
        assert distance(done, n=2) <= ROUNDING


def test_the_new_weights_are_rounded_once() -> None:
    proto = behind(ALL["conv"], "x / c")
    values = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in proto.graph.initializer}
    done = rewritten(proto, ScaleShiftAfter)
    weight = done.after.editor.constant(done.after.editor.nodes()[0].inputs[1])
    expected = (values["z.w"] * (1 / values["y0.c"]).reshape(4, 1, 1, 1)).astype(np.float32)
    np.testing.assert_array_equal(weight, expected)


def test_a_batch_norm_behind_a_shift_folds_too() -> None:
    """As exporters write a ConvTranspose: its bias is an Add, and the normalization comes behind that."""
    draft = Draft()
    z = PADDED["transposed"].build(draft, draft.input("x", ["n", 6, 5, 4]), "z")
    shifted = arithmetic(draft, "x + c", z, spread(draft.rng, (1, 4, 1, 1)), "shifted")
    done = rewritten(finished(draft, draft.batch_norm(shifted, "y", 4)), ScaleShiftAfter, FoldBatchNorm)
    assert done.ops == ["ConvTranspose"]
    assert distance(done, n=2) <= ROUNDING


def test_a_weight_that_layers_share_is_copied() -> None:
    draft = Draft()
    kind = Kind("Conv", (6, 6, 1, 1), ("n", 6, 5, 4), (6, 1, 1), (6, 1, 1))
    shared = constant(draft, "w", spread(draft.rng, kind.weight))
    first = kind.build(draft, draft.input("x", kind.x), "z", shared)
    scaled = arithmetic(draft, "x * c", first, spread(draft.rng, (6, 1, 1)), "scaled")
    done = rewritten(finished(draft, kind.build(draft, scaled, "y", shared)), ScaleShiftAfter)
    assert done.ops == ["Conv", "Conv"]
    assert distance(done, n=2) <= ROUNDING


def test_a_large_shared_weight_is_not_stored_twice() -> None:
    draft = Draft()
    shared = constant(draft, "w", spread(draft.rng, (512, 513)))
    y = draft.node("MatMul", [draft.input("x", ["n", 512]), shared], "z", name="layer")
    arithmetic(draft, "x * c", y, spread(draft.rng, ()), "y")
    draft.node("Neg", [shared], "also")
    done = rewritten(finished(draft, "y", "also"), ScaleShiftAfter)
    assert done.reasons("scale-shift-after") == [
        "the weight of layer has other users and would have to be stored twice"
    ]


def near_miss(change: Change, kind: Kind = ALL["conv"]) -> onnx.ModelProto:
    draft = Draft()
    z = kind.build(draft, draft.input("x", kind.x), "z")
    return finished(draft, change(draft, z))


def _other_user(draft: Draft, z: str) -> str:
    y = arithmetic(draft, "x * c", z, spread(draft.rng, (4, 1, 1)), "y")
    return draft.node("Add", [draft.node("Neg", [z], "n"), y], "both")


def _graph_output(draft: Draft, z: str) -> str:
    draft.output("z", ["n", 4, 3, 2])
    return arithmetic(draft, "x * c", z, spread(draft.rng, (4, 1, 1)), "y")


def _on_the_last_axis(draft: Draft, z: str) -> str:
    return arithmetic(draft, "x * c", z, spread(draft.rng, (2,)), "y")


def _per_channel_and_row(draft: Draft, z: str) -> str:
    return arithmetic(draft, "x * c", z, spread(draft.rng, (4, 3, 1)), "y")


def _widening(draft: Draft, z: str) -> str:
    return arithmetic(draft, "x * c", z, spread(draft.rng, (1, 1, 4, 1, 1)), "y")


def _overflowing(draft: Draft, z: str) -> str:
    return arithmetic(draft, "x * c", z, np.full((4, 1, 1), 3e38, np.float32), "y")


FIT = "its constant is not one number per output channel of z.layer"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_other_user, "the output of z.layer has another user or is a graph output"),
        (_graph_output, "the output of z.layer has another user or is a graph output"),
        (_on_the_last_axis, FIT),
        (_per_channel_and_row, FIT),
        (_widening, FIT),
        (_overflowing, "the folded weights of z.layer are out of the range of float32"),
    ],
)
def test_near_misses_stay_with_a_reason(change: Change, reason: str) -> None:
    done = rewritten(near_miss(change), ScaleShiftAfter)
    assert not done.sites
    assert done.reasons("scale-shift-after") == [reason]


def _from_outside(draft: Draft, z: str) -> str:
    return draft.node("Mul", [z, draft.input("c", [4, 1, 1])], "y")


def _divided_by_zero(draft: Draft, z: str) -> str:
    return arithmetic(draft, "x / c", z, np.array([1, 0, 2, 3], np.float32).reshape(4, 1, 1), "y")


def _divisor(draft: Draft, z: str) -> str:
    return draft.node("Div", [constant(draft, "c", spread(draft.rng, (4, 1, 1))), z], "y")


def _infinite(draft: Draft, z: str) -> str:
    return arithmetic(draft, "x + c", z, np.full((4, 1, 1), np.inf, np.float32), "y")


def _behind_an_activation(draft: Draft, z: str) -> str:
    return arithmetic(draft, "x * c", draft.node("Relu", [z], "r"), spread(draft.rng, (4, 1, 1)), "y")


@pytest.mark.parametrize("change", [_from_outside, _divided_by_zero, _divisor, _infinite, _behind_an_activation])
def test_what_is_no_constant_scale_or_shift_stays(change: Change) -> None:
    assert not rewritten(near_miss(change), ScaleShiftAfter).sites


def test_a_channel_count_of_one_is_not_widened() -> None:
    kind = Kind("Conv", (1, 6, 3, 3), ("n", 6, 5, 4), (6, 1, 1), (1, 1, 1))
    done = rewritten(behind(kind, "x * c", shape=(8, 1, 1)), ScaleShiftAfter)
    assert done.reasons("scale-shift-after") == [FIT]


@pytest.mark.parametrize("where", ["w", "b"])
def test_parameters_from_outside_stay(where: str) -> None:
    draft = Draft()
    names = {"w": [4, 6, 1, 1], "b": [4]}
    inputs = [draft.input(n, s) if n == where else draft.weight(n, *s) for n, s in names.items()]
    z = draft.node("Conv", [draft.input("x", ["n", 6, 5, 4]), *inputs], "z", name="layer")
    done = rewritten(finished(draft, arithmetic(draft, "x * c", z, np.float32([2.0]), "y")), ScaleShiftAfter)
    assert not done.sites


def test_half_precision_stays() -> None:
    proto = behind(ALL["conv"], "x * c")
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    assert not rewritten(proto, ScaleShiftAfter).sites


def random_chain(draft: Draft, x: str, shape: tuple[int, ...], forms: list[str], channels: list[bool]) -> str:
    """Arithmetic in a row, each by one number or one per channel."""
    for index, (form, per_channel) in enumerate(zip(forms, channels, strict=True)):
        value = spread(draft.rng, shape if per_channel else (1,), 0.0 if form == "x / c" else 0.1)
        x = arithmetic(draft, form, x, value, f"{x}{index}")
    return x


@settings(max_examples=examples(), deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**16),
    name=st.sampled_from(sorted(ALL)),
    chain=st.lists(st.tuples(st.sampled_from(sorted(FORMS)), st.booleans()), min_size=1, max_size=3),
    cut=st.booleans(),
)
def test_random_graphs_stay_within_rounding(seed: int, name: str, chain: list[tuple[str, bool]], cut: bool) -> None:
    kind = ALL[name]
    draft = Draft(seed)
    z = kind.build(draft, draft.input("x", kind.x), "z")
    y = random_chain(draft, z, kind.behind, [form for form, _ in chain], [wide for _, wide in chain])
    if cut:
        draft.node("Neg", [z], "also")
    done = rewritten(finished(draft, y, *(["also"] if cut else [])), ScaleShiftAfter, ScaleShiftBefore)
    assert distance(done, n=2) <= ROUNDING
    if not cut and (name in FREE or name in PADDED):
        assert done.ops == layer_ops(kind)
    if not cut and name in BARE and all(form in SCALES for form, _ in chain):
        assert done.ops == ["MatMul"]
