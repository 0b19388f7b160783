"""Linear layers: their channels, their biases, and scales and shifts around them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from graphopt.model.model import Model
from graphopt.pipeline.affine import Affine
from graphopt.pipeline.linear import Layer, narrowed, read_layer, scaled_after, scaled_before
from graphopt.pipeline.rules import Limits, Scope
from graphopt.pipeline.selection import Selection
from graphopt.runtime.session import open_session
from graphopt.testing.draft import Draft

CONV = {"Conv": (8, 3, 3, 2), "ConvTranspose": (6, 4, 1, 1)}
"""Shapes of the weights of grouped layers, 6 channels in and 8 out."""


def layer(op: str, bias: bool = True, opset: int = 17, **attributes: Any) -> tuple[Scope, Layer]:
    """One layer of 6 input and 8 output channels."""
    draft = Draft(opset=opset)
    dense = op in ("Gemm", "MatMul")
    x = draft.input("x", [3, 6] if dense else [2, 6, 5, 4])
    shape = CONV.get(op, (8, 6) if attributes.get("transB") else (6, 8))
    names = [x, draft.weight("w", *shape), *([draft.weight("b", 8)] if bias and op != "MatMul" else [])]
    if not dense:
        attributes["group"] = 2
    y = draft.node(op, names, "y" if op != "MatMul" or not bias else "z", name="layer", **attributes)
    if y == "z":
        y = draft.node("Sub", [y, draft.weight("b", 8)], "y", name="bias")
    draft.output("y", [3, 8] if dense else [2, 8, None, None])
    scope = scope_of(draft)
    read = read_layer(scope.editor.nodes()[0], scope)
    assert read is not None
    return scope, read


def scope_of(draft: Draft) -> Scope:
    model = Model.from_proto(draft.model("layer"))
    return Scope(model, Selection.of(model, (), ()), Limits(0))


LAYERS: list[tuple[str, dict[str, Any]]] = [
    ("Conv", {}),
    ("Conv", {"bias": False}),
    ("ConvTranspose", {}),
    ("Gemm", {"alpha": 0.5, "beta": 3.0}),
    ("Gemm", {"transB": 1, "bias": False}),
    ("MatMul", {}),
]


@pytest.mark.parametrize(("op", "options"), LAYERS)
def test_channels_and_axes(op: str, options: dict[str, Any]) -> None:
    _, found = layer(op, **options)
    dense = op in ("Gemm", "MatMul")
    assert (found.inputs, found.outputs) == (6, 8)
    assert (found.in_axis, found.out_axis) == ((-1, -1) if dense else (-3, -3))
    assert found.holds_bias and found.result.name == "y"


@pytest.mark.parametrize(("op", "options"), LAYERS)
def test_a_change_on_either_side_is_what_it_stands_for(op: str, options: dict[str, Any]) -> None:
    """Stored parameters against numpy around the original."""
    scope, found = layer(op, **options)
    rng = np.random.default_rng(0)
    tail = () if op in ("Gemm", "MatMul") else (1, 1)
    before, after = (Affine(rng.normal(size=n), rng.normal(size=n)) for n in (6, 8))
    x = rng.normal(size=[3, 6] if not tail else [2, 6, 5, 4])
    wide = {name: getattr(before, name).reshape(-1, *tail) for name in ("scale", "shift")}
    inner = (x * wide["scale"] + wide["shift"]).astype(np.float32)
    y = open_session(scope.model, optimization="none").run({"x": inner})["y"]
    expected = y * after.scale.reshape(-1, *tail) + after.shift.reshape(-1, *tail)

    first = scaled_before(found, before)
    assert first is not None and first.in_range
    first.store(scope)
    again = read_layer(found.node, scope)
    second = None if again is None else scaled_after(again, after)
    assert second is not None and second.in_range
    second.store(scope)
    scope.model.finish()
    scope.model.check()
    result = open_session(scope.model, optimization="none").run({"x": x.astype(np.float32)})["y"]
    np.testing.assert_allclose(result, expected, rtol=0, atol=2e-6 * float(np.abs(expected).max()))


def test_a_shift_alone_leaves_the_weight() -> None:
    _, found = layer("Conv")
    shift = Affine(np.ones(8), np.arange(8.0))
    change = scaled_after(found, shift)
    assert change is not None and change.weight is None and change.bias is not None
    np.testing.assert_allclose(change.bias, found.bias + np.arange(8), rtol=1e-6)  # type: ignore[operator]


def test_a_scale_before_leaves_the_bias() -> None:
    _, found = layer("Conv")
    change = scaled_before(found, Affine(np.full(6, 2.0), np.zeros(6)))
    assert change is not None and change.bias is None and change.weight is not None
    np.testing.assert_array_equal(change.weight, 2 * found.weight)


def test_a_bare_product_has_no_place_for_a_shift() -> None:
    _, found = layer("MatMul", bias=False)
    assert not found.holds_bias
    assert scaled_after(found, Affine(np.ones(8), np.ones(8))) is None
    assert scaled_before(found, Affine(np.ones(6), np.ones(6))) is None
    assert scaled_after(found, Affine(np.full(8, 2.0), np.zeros(8))) is not None


def test_what_leaves_the_range_of_its_type_is_seen() -> None:
    _, found = layer("Gemm")
    change = scaled_after(found, Affine(np.full(8, 1e39), np.zeros(8)))
    assert change is not None and not change.in_range


@pytest.mark.parametrize(
    ("op", "attributes", "pads"),
    [
        ("Conv", {}, False),
        ("Conv", {"pads": [0, 0, 0, 0], "strides": [2, 2]}, False),
        ("Conv", {"auto_pad": "VALID"}, False),
        ("Conv", {"pads": [0, 0, 1, 0]}, True),
        ("Conv", {"auto_pad": "SAME_LOWER"}, True),
        ("ConvTranspose", {}, False),
        ("ConvTranspose", {"strides": [1, 1], "output_padding": [0, 0]}, False),
        ("ConvTranspose", {"strides": [2, 1]}, True),
        ("ConvTranspose", {"pads": [1, 0, 0, 0]}, True),
        ("ConvTranspose", {"strides": [2, 2], "output_padding": [1, 1]}, True),
        ("ConvTranspose", {"output_shape": [5, 4]}, True),
        ("Gemm", {}, False),
        ("MatMul", {}, False),
    ],
)
def test_where_a_shift_of_x_is_none_of_y(op: str, attributes: dict[str, Any], pads: bool) -> None:
    assert layer(op, **attributes)[1].pads is pads


def test_a_full_bias_is_unknown() -> None:
    draft = Draft()
    names = [draft.input("x", [3, 6]), draft.weight("w", 6, 8), draft.weight("b", 3, 8)]
    draft.output(draft.node("Gemm", names, "y"), [3, 8])
    scope = scope_of(draft)
    found = read_layer(scope.editor.nodes()[0], scope)
    assert found is not None and found.bias is None
    assert scaled_after(found, Affine(np.full(8, 2.0), np.zeros(8))) is None
    assert scaled_before(found, Affine(np.full(6, 2.0), np.zeros(6))) is not None


def test_the_addition_behind_a_product_is_its_bias_if_it_alone_reads_it() -> None:
    scope, found = layer("MatMul")
    assert found.behind is not None and found.behind.node.name == "bias"
    value = numpy_helper.to_array(next(t for t in scope.model.to_proto().graph.initializer if t.name == "b"))
    np.testing.assert_array_equal(found.bias, -value.astype(np.float64))  # type: ignore[arg-type]


def test_weights_that_are_not_constant_make_no_layer() -> None:
    draft = Draft()
    y = draft.node("MatMul", [draft.input("x", [3, 6]), draft.input("w", [6, 8])], "y")
    draft.output(y, [3, 8])
    scope = scope_of(draft)
    assert read_layer(scope.editor.nodes()[0], scope) is None


def test_what_would_be_denormal_is_nothing_beside_others() -> None:
    exact = np.array([1.0, 1e-39, -1e-40, 0.0])
    assert narrowed(exact, np.dtype(np.float32)).tolist() == [1.0, 0.0, 0.0, 0.0]
    assert narrowed(exact, np.dtype(np.float64)).tolist() == exact.tolist()
    assert narrowed(np.array([1.0, 1e-6]), np.dtype(np.float16))[1] > 0


def test_what_is_as_small_as_a_whole_is_out_of_range() -> None:
    _, found = layer("Gemm")
    change = scaled_after(found, Affine(np.full(8, 1e-44), np.zeros(8)))
    assert change is not None and not change.in_range
