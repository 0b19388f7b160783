import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from graphopt.validation.metrics import (
    DiscreteAccumulator,
    FloatAccumulator,
    TopK,
    as_array,
    class_rows,
    is_float,
    sqnr_db,
)

VALUES = arrays(np.float32, array_shapes(min_dims=1, max_dims=3, max_side=5), elements=st.floats(-100, 100, width=32))


def taken(*pairs):
    sums = FloatAccumulator()
    for reference, output in pairs:
        sums.update(np.asarray(reference, np.float32), np.asarray(output, np.float32))
    return sums


def test_sqnr_of_ten_percent_amplitude_is_twenty_decibel():
    reference = np.array([3.0, -4.0])
    assert sqnr_db(reference, reference * 1.1) == pytest.approx(20.0)


def test_int8_noise_follows_six_decibel_a_bit():
    """Uniform 8-bit quantization of a full-range uniform signal: 6.02 dB a bit (Bennett, 1948)."""
    signal = np.random.default_rng(0).uniform(-1, 1, 100_000)
    step = 2 / 256
    assert sqnr_db(signal, np.round(signal / step) * step) == pytest.approx(6.02 * 8, abs=0.2)


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_an_array_against_itself_is_infinitely_good(values):
    sums = taken((values, values))
    assert sums.sqnr_db == math.inf
    assert sums.max_abs == 0.0
    assert sums.max_relative == 0.0
    assert sums.cosine == pytest.approx(1.0)
    assert sums.agreement in (None, 1.0)


@settings(max_examples=60, deadline=None)
@given(VALUES, st.integers(0, 1000))
def test_pooling_equals_the_figures_of_all_samples_at_once(values, seed):
    other = values + np.random.default_rng(seed).normal(0, 0.5, values.shape).astype(np.float32)
    apart = taken(*((values[i], other[i]) for i in range(len(values))))
    whole = taken((values, other))
    assert apart.sqnr_db == pytest.approx(whole.sqnr_db, abs=1e-9)
    assert apart.max_abs == whole.max_abs
    assert apart.worst_sqnr_db <= whole.sqnr_db + 1e-9


def test_the_worst_sample_is_named():
    one = np.ones(8)
    sums = taken((one, one * 1.01), (one, one * 2), (one, one))
    assert sums.worst_sample == 1
    assert sums.worst_sqnr_db == pytest.approx(0.0)


def test_nothing_against_something_is_worse_than_any_number():
    assert taken(([0.0, 0.0], [0.0, 1e-6])).sqnr_db == -math.inf
    assert taken(([0.0, 0.0], [0.0, 0.0])).sqnr_db == math.inf
    assert taken(([0.0], [1.0])).max_relative == math.inf


def test_matching_nan_and_infinity_do_not_count_and_others_do():
    reference = [1.0, math.nan, -math.inf, 2.0]
    same = taken((reference, [1.0, math.nan, -math.inf, 2.0]))
    assert (same.sqnr_db, same.nan_mismatch) == (math.inf, 0)
    for broken in ([1.0, 0.0, -math.inf, 2.0], [1.0, math.nan, math.inf, 2.0], [math.nan, math.nan, -math.inf, 2.0]):
        sums = taken((reference, broken))
        assert (sums.nan_mismatch, sums.sqnr_db, sums.max_relative) == (1, -math.inf, math.inf)


def test_another_shape_is_infinite_noise():
    sums = taken((np.ones((1, 4)), np.ones((1, 4))), (np.ones((1, 4)), np.ones(4)))
    assert (sums.shape_mismatch, sums.sqnr_db, sums.worst_sample) == (1, -math.inf, 1)


def test_labels_agree_row_by_row_and_not_on_pictures():
    reference = np.eye(4, 10)
    output = reference.copy()
    output[3, 7] = 2.0
    assert taken((reference, output)).agreement == 0.75
    assert taken((np.ones((1, 3, 8, 8)), np.ones((1, 3, 8, 8)))).agreement is None


def test_float32_extremes_do_not_overflow_the_sums():
    big = np.full(1000, 3e38, np.float32)
    assert taken((big, big * np.float32(0.9))).sqnr_db == pytest.approx(20.0, abs=1e-3)


def test_half_precision_is_summed_in_double():
    reference = np.full(70_000, 1.0, np.float16)
    sums = FloatAccumulator()
    sums.update(reference, reference)
    assert sums.signal == 70_000


def test_discrete_outputs_count_equal_elements():
    sums = DiscreteAccumulator()
    sums.update(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]))
    sums.update(np.array([True, False]), np.array([True, True]))
    assert sums.agreement == pytest.approx(4 / 6)
    assert (sums.worst_sample, sums.worst_agreement) == (1, 0.5)


def test_strings_are_equal_or_not():
    sums = DiscreteAccumulator()
    sums.update(np.array(["cat", "dog"], object), np.array(["cat", "cow"], object))
    assert sums.agreement == 0.5


def test_a_discrete_output_of_another_shape_has_nothing_equal():
    sums = DiscreteAccumulator()
    sums.update(np.zeros((2, 2), np.int64), np.zeros(4, np.int64))
    assert (sums.agreement, sums.shape_mismatch) == (0.0, 1)


def test_top1_is_argmax_even_among_equals():
    scores = np.array([[5, 5, 1, 0, 0, 0], [0, 5, 5, 1, 0, 0], [1, 2, 3, 4, 5, 6]], np.float32)
    for labels in ([0, 1, 5], [1, 2, 4]):
        top = TopK()
        top.update(scores, np.array(labels))
        assert top.top1 == np.mean(np.argmax(scores, axis=1) == labels)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_topk_counts_what_sorting_counts(seed):
    rng = np.random.default_rng(seed)
    scores, labels = rng.integers(0, 4, (6, 9)).astype(np.float32), rng.integers(0, 9, 6)
    order = np.argsort(-scores, axis=1, kind="stable")
    top = TopK()
    top.update(scores, labels)
    assert top.top1 == np.mean(order[:, 0] == labels)
    assert top.top5 == np.mean([label in row[:5] for row, label in zip(order, labels, strict=True)])


def test_rows_with_nan_are_wrong_and_few_classes_have_no_top5():
    top = TopK()
    top.update(np.array([[math.nan, 1.0], [0.0, 1.0]]), np.array([0, 1]))
    assert top.top1 == 0.5
    assert top.top5 is None


@pytest.mark.parametrize("shape", [(10,), (3, 10), (3, 10, 1, 1)])
def test_class_scores_are_found_in_the_forms_classifiers_end_in(shape):
    rows = class_rows(np.zeros(shape, np.float32))
    assert rows is not None
    assert rows.shape == (shape[0] if len(shape) > 1 else 1, 10)


@pytest.mark.parametrize("array", [np.zeros((1, 10), np.int64), np.zeros((1, 3, 8, 8), np.float32), np.zeros((4, 1))])
def test_other_outputs_hold_no_class_scores(array):
    assert class_rows(array) is None


def test_sequences_and_maps_become_arrays():
    joined = as_array([np.array([[1.0, 2.0]]), np.array([3.0])])
    assert joined.tolist() == [1.0, 2.0, 3.0]
    assert as_array([{1: 0.75, 0: 0.25}]).tolist() == [0.25, 0.75]
    assert as_array(None).size == 0


def test_extension_types_are_floats():
    import ml_dtypes

    assert is_float(np.zeros(1, ml_dtypes.bfloat16))
    assert is_float(np.zeros(1, ml_dtypes.float8_e4m3fn))
    assert not is_float(np.zeros(1, ml_dtypes.int4))
    assert not is_float(np.zeros(1, bool))


def test_nothing_is_said_of_outputs_that_never_held_an_element() -> None:
    numbers, others = FloatAccumulator(), DiscreteAccumulator()
    for found, dtype in ((numbers, np.float32), (others, np.int64)):
        found.update(np.zeros((0, 4), dtype), np.zeros((0, 4), dtype))
        assert found.empty
    assert numbers.finite_share == 0.0
    numbers.update(np.ones(3, np.float32), np.ones(3, np.float32))
    others.update(np.ones(3, np.int64), np.ones(3, np.int64))
    assert not numbers.empty and not others.empty and numbers.finite_share == 1.0


def test_an_output_whose_shape_differs_is_not_empty() -> None:
    found = FloatAccumulator()
    found.update(np.zeros((0, 4), np.float32), np.zeros((1, 4), np.float32))
    assert not found.empty and found.sqnr_db == -np.inf
