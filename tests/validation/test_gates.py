import math

import pytest
from pydantic import ValidationError

from graphopt.errors import SampleError
from graphopt.runtime.latency import LatencyStats, PairedLatency
from graphopt.validation.compare import Comparison, OutputComparison
from graphopt.validation.gates import Facts, Gates, judge, require_samples


def output(name="y", sqnr=30.0, **more):
    return OutputComparison(name, "float", sqnr_db=sqnr, **more)


def comparison(*outputs, **more):
    return Comparison(outputs or (output(),), samples=100, **more)


def latency(ratio, low, high, conclusive=True):
    stats = LatencyStats(1.0, 1.1, 40, (1.0,))
    return PairedLatency(ratio, low, high, stats, stats, 40, 1, "thread-cpu", conclusive)


def facts(found=None, timed=None, size=1000):
    return Facts(size, (("CPU", found),) if found else (), (("CPU", timed),) if timed else ())


def verdict(gates, *args, **kwargs):
    found = judge(gates, facts(*args, **kwargs))
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    ("text", "size"),
    [("5MB", 5_000_000), ("5 mb", 5_000_000), ("1.5MiB", 1_572_864), ("800", 800), ("2kB", 2000), ("1 GiB", 2**30)],
)
def test_sizes_are_read_in_decimal_and_binary_units(text, size):
    assert Gates(max_size=text).max_size == size
    assert Gates(max_size=size).max_size == size


@pytest.mark.parametrize("bad", ["big", "5TB", "-1", "MB", 0, "0"])
def test_what_is_no_size_is_refused(bad):
    with pytest.raises(ValidationError):
        Gates(max_size=bad)


@pytest.mark.parametrize("bad", [{"min_speedup": 0}, {"max_drop": -1}, {"min_sqnr": math.nan}, {"min_sqrn": 20}])
def test_impossible_bounds_and_unknown_keys_are_refused(bad):
    with pytest.raises(ValidationError):
        Gates(**bad)


def test_max_size_holds_at_equality():
    assert verdict(Gates(max_size=1000, never_slower=False)).passed
    assert not verdict(Gates(max_size=999, never_slower=False)).passed


@pytest.mark.parametrize(
    ("timed", "passed"),
    [
        (latency(2.0, 1.98, 2.02), True),
        (latency(1.4, 1.38, 1.42), False),
        (latency(2.0, 1.2, 3.0, conclusive=False), False),
        (None, False),
    ],
)
def test_min_speedup_needs_a_conclusive_ratio(timed, passed):
    found = verdict(Gates(min_speedup=1.5, never_slower=False), timed=timed)
    assert found.passed is passed
    assert found.user_set
    assert found.timed


@pytest.mark.parametrize(
    ("timed", "passed"),
    [
        (latency(0.97, 0.94, 0.99), False),
        (latency(0.97, 0.94, 1.0), True),
        (latency(0.5, 0.2, 1.5, conclusive=False), True),
        (latency(1.2, 1.1, 1.3), True),
    ],
)
def test_never_slower_rejects_only_certainty(timed, passed):
    found = verdict(Gates(), timed=timed)
    assert found.passed is passed
    assert not found.user_set
    assert verdict(Gates(never_slower=True), timed=timed).user_set


def test_never_slower_says_nothing_without_a_measurement():
    assert judge(Gates(), facts(comparison())) == ()


def test_max_drop_is_in_points_of_top1():
    found = comparison(reference_top1=0.93, candidate_top1=0.92)
    assert verdict(Gates(max_drop=1.0), found).passed
    assert not verdict(Gates(max_drop=0.9), found).passed
    assert verdict(Gates(max_drop=1.0), found).measured == pytest.approx(1.0)


def test_an_accuracy_gain_is_no_drop():
    assert verdict(Gates(max_drop=0), comparison(reference_top1=0.92, candidate_top1=0.93)).passed


def test_the_users_metric_wins_over_top1():
    found = comparison(
        reference_top1=0.9, candidate_top1=0.9, metric="wer", reference_metric=0.80, candidate_metric=0.75
    )
    said = verdict(Gates(max_drop=1.0), found)
    assert not said.passed
    assert said.measured == pytest.approx(5.0)
    assert "wer" in said.message


def test_min_sqnr_holds_on_every_output():
    found = comparison(output("a", 40.0), output("b", 19.9))
    said = verdict(Gates(min_sqnr=20), found)
    assert not said.passed
    assert "'b'" in said.message
    assert said.measured == 19.9


def test_a_discrete_output_counts_as_minus_log_of_its_errors():
    wrong = OutputComparison("ids", "discrete", agreement=0.99)
    assert wrong.fidelity_db == pytest.approx(20.0)
    assert verdict(Gates(min_sqnr=19), comparison(wrong)).passed
    assert OutputComparison("ids", "discrete", agreement=1.0).fidelity_db == math.inf


def test_new_nan_fails_any_sqnr_gate_and_says_why():
    said = verdict(Gates(min_sqnr=-100), comparison(output("y", -math.inf, nan_mismatch=3)))
    assert not said.passed
    assert "NaN" in said.message


def test_the_floor_is_one_point_with_labels_and_ten_decibel_without():
    floor = Gates(floor=True)
    assert not verdict(floor, comparison(reference_top1=0.9, candidate_top1=0.88)).passed
    assert verdict(floor, comparison(output(sqnr=3.0), reference_top1=0.9, candidate_top1=0.895)).passed
    assert verdict(floor, comparison(output(sqnr=10.0))).passed
    below = verdict(floor, comparison(output(sqnr=9.9)))
    assert not below.passed
    assert not below.user_set


def test_the_users_accuracy_gate_replaces_the_floor():
    names = [v.name for v in judge(Gates(floor=True, min_sqnr=5), facts(comparison(output(sqnr=7.0))))]
    assert names == ["min-sqnr"]


@pytest.mark.parametrize("gates", [Gates(min_sqnr=20), Gates(max_drop=1)])
@pytest.mark.parametrize("found", [None, comparison(synthetic=True, reference_top1=1.0, candidate_top1=1.0)])
def test_accuracy_gates_are_refused_without_real_samples(gates, found):
    with pytest.raises(SampleError) as refused:
        judge(gates, facts(found))
    assert (refused.value.code, refused.value.exit_code) == ("GO-405", 4)


def test_max_drop_is_refused_without_labels_and_metric():
    with pytest.raises(SampleError, match="labels"):
        require_samples(Gates(max_drop=1), real_samples=True, scored=False)
    require_samples(Gates(min_sqnr=1), real_samples=True, scored=False)


def test_the_floor_ignores_synthetic_samples():
    assert judge(Gates(floor=True), facts(comparison(output(sqnr=0.0), synthetic=True))) == ()


def test_each_provider_is_judged():
    both = (("CPU", comparison()), ("CUDA", comparison(output(sqnr=1.0))))
    found = judge(Gates(min_sqnr=20), Facts(1, both))
    assert [(v.provider, v.passed) for v in found] == [("CPU", True), ("CUDA", False)]


def test_an_output_that_is_nan_everywhere_passes_no_sqnr_gate():
    blind = comparison(output(), output("dead", sqnr=math.inf, finite_share=0.0))
    found = verdict(Gates(min_sqnr=10.0, never_slower=False), blind)
    assert not found.passed
    assert found.measured is None
    assert "'dead'" in found.message


def test_outputs_without_elements_prove_nothing():
    empty = output("boxes", sqnr=math.inf, finite_share=0.0, empty=True)
    alone = verdict(Gates(min_sqnr=30.0, never_slower=False), comparison(empty))
    assert not alone.passed
    assert "no output holds an element" in alone.message
    beside = verdict(Gates(min_sqnr=30.0, never_slower=False), comparison(output(sqnr=40.0), empty))
    assert beside.passed
    assert beside.measured == 40.0
