from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.data.samples import Samples, split
from graphopt.errors import SampleError


def numbered(n, labels=None):
    return Samples.of([{"x": np.full((1, 2), i, np.float32)} for i in range(n)], labels)


def values(samples):
    return [int(feed["x"][0, 0]) for feed in samples]


@given(n=st.integers(2, 60), seed=st.integers(0, 5), share=st.floats(0.05, 0.95))
@settings(max_examples=40, deadline=None)
def test_a_split_uses_every_sample_once_and_depends_on_the_seed_alone(n, seed, share):
    parts = split(numbered(n), seed, share)
    assert sorted(values(parts[0]) + values(parts[1])) == list(range(n))
    assert all(len(part) for part in parts)
    assert [values(part) for part in parts] == [values(part) for part in split(numbered(n), seed, share)]


@given(
    labels=st.lists(st.integers(0, 4), min_size=2, max_size=80),
    seed=st.integers(0, 5),
    share=st.sampled_from([0.2, 0.5, 0.8]),
)
@settings(max_examples=60, deadline=None)
def test_a_split_gives_each_class_its_share_within_two_samples(labels, seed, share):
    samples = numbered(len(labels), np.array(labels))
    _, held_back = split(samples, seed, share)
    wanted = len(held_back) / len(labels)
    for label in set(labels):
        assert abs(int((held_back.labels == label).sum()) - labels.count(label) * wanted) <= 2


def test_different_seeds_split_differently():
    assert values(split(numbered(40), 0)[0]) != values(split(numbered(40), 1)[0])


def test_labels_travel_with_their_samples():
    samples = numbered(20, np.arange(20) % 3)
    for part in (*split(samples, 3), samples.take([7, 2]), samples.first(4), samples[5:9]):
        assert part.labels.tolist() == [v % 3 for v in values(part)]


def test_one_sample_cannot_be_split():
    with pytest.raises(SampleError) as caught:
        split(numbered(1), 0)
    assert caught.value.code == "GO-401"


def test_nothing_is_read_before_it_is_asked_for():
    class Counting:
        reads = 0

        def __len__(self):
            return 100

        def __getitem__(self, index):
            self.reads += 1
            return {"x": np.full((1, 2), index, np.float32)}

    source = Counting()
    part = split(Samples(source), 0)[0].first(3)
    assert source.reads == 0
    assert len(values(part)) == source.reads == 3


def test_the_fingerprint_sees_values_types_names_labels_and_order():
    base = {"x": np.arange(4, dtype=np.float32)}
    variants = [
        Samples.of([base, base]),
        Samples.of([base]),
        Samples.of([{"y": base["x"]}, base]),
        Samples.of([{"x": base["x"].astype(np.float64)}, base]),
        Samples.of([{"x": base["x"].reshape(2, 2)}, base]),
        Samples.of([base, {"x": base["x"] + 1}]),
        Samples.of([{"x": base["x"] + 1}, base]),
        Samples.of([base, base], np.array([0, 1])),
        Samples.of([base, base], np.array([1, 0])),
    ]
    prints = [samples.fingerprint for samples in variants]
    assert len(set(prints)) == len(prints)
    assert Samples.of([dict(base), dict(base)], source="elsewhere").fingerprint == prints[0]


@pytest.mark.parametrize("labels", [np.zeros(3, np.int64), np.zeros(2, np.float32), np.int64(1)])
def test_labels_that_do_not_fit_are_refused(labels):
    with pytest.raises(SampleError) as caught:
        numbered(2, labels)
    assert caught.value.code == "GO-406"


def test_labels_cannot_be_changed_and_are_not_shared_with_the_caller():
    given_labels = np.array([0, 1])
    samples = numbered(2, given_labels)
    given_labels[0] = 9
    assert samples.labels.tolist() == [0, 1]
    with pytest.raises(ValueError):
        samples.labels[0] = 5


def test_indices_outside_are_refused():
    with pytest.raises(IndexError):
        numbered(3).take([3])
    with pytest.raises(IndexError):
        numbered(3).take([-1])
