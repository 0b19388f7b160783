"""Models that look bad and are none: repaired, or used as they are, and noted by ``check``."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.model.probes import model_of, relu, value


def _adding(array: np.ndarray) -> onnx.ModelProto:
    weight = numpy_helper.from_array(array, "w")
    return model_of([helper.make_node("Add", ["x", "w"], ["y"], "add")], initializer=[weight])


def _normalising() -> onnx.ModelProto:
    """Its schema lets any attribute pass."""
    scale = numpy_helper.from_array(np.ones(4, np.float32), "scale")
    return model_of([helper.make_node("LayerNormalization", ["x", "scale"], ["y"], foo=1)], initializer=[scale])


MODELS: dict[str, tuple[onnx.ModelProto, set[str]]] = {
    "a weight with NaN": (_adding(np.array([1, 2, np.nan, 4], np.float32)), {"GO-321"}),
    "unsorted nodes": (model_of([relu("a"), relu("x", "a")]), {"GO-326"}),
    "node names used twice": (model_of([relu("x", "a", name="n"), relu("a", name="n")]), {"GO-326"}),
    "a dimension of size zero": (model_of([relu()], [value("x", [0, 4])], [value("y", [0, 4])]), {"GO-327"}),
    "an operator nobody knows": (
        model_of([helper.make_node("Foo", ["x"], ["y"], "foo", domain="d")], domains={"d": 1}),
        {"GO-322", "GO-603"},
    ),
    "a weight that nothing reads": (
        model_of([relu()], initializer=[numpy_helper.from_array(np.ones(5000, np.float32), "unread")]),
        set(),
    ),
    "an attribute that only LayerNormalization may have": (_normalising(), set()),
    "a symbolic dimension": (model_of([relu()], [value("x", ["N", 4])], [value("y", ["N", 4])]), set()),
}
"""Name → the model, and the codes that ``check`` gives it."""
