import numpy as np
import pytest

from graphopt.data.samples import Samples
from graphopt.errors import RuntimeFailure, SampleError
from graphopt.progress import Progress
from graphopt.validation.compare import compare


class Fake:
    """A session that computes ``function(x)`` for each of its outputs."""

    def __init__(self, **functions):
        self.functions = functions
        self.output_names = tuple(functions)

    def run(self, feed, outputs=None):
        return {name: function(feed["x"]) for name, function in self.functions.items()}


class Recorder(Progress):
    def __init__(self):
        self.seen = []

    def track(self, items, *, label, total=None):
        for item in items:
            self.seen.append((label, total))
            yield item


def feeds(n=4, classes=6, labels=True):
    rng = np.random.default_rng(0)
    data = [{"x": rng.normal(size=(1, classes)).astype(np.float32)} for _ in range(n)]
    ids = np.array([int(np.argmax(feed["x"])) for feed in data]) if labels else None
    return Samples.of(data, ids)


def same(x):
    return x


def test_a_session_against_itself_is_identical_and_scores_alike():
    found = compare(Fake(y=same), Fake(y=same), feeds())
    assert found.identical
    assert (found.samples, found.class_output) == (4, "y")
    assert (found.reference_top1, found.candidate_top1, found.drop) == (1.0, 1.0, ("top-1", 0.0))
    assert found.reference_top5 == 1.0


def test_each_side_is_scored_against_the_labels():
    found = compare(Fake(y=same), Fake(y=lambda x: -x), feeds())
    assert found.reference_top1 == 1.0
    assert found.candidate_top1 == 0.0
    assert found.candidate_top5 == 0.0
    assert found.drop == ("top-1", 100.0)


def test_labels_are_held_against_the_first_output_that_can_hold_them():
    sides = {
        "ids": lambda x: np.argmax(x, axis=1),
        "aux": lambda x: x[:, :2],
        "logits": same,
    }
    found = compare(Fake(**sides), Fake(**sides), Samples.of(list(feeds()), np.array([2, 3, 4, 5])))
    assert found.class_output == "logits"
    assert [o.kind for o in found.outputs] == ["discrete", "float", "float"]


@pytest.mark.parametrize("ids", [[0, 1, 2, 999], [0, -1, 2, 3]])
def test_labels_that_are_no_classes_are_refused_unless_a_metric_reads_them(ids):
    labelled = Samples.of(list(feeds()), np.array(ids))
    with pytest.raises(SampleError) as refused:
        compare(Fake(y=same), Fake(y=same), labelled)
    assert refused.value.code == "GO-406"
    found = compare(Fake(y=same), Fake(y=same), labelled, metric=lambda outputs, samples, metadata: 1.0)
    assert found.class_output is None


def test_a_batch_is_scored_row_by_row():
    x = np.eye(3, 6, dtype=np.float32)
    batched = Samples.of([{"x": x}, {"x": x}], np.array([[0, 1, 2], [0, 1, 5]]))
    assert compare(Fake(y=same), Fake(y=same), batched).reference_top1 == pytest.approx(5 / 6)


def test_rows_and_labels_must_match():
    with pytest.raises(SampleError) as refused:
        compare(Fake(y=lambda x: np.repeat(x, 2, axis=0)), Fake(y=same), feeds())
    assert refused.value.code == "GO-406"


def test_the_worst_output_is_the_one_of_least_fidelity():
    found = compare(Fake(a=same, b=same), Fake(a=lambda x: x * 1.001, b=lambda x: x * 1.1), feeds())
    assert found.worst.name == "b"
    assert found.worst.sqnr_db == pytest.approx(20.0, abs=1e-3)


def test_a_metric_sees_outputs_samples_and_metadata_of_each_side():
    calls = []

    def metric(outputs, samples, metadata):
        calls.append((len(outputs), len(samples), dict(metadata)))
        return float(np.mean([o["y"].sum() for o in outputs]))

    found = compare(
        Fake(y=np.ones_like),
        Fake(y=np.zeros_like),
        feeds(labels=False),
        metric=metric,
        metric_name="mean",
        reference_metadata={"alphabet": "abc"},
        candidate_metadata={},
    )
    assert calls == [(4, 4, {"alphabet": "abc"}), (4, 4, {})]
    assert (found.reference_metric, found.candidate_metric) == (6.0, 0.0)
    assert found.drop == ("mean", 600.0)


@pytest.mark.parametrize(
    "metric", [lambda *_: 1 / 0, lambda *_: None, lambda *_: float("nan"), lambda *_: "high", lambda: 1.0]
)
def test_a_metric_that_fails_is_a_runtime_failure(metric):
    with pytest.raises(RuntimeFailure) as failure:
        compare(Fake(y=same), Fake(y=same), feeds(), metric=metric, metric_name="mine")
    assert failure.value.code == "GO-606"
    assert "mine" in str(failure.value)


def test_an_output_that_is_gone_is_an_error():
    with pytest.raises(RuntimeFailure) as failure:
        compare(Fake(y=same, z=same), Fake(y=same), feeds())
    assert failure.value.code == "GO-605"


def test_no_sample_is_an_error():
    with pytest.raises(SampleError) as refused:
        compare(Fake(y=same), Fake(y=same), Samples.of([]))
    assert refused.value.code == "GO-401"


def test_progress_hears_of_each_sample():
    progress = Recorder()
    compare(Fake(y=same), Fake(y=same), feeds(3), progress=progress, label="checking")
    assert progress.seen == [("checking", 3)] * 3
