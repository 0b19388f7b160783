"""Rule `absorb-pad`."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from graphopt.errors import RuntimeFailure
from graphopt.passes.fuse.pads.absorb_pad import AbsorbPad
from graphopt.runtime.session import open_session
from graphopt.testing.draft import Draft
from tests.passes.fuse.harness import ROUNDING, distance, examples, rewritten

AROUND = [0, 0, 1, 1, 0, 0, 1, 1]
KERNEL = {"kernel_shape": [3, 3]}


def _padded(
    reader: str = "Conv",
    *,
    pads: list[int] | None = None,
    value: float = 0.0,
    mode: str = "constant",
    before: str = "Neg",
    opset: int = 17,
    also: str | None = None,
    **attributes: Any,
) -> onnx.ModelProto:
    """before → Pad → reader → y; ``also``: an operator beside the reader."""
    draft = Draft(opset=opset)
    x = draft.node(before, [draft.input("x", ["n", 2, 7, 6])], "before")
    amounts = AROUND if pads is None else pads
    if opset < 11:
        padded = draft.node("Pad", [x], "padded", pads=amounts, value=value, mode=mode)
    else:
        constants = [draft.const("amounts", np.array(amounts, np.int64)), draft.const("value", np.float32([value])[0])]
        padded = draft.node("Pad", [x, *constants], "padded", mode=mode)
    weights = [draft.weight("w", 3, 2, 3, 3)] if reader == "Conv" else []
    draft.node(reader, [padded, *weights], "y", **{**KERNEL, **attributes})
    draft.output("y", ["n", None, None, None])
    if also:
        draft.node(also, [padded], "z")
        draft.output("z", ["n", 2, None, None])
    return draft.model("padded")


ABSORBED = {
    "conv": _padded(),
    "conv, uneven": _padded(pads=[0, 0, 0, 2, 0, 0, 1, 0], strides=[2, 2]),
    "conv, dilated": _padded(dilations=[2, 1]),
    "conv, valid": _padded(auto_pad="VALID"),
    "conv, opset 10": _padded(opset=10),
    "conv, -0.0": _padded(value=-0.0),
    "max pool, -inf": _padded("MaxPool", value=-np.inf),
    "max pool, 0 behind Relu": _padded("MaxPool", before="Relu", strides=[2, 2]),
    "max pool, 0 behind Sigmoid": _padded("MaxPool", before="Sigmoid"),
    "average pool": _padded("AveragePool", strides=[2, 2]),
    "average pool that counts": _padded("AveragePool", count_include_pad=1),
}

LEFT = {
    "max pool, 0 behind Neg": (_padded("MaxPool"), "not proven"),
    "max pool, 1": (_padded("MaxPool", value=1.0, before="Relu"), "not proven"),
    "max pool as wide as the pad": (_padded("MaxPool", value=-np.inf, pads=[0, 0, 3, 0, 0, 0, 0, 0]), "kernel's size"),
    "max pool, rounded up": (_padded("MaxPool", value=-np.inf, ceil_mode=1), "ceil_mode"),
    "max pool, dilated": (_padded("MaxPool", value=-np.inf, dilations=[2, 2]), "dilated"),
    "average pool, rounded up": (_padded("AveragePool", ceil_mode=1), "ceil_mode"),
    "average pool, -inf": (_padded("AveragePool", value=-np.inf), "pads with 0"),
    "conv, 1": (_padded(value=1.0), "pads with 0"),
    "conv, same": (_padded(auto_pad="SAME_UPPER"), "auto_pad"),
    "another reader": (_padded(also="Neg"), "reads its result"),
}


@pytest.mark.parametrize("name", ABSORBED)
def test_readers_pad_for_themselves(name: str) -> None:
    done = rewritten(ABSORBED[name], AbsorbPad)
    assert "Pad" not in done.ops
    assert distance(done, n=2) <= ROUNDING


@pytest.mark.parametrize("name", LEFT)
def test_near_misses_stay(name: str) -> None:
    proto, reason = LEFT[name]
    done = rewritten(proto, AbsorbPad)
    assert not done.sites
    assert reason in "; ".join(done.reasons("absorb-pad"))


@pytest.mark.parametrize("mode", ["reflect", "edge"])
def test_other_modes_stay(mode: str) -> None:
    assert not rewritten(_padded(mode=mode), AbsorbPad).sites


def test_crops_stay() -> None:
    assert not rewritten(_padded(pads=[0, 0, -1, 0, 0, 0, 1, 0]), AbsorbPad).sites


def test_padded_channels_stay() -> None:
    draft = Draft()
    amounts = draft.const("amounts", np.array([0, 1, 1, 1, 0, 0, 1, 1], np.int64))
    padded = draft.node("Pad", [draft.input("x", [1, 2, 5, 5]), amounts], "padded")
    draft.node("Conv", [padded, draft.weight("w", 3, 3, 3, 3)], "y")
    draft.output("y", [1, 3, 5, 5])
    assert not rewritten(draft.model("channels"), AbsorbPad).sites


def test_computed_amounts_stay() -> None:
    draft = Draft()
    amounts = draft.input("amounts", [8], TensorProto.INT64)
    padded = draft.node("Pad", [draft.input("x", [1, 2, 5, 5]), amounts], "padded")
    draft.node("Conv", [padded, draft.weight("w", 3, 2, 3, 3)], "y")
    draft.output("y", [1, 3, None, None])
    assert not rewritten(draft.model("computed"), AbsorbPad).sites


def test_a_padded_graph_output_stays() -> None:
    proto = _padded()
    proto.graph.output.append(helper.make_tensor_value_info("padded", TensorProto.FLOAT, ["n", 2, 9, 8]))
    done = rewritten(proto, AbsorbPad)
    assert done.reasons("absorb-pad") == ["its result is a graph output"]


def _dynamic(reader: str, before: list[str], value: float = 0.0) -> onnx.ModelProto:
    """A picture of any size → before → Pad by more than half the kernel → reader → y."""
    draft = Draft()
    x = draft.input("x", ["n", 2, "h", "w"])
    for place, op in enumerate(before):
        weights = [draft.weight(f"w{place}", 2, 2, 1, 1)] if op == "Conv" else []
        x = draft.node(op, [x, *weights], f"before{place}", **(KERNEL if op == "MaxPool" else {}))
    amounts = draft.const("amounts", np.array([0, 0, 2, 2, 0, 0, 2, 2], np.int64))
    padded = draft.node("Pad", [x, amounts, draft.const("value", np.float32([value])[0])], "padded")
    weights = [draft.weight("w", 3, 2, 3, 3)] if reader == "Conv" else []
    draft.node(reader, [padded, *weights], "y", **KERNEL)
    draft.output("y", ["n", None, None, None])
    return draft.model("dynamic")


@pytest.mark.parametrize(
    ("reader", "before", "absorbed"),
    [
        ("Conv", ["Relu"], True),
        ("MaxPool", ["Relu"], False),
        ("AveragePool", ["Relu"], False),
        ("MaxPool", ["Conv", "Relu"], True),
        ("AveragePool", ["Conv", "HardSwish", "Relu"], True),
        ("MaxPool", ["Conv", "MaxPool", "Relu"], False),
    ],
)
def test_empty_pictures_give_what_they_gave(reader: str, before: list[str], absorbed: bool) -> None:
    done = rewritten(_dynamic(reader, before), AbsorbPad)
    assert ("Pad" not in done.ops) == absorbed
    assert absorbed or done.reasons("absorb-pad") == [
        f"y/{reader} pools an image that may be empty before it is padded"
    ]
    sessions = [open_session(model, optimization="none") for model in (done.before, done.after)]
    for size in ((5, 4), (0, 4), (0, 0)):
        feed = {"x": np.ones((1, 2, *size), np.float32)}
        if "Conv" in before and 0 in size:  # such a network takes no empty picture at all
            for session in sessions:
                with pytest.raises(RuntimeFailure):
                    session.run(feed)
        else:
            assert np.allclose(*(session.run(feed)["y"] for session in sessions))


def test_indices_are_kept() -> None:
    proto = _padded("MaxPool", value=-np.inf)
    proto.graph.node[-1].output.append("indices")
    proto.graph.output.append(helper.make_tensor_value_info("indices", TensorProto.INT64, ["n", 2, 7, 6]))
    assert rewritten(proto, AbsorbPad).reasons("absorb-pad") == ["y/MaxPool gives indices"]


def test_a_body_that_captures_the_result_keeps_it() -> None:
    proto = _padded()
    branch = [
        helper.make_graph(
            [helper.make_node(op, ["padded"], [f"{op}_out"])],
            op,
            [],
            [helper.make_tensor_value_info(f"{op}_out", TensorProto.FLOAT, None)],
        )
        for op in ("Abs", "Exp")
    ]
    proto.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    proto.graph.node.append(
        helper.make_node("If", ["flag"], ["z"], "choice", then_branch=branch[0], else_branch=branch[1])
    )
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 2, 9, 8]))
    assert not rewritten(proto, AbsorbPad).sites


def test_all_readers_take_it_or_none() -> None:
    draft = Draft()
    amounts = draft.const("amounts", np.array(AROUND, np.int64))
    padded = draft.node("Pad", [draft.node("Relu", [draft.input("x", [1, 2, 7, 7])], "r"), amounts], "padded")
    draft.conv(padded, "y", 2, 3)
    draft.node("MaxPool", [padded], "z", **KERNEL)
    draft.output("y", [1, 3, 9, 9])
    draft.output("z", [1, 2, 7, 7])
    done = rewritten(draft.model("two"), AbsorbPad)
    assert done.ops == ["Relu", "Conv", "MaxPool"]
    assert distance(done) <= ROUNDING


def test_named_axes_of_opset_18() -> None:
    draft = Draft(opset=18)
    amounts, axes = draft.const("amounts", np.array([2, 1], np.int64)), draft.const("axes", np.array([-1], np.int64))
    padded = draft.node("Pad", [draft.input("x", [1, 2, 7, 7]), amounts, "", axes], "padded")
    draft.conv(padded, "y", 2, 3)
    draft.output("y", [1, 3, 7, 10])
    done = rewritten(draft.model("axes"), AbsorbPad)
    assert done.ops == ["Conv"]
    assert list(done.after.editor.nodes()[0].attrs["pads"]) == [1, 3, 1, 2]
    assert distance(done) <= ROUNDING


@st.composite
def _models(draw: st.DrawFn) -> onnx.ModelProto:
    reader = draw(st.sampled_from(["Conv", "MaxPool", "AveragePool"]))
    amounts = st.integers(0, 2)
    attributes: dict[str, Any] = {"strides": draw(st.sampled_from([[1, 1], [2, 1], [2, 2]]))}
    if draw(st.booleans()):
        attributes["auto_pad"] = draw(st.sampled_from(["VALID", "SAME_UPPER", "NOTSET"]))
    if reader == "AveragePool":
        attributes["count_include_pad"] = draw(st.integers(0, 1))
    if reader != "Conv":
        attributes["ceil_mode"] = draw(st.integers(0, 1))
    proto = _padded(
        reader,
        pads=[0, 0, draw(amounts), draw(amounts), 0, 0, draw(amounts), draw(amounts)],
        value=draw(st.sampled_from([0.0, -np.inf] if reader == "MaxPool" else [0.0, 0.0, 2.5])),
        before=draw(st.sampled_from(["Neg", "Relu"])),
        opset=draw(st.sampled_from([10, 13, 21])),
        also=draw(st.sampled_from([None, None, "Neg"])),
        **attributes,
    )
    if attributes.get("auto_pad", "NOTSET") == "NOTSET" and draw(st.booleans()):
        own = [draw(st.integers(0, 1)) for _ in range(4)]
        node = next(n for n in proto.graph.node if n.op_type == reader)
        node.attribute.append(helper.make_attribute("pads", own))
    return proto


@settings(max_examples=examples(), deadline=None, derandomize=True)
@given(_models())
def test_random_windows(proto: onnx.ModelProto) -> None:
    assert distance(rewritten(proto, AbsorbPad), n=1) <= ROUNDING


def test_a_clip_to_something_negative_is_not_positive() -> None:
    """Clip with min > max gives max."""
    draft = Draft()
    bounds = [draft.const("low", np.float32(0)), draft.const("high", np.float32(-1))]
    x = draft.node("Clip", [draft.input("x", ["n", 2, 7, 6]), *bounds], "clipped")
    amounts, value = draft.const("amounts", np.array(AROUND, np.int64)), draft.const("value", np.float32(0))
    draft.node(
        "MaxPool",
        [
            draft.node("Pad", [x, amounts, value], "padded"),
        ],
        "y",
        **KERNEL,
    )
    draft.output("y", ["n", 2, None, None])
    assert not rewritten(draft.model("clip"), AbsorbPad).sites
