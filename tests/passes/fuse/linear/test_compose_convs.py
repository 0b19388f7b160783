"""Rule `compose-convs`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.fuse.linear.compose_convs import ComposeConvs
from graphopt.passes.fuse.shapes.constant_shapes import ConstantShapes
from graphopt.testing.draft import Draft
from tests.passes.fuse.harness import ROUNDING, distance, examples, rewritten
from tests.passes.fuse.layers import constant, finished, spread

MAP = ["n", 6, 7, 5]
Between = Callable[[Draft, str], str]


def conv(draft: Draft, x: str, result: str, *weight: int, bias: bool = True, **attributes: Any) -> str:
    names = [x, constant(draft, f"{result}.w", spread(draft.rng, weight))]
    names += [constant(draft, f"{result}.b", spread(draft.rng, weight[:1]))] if bias else []
    return draft.node("Conv", names, result, name=f"{result}.layer", **attributes)


def pair(
    first: tuple[int, ...] = (10, 6, 1, 1),
    second: tuple[int, ...] = (4, 10, 1, 1),
    *,
    inner: dict[str, Any] | None = None,
    outer: dict[str, Any] | None = None,
    biases: tuple[bool, bool] = (True, True),
    between: Between | None = None,
    seed: int = 0,
) -> onnx.ModelProto:
    """A Conv and a Conv behind it."""
    draft = Draft(seed)
    x = conv(draft, draft.input("x", MAP), "z", *first, bias=biases[0], **(inner or {}))
    x = x if between is None else between(draft, x)
    return finished(draft, conv(draft, x, "y", *second, bias=biases[1], **(outer or {})))


@pytest.mark.parametrize("biases", [(True, True), (False, True), (True, False), (False, False)])
@pytest.mark.parametrize("inner", [{}, {"pads": [1, 0, 1, 2]}, {"strides": [2, 1]}, {"auto_pad": "SAME_LOWER"}])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3)])
def test_two_become_one(biases: tuple[bool, bool], inner: dict[str, Any], kernel: tuple[int, int]) -> None:
    done = rewritten(pair((10, 6, *kernel), inner=inner, biases=biases), ComposeConvs)
    assert done.ops == ["Conv"]
    assert done.rules == {"compose-convs": 1}
    assert distance(done, n=2) <= ROUNDING


def test_three_in_a_row_become_one() -> None:
    def wider(draft: Draft, x: str) -> str:
        return conv(draft, x, "m", 12, 10, 1, 1)

    done = rewritten(pair((10, 6, 1, 1), (4, 12, 1, 1), between=wider), ComposeConvs)
    assert done.ops == ["Conv"]
    assert distance(done, n=2) <= ROUNDING


@pytest.mark.parametrize(
    ("first", "second", "inner", "outer"),
    [
        ((2, 6, 1, 1), (9, 2, 1, 1), {}, {}),  # a bottleneck
        ((4, 6, 3, 3), (4, 4, 1, 1), {"group": 1, "dilations": [2, 2]}, {"strides": [2, 2]}),
        ((10, 6, 1, 1), (4, 10, 3, 3), {}, {}),
        ((10, 6, 1, 1), (4, 10, 1, 1), {}, {"pads": [1, 1, 1, 1]}),
        ((10, 6, 1, 1), (4, 5, 1, 1), {}, {"group": 2}),
        ((10, 3, 1, 1), (4, 10, 1, 1), {"group": 2}, {}),
    ],
)
def test_other_pairs_stay(
    first: tuple[int, ...], second: tuple[int, ...], inner: dict[str, Any], outer: dict[str, Any]
) -> None:
    assert not rewritten(pair(first, second, inner=inner, outer=outer), ComposeConvs).sites


def test_the_cheaper_form_is_chosen_by_counting() -> None:
    """6 channels in, 4 out: as one 24 numbers, as two 10 · m, so that m = 2 stays and m = 3 is composed."""
    assert not rewritten(pair((2, 6, 1, 1), (4, 2, 1, 1)), ComposeConvs).sites
    assert rewritten(pair((3, 6, 1, 1), (4, 3, 1, 1)), ComposeConvs).sites


def test_an_activation_keeps_them_apart() -> None:
    assert not rewritten(pair(between=lambda draft, x: draft.node("Relu", [x], "r")), ComposeConvs).sites


def _read_twice(draft: Draft, x: str) -> str:
    draft.output("r", ["n", 10, 7, 5])
    draft.node("Relu", [x], "r")
    return x


def _an_output(draft: Draft, x: str) -> str:
    draft.output("z", ["n", 10, 7, 5])
    return x


@pytest.mark.parametrize("between", [_read_twice, _an_output])
def test_another_reader_keeps_them_apart_with_a_reason(between: Between) -> None:
    done = rewritten(pair(between=between), ComposeConvs)
    assert not done.sites
    assert done.reasons("compose-convs") == ["the output of z.layer has another user or is a graph output"]


def test_weights_from_outside_stay() -> None:
    for outside in ("v", "c"):
        draft = Draft()
        x = conv(draft, draft.input("x", MAP), "z", 10, 6, 1, 1)
        names = {"v": [4, 10, 1, 1], "c": [4]}
        given_names = [draft.input(n, s) if n == outside else draft.weight(n, *s) for n, s in names.items()]
        y = draft.node("Conv", [x, *given_names], "y", name="layer")
        assert not rewritten(finished(draft, y), ComposeConvs).sites


def test_an_overflow_stays_with_a_reason() -> None:
    draft = Draft()
    names = [draft.input("x", MAP), constant(draft, "w", np.full((10, 6, 1, 1), 1e38, np.float32))]
    x = draft.node("Conv", names, "z", name="z.layer")
    done = rewritten(finished(draft, conv(draft, x, "y", 4, 10, 1, 1)), ComposeConvs)
    assert done.reasons("compose-convs") == ["its product with z.layer is out of the range of float32"]


@settings(max_examples=examples(), deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**16),
    widths=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    kernel=st.sampled_from([(1, 1), (3, 1), (2, 3)]),
    pads=st.sampled_from([[0, 0, 0, 0], [1, 0, 0, 1]]),
    biases=st.lists(st.booleans(), min_size=3, max_size=3),
)
def test_random_chains_stay_within_rounding(
    seed: int, widths: list[int], kernel: tuple[int, int], pads: list[int], biases: list[bool]
) -> None:
    draft = Draft(seed)
    x = conv(draft, draft.input("x", MAP), "z", widths[0], 6, *kernel, bias=biases[0], pads=pads)
    for index, (before, width) in enumerate(pairwise(widths)):
        x = conv(draft, x, f"y{index}", width, before, 1, 1, bias=biases[index + 1])
    assert distance(rewritten(finished(draft, x), ComposeConvs), n=2) <= ROUNDING


def test_what_asks_for_the_channels_gets_the_outer_ones() -> None:
    draft = Draft()
    x = conv(draft, draft.input("x", MAP), "z", 64, 6, 1, 1)
    x = conv(draft, x, "y", 4, 64, 1, 1)
    count = draft.node("Gather", [draft.node("Shape", [x], "shape"), constant(draft, "one", np.asarray(1))], "count")
    scaled = draft.node("Mul", [x, draft.node("Cast", [count], "number", to=1)], "scaled")
    done = rewritten(finished(draft, scaled), ComposeConvs, ConstantShapes)
    assert done.rules["compose-convs"] == 1
    assert distance(done, n=2) <= ROUNDING
