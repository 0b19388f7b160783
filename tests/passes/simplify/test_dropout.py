"""Rule `dropout`."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from graphopt.testing.draft import Draft

from .harness import constant, distance, multi_output, simplified, unary

RATIO = np.array(0.5, np.float32)


@pytest.mark.parametrize("parameters", [(), (RATIO,), (RATIO, np.array(False))])
def test_inference_mode_goes(parameters: tuple[np.ndarray, ...]) -> None:  # type: ignore[type-arg]
    done = simplified(unary("Dropout", *parameters))
    assert done.ops == ["Neg", "Neg"]
    assert distance(done) == 0


def test_before_opset_12_it_is_always_inference() -> None:
    done = simplified(unary("Dropout", opset=10, ratio=0.3))
    assert done.ops == ["Neg", "Neg"]
    assert distance(done) == 0


def test_training_mode_stays_with_a_reason() -> None:
    done = simplified(unary("Dropout", RATIO, np.array(True)))
    assert "Dropout" in done.ops
    assert done.reasons("dropout") == ["Dropout in training mode is left alone"]


def test_a_mode_known_at_run_time_only_stays() -> None:
    draft = Draft()
    x = draft.node("Neg", [draft.input("x", [2])], "n")
    mode = draft.input("mode", [], TensorProto.BOOL)
    draft.node("Dropout", [x, constant(draft, "r", RATIO), mode], "d")
    draft.node("Neg", ["d"], "y")
    draft.output("y", [2])
    assert "Dropout" in simplified(draft.model("mode")).ops


def _with_mask(used: bool) -> onnx.ModelProto:
    draft = Draft()
    x = draft.node("Neg", [draft.input("x", [2])], "n")
    multi_output(draft, "Dropout", [x], ["kept", "mask"])
    draft.node("Neg", ["kept"], "y")
    draft.output("y", [2])
    if used:
        draft.node("Not", ["mask"], "dropped")
        draft.output("dropped", [2], TensorProto.BOOL)
    return draft.model("mask")


def test_an_unused_mask_goes_and_a_used_one_stays() -> None:
    assert simplified(_with_mask(False)).ops == ["Neg", "Neg"]
    done = simplified(_with_mask(True))
    assert "Dropout" in done.ops
    assert done.reasons("dropout") == ["the mask of this Dropout is used"]
