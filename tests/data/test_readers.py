from __future__ import annotations

import numpy as np
import pytest

from graphopt.data.preprocess import Preprocess
from graphopt.data.readers import read_samples
from graphopt.data.samples import Samples
from graphopt.errors import SampleError
from graphopt.progress import Progress

X = "x:float32[1,2]"


def feeds(n):
    return [{"x": np.full((1, 2), i, np.float32)} for i in range(n)]


def refused(source, interface, **keywords):
    with pytest.raises(SampleError) as caught:
        read_samples(source, interface, **keywords)
    return caught.value


def test_feeds_in_memory_are_checked_and_handed_out_read_only(make_interface):
    samples = read_samples(feeds(3), make_interface(X))
    assert [f["x"][0, 0] for f in samples] == [0, 1, 2]
    with pytest.raises(ValueError):
        samples[0]["x"][0, 0] = 5
    wrong = [*feeds(2), {"x": np.zeros((1, 3), np.float32)}]
    assert "sample 2" in refused(wrong, make_interface(X)).where


def test_samples_pass_through_with_their_labels(make_interface):
    samples = Samples.of(feeds(3), np.array([2, 1, 0]))
    assert read_samples(samples, make_interface(X)) is samples
    assert refused(samples, make_interface("y:float32[1,2]")).code == "GO-402"


def test_the_limit_keeps_the_first(tmp_path, make_interface):
    np.savez(tmp_path / "s.npz", x=np.arange(8, dtype=np.float32).reshape(4, 2), labels=np.arange(4))
    samples = read_samples(tmp_path / "s.npz", make_interface(X), limit=2)
    assert samples.labels.tolist() == [0, 1]


def test_sources_that_hold_nothing_say_so(tmp_path, make_interface):
    interface = make_interface(X)
    for source in ([], tmp_path, tmp_path / "missing.npz", str(tmp_path / "missing")):
        assert refused(source, interface).code == "GO-401"


def test_other_files_are_refused_with_what_is_accepted(tmp_path, make_interface):
    (tmp_path / "s.csv").write_text("1,2")
    error = refused(tmp_path / "s.csv", make_interface(X))
    assert error.code == "GO-403"
    assert "npz" in error.hint


def test_preprocessing_of_arrays_is_refused_not_ignored(tmp_path, make_interface):
    np.savez(tmp_path / "s.npz", x=np.zeros((1, 2), np.float32))
    for source in (tmp_path / "s.npz", tmp_path, feeds(1), lambda: feeds(1)):
        assert refused(source, make_interface(X), preprocess=Preprocess()).code == "GO-407"


def test_each_sample_is_reported_once(make_interface):
    seen = []

    class Recorder(Progress):
        def track(self, items, *, label, total=None):
            for item in items:
                seen.append((label, total))
                yield item

    read_samples(feeds(3), make_interface(X), progress=Recorder())
    assert seen == [("reading samples", 3)] * 3
