"""The pass `depthwise-shift`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.model.model import Model
from graphopt.passes.depthwise_shift import DepthwiseShift, ShiftAsDepthwise
from graphopt.passes.fuse.linear.scale_shift_before import ScaleShiftBefore
from graphopt.pipeline.registry import Registry
from graphopt.runtime.optimized import optimized_ops
from graphopt.testing.draft import Draft

from .fuse.harness import ROUNDING, distance, examples, rewritten
from .fuse.layers import Array, arithmetic, constant, finished, spread

Build = Callable[[Draft, str], list[str]]


def between(
    form: str = "x + c",
    value: Array | float = 0.5,
    *,
    before: tuple[str, ...] = ("HardSwish",),
    channels: int = 16,
    readers: int = 1,
) -> onnx.ModelProto:
    """Conv, activations, a shift, padded Convs."""
    draft = Draft()
    x = draft.conv(draft.input("x", ["n", 3, 9, 8]), "first", 3, channels)
    for index, op in enumerate(before):
        attributes = {"kernel_shape": [3, 3]} if op.endswith("Pool") else {}
        x = draft.node(op, [x], f"a{index}", **attributes)
    x = arithmetic(draft, form, x, np.asarray(value, np.float32), "shifted")
    return finished(draft, *(draft.conv(x, f"y{i}", channels, 4, bias=bool(i)) for i in range(readers)))


def test_it_is_registered_as_a_pass_of_its_own() -> None:
    assert Registry.discover().load("depthwise-shift") is DepthwiseShift
    assert DepthwiseShift.after == ("simplify", "fuse", "quantize")


@pytest.mark.parametrize("form", ["x + c", "c + x", "x - c"])
@pytest.mark.parametrize("shape", [(), (1,), (16, 1, 1), (1, 16, 1, 1)])
def test_a_shift_becomes_a_depthwise_conv(form: str, shape: tuple[int, ...]) -> None:
    done = rewritten(between(form, spread(np.random.default_rng(0), shape)), ShiftAsDepthwise)
    assert done.ops == ["Conv", "HardSwish", "Conv", "Conv"]
    assert done.rules == {"shift-as-depthwise": 1}
    assert done.after.editor.nodes()[2].attrs["group"] == 16
    assert distance(done, n=2) <= ROUNDING


@pytest.mark.parametrize("before", [(), ("Relu",), ("Sigmoid", "MaxPool"), ("AveragePool", "LeakyRelu")])
def test_what_keeps_the_layout_may_lie_between(before: tuple[str, ...]) -> None:
    done = rewritten(between(before=before, readers=2), ShiftAsDepthwise)
    assert done.rules == {"shift-as-depthwise": 1}
    assert distance(done, n=2) <= ROUNDING


def test_the_layout_is_kept() -> None:
    """What it is for: onnxruntime reorders the tensor out for the addition and in for the next Conv."""
    done = rewritten(between(channels=32), ShiftAsDepthwise)
    before, after = optimized_ops(done.before), optimized_ops(done.after)
    reorders = [k for k in before if "Reorder" in k]
    if not reorders:
        pytest.skip("this CPU has no blocked layout")
    assert sum(after[k] for k in reorders) < sum(before[k] for k in reorders)


def _other_reader(draft: Draft, x: str) -> list[str]:
    return [draft.conv(x, "y", 16, 4), draft.node("Relu", [x], "r", name="relu")]


def _graph_output(draft: Draft, x: str) -> list[str]:
    return [draft.conv(x, "y", 16, 4), x]


def _weight_from_outside(draft: Draft, x: str) -> list[str]:
    return [draft.node("Conv", [x, draft.input("w", [4, 16, 3, 3])], "y", name="layer")]


def _quantized_weight(draft: Draft, x: str) -> list[str]:
    names = [constant(draft, "w", np.ones((4, 16, 1, 1), np.int8)), constant(draft, "scale", np.float32(0.1))]
    return [draft.node("Conv", [x, draft.node("DequantizeLinear", names, "dq")], "y", name="layer")]


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (_other_reader, "relu reads it too and is no Conv with a constant float weight"),
        (_graph_output, "shifted is a graph output"),
        (_weight_from_outside, "layer reads it too and is no Conv with a constant float weight"),
        (_quantized_weight, "layer reads it too and is no Conv with a constant float weight"),
    ],
)
def test_other_readers_keep_it_with_a_reason(build: Build, reason: str) -> None:
    draft = Draft()
    x = draft.node("Relu", [draft.conv(draft.input("x", ["n", 3, 9, 8]), "first", 3, 16)], "a")
    x = arithmetic(draft, "x + c", x, np.float32(0.5), "shifted")
    done = rewritten(finished(draft, *build(draft, x)), ShiftAsDepthwise)
    assert not done.sites
    assert done.reasons("shift-as-depthwise") == [reason]


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (between(value=np.ones((9, 8))), "its constant is not one number per channel"),
        (between(value=np.ones(8)), "its constant is not one number per channel"),
        (between(channels=12), "12 channels are no multiple of 8: they have no blocked layout"),
    ],
)
def test_near_misses_stay_with_a_reason(proto: onnx.ModelProto, reason: str) -> None:
    done = rewritten(proto, ShiftAsDepthwise)
    assert not done.sites
    assert done.reasons("shift-as-depthwise") == [reason]


@pytest.mark.parametrize("form", ["x * c", "c - x", "x / c"])
def test_a_scale_is_not_its_business(form: str) -> None:
    assert not rewritten(between(form), ShiftAsDepthwise).sites


def test_a_shift_of_an_input_stays() -> None:
    draft = Draft()
    x = arithmetic(draft, "x - c", draft.input("x", ["n", 16, 9, 8]), np.float32(0.5), "shifted")
    assert not rewritten(finished(draft, draft.conv(x, "y", 16, 4)), ShiftAsDepthwise).sites


def test_quantized_values_stay() -> None:
    draft = Draft()
    x = draft.conv(draft.input("x", ["n", 3, 9, 8]), "first", 3, 16)
    names = [constant(draft, "scale", np.float32(0.1)), constant(draft, "zero", np.int8(0))]
    x = draft.node("DequantizeLinear", [draft.node("QuantizeLinear", [x, *names], "q"), *names], "dq")
    x = arithmetic(draft, "x + c", x, np.float32(0.5), "shifted")
    assert not rewritten(finished(draft, draft.conv(x, "y", 16, 4)), ShiftAsDepthwise).sites


def test_a_shift_that_can_be_folded_is_folded_first() -> None:
    draft = Draft()
    x = draft.node("Relu", [draft.conv(draft.input("x", ["n", 3, 9, 8]), "first", 3, 16)], "a")
    x = arithmetic(draft, "x + c", x, np.float32(0.5), "shifted")
    done = rewritten(finished(draft, draft.conv(x, "y", 16, 4, kernel=1)), ScaleShiftBefore)
    assert not rewritten(done.after.to_proto(), ShiftAsDepthwise).sites


def test_a_second_run_changes_nothing() -> None:
    done = rewritten(between(), ShiftAsDepthwise)
    again = Model.from_proto(done.after.to_proto()).to_proto()
    assert not rewritten(again, ShiftAsDepthwise).sites


@settings(max_examples=examples(), deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**16),
    form=st.sampled_from(["x + c", "c + x", "x - c"]),
    wide=st.booleans(),
    channels=st.sampled_from([8, 16, 24]),
    before=st.lists(st.sampled_from(["Relu", "HardSwish", "Sigmoid", "MaxPool", "Neg"]), max_size=2),
    readers=st.integers(1, 2),
)
def test_random_graphs_stay_within_rounding(
    seed: int, form: str, wide: bool, channels: int, before: list[str], readers: int
) -> None:
    value = spread(np.random.default_rng(seed), (channels, 1, 1) if wide else (), 0.1)
    proto = between(form, value, before=tuple(before), channels=channels, readers=readers)
    done = rewritten(proto, ShiftAsDepthwise)
    assert bool(done.sites) == ("Neg" not in before)
    assert distance(done, n=2) <= ROUNDING
