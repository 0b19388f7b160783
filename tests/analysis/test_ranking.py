"""Selection among many scores, piece by piece."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from graphopt.analysis import ranking
from graphopt.analysis.ranking import Smallest, in_chunks


@given(
    kind=st.sampled_from([np.float16, np.float32, np.float64]),
    values=hnp.arrays(np.float64, st.integers(0, 60), elements=st.sampled_from([0.0, 0.5, 1.0, 1.0009765625, 2.0])),
    pieces=st.integers(1, 5),
    data=st.data(),
)
def test_selection_equals_a_stable_sort(kind: Any, values: Any, pieces: int, data: Any) -> None:
    scores = values.astype(kind)
    count = data.draw(st.integers(0, scores.size))
    expected = np.zeros(scores.size, bool)
    expected[np.argsort(scores, kind="stable")[:count]] = True
    parts = np.array_split(scores, pieces)
    smallest = Smallest(lambda: parts, kind, count)
    np.testing.assert_array_equal(np.concatenate([smallest.take(part) for part in parts]), expected)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_bits_order_as_values_do(kind: Any) -> None:
    rng = np.random.default_rng(0)
    scores = np.abs(rng.standard_normal(5000) * 10.0 ** rng.integers(-6, 4, 5000)).astype(kind)
    for count in (1, 2499, 5000):
        mask = Smallest(lambda: [scores], kind, count).take(scores)
        assert mask.sum() == count
        assert scores[mask].max() <= scores[~mask].min(initial=np.inf)


def test_pieces_are_views_that_cover_the_array(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "CHUNK", 4)
    array = np.arange(15).reshape(3, 5)
    pieces = list(in_chunks(array))
    assert [piece.size for piece in pieces] == [4, 4, 4, 3]
    assert all(np.shares_memory(piece, array) for piece in pieces)
    np.testing.assert_array_equal(np.concatenate(pieces), array.reshape(-1))
