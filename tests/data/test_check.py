from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from graphopt.data.check import check_feed
from graphopt.errors import SampleError

X = "image:float32[N,3,4,5]"


def good():
    return np.zeros((2, 3, 4, 5), np.float32)


def refused(interface, feed):
    with pytest.raises(SampleError) as caught:
        check_feed(feed, interface, "sample 7")
    assert caught.value.where == "sample 7"
    return caught.value


def test_a_fitting_feed_comes_back_equal_and_read_only(make_interface):
    feed = check_feed({"image": good()}, make_interface(X), "sample 0")
    assert np.array_equal(feed["image"], good())
    assert not feed["image"].flags.writeable


def test_a_wrong_name_is_refused_with_the_right_one(make_interface):
    error = refused(make_interface(X), {"imgae": good()})
    assert error.code == "GO-402"
    assert "did you mean 'image'" in error.hint


def test_a_missing_and_an_extra_input_are_both_named(make_interface):
    error = refused(make_interface(X, "size:int64[2]"), {"image": good(), "zzz": good()})
    assert "'size'" in error.what
    assert "'zzz'" in error.what


def test_inputs_with_a_default_may_be_left_out_but_are_checked_when_given(make_interface):
    interface = make_interface(X, defaults=("scale:float32[]",))
    assert set(check_feed({"image": good()}, interface, "s")) == {"image"}
    assert set(check_feed({"image": good(), "scale": np.float32(2)}, interface, "s")) == {"image", "scale"}
    assert refused(interface, {"image": good(), "scale": np.float64(2)}).code == "GO-402"


@pytest.mark.parametrize("dtype", ["float64", "uint8", "float16", ">f4"])
def test_other_types_are_refused_even_where_widening_would_be_safe(make_interface, dtype):
    error = refused(make_interface(X), {"image": good().astype(dtype)})
    assert "float32[N,3,4,5]" in error.what
    assert "astype('float32')" in error.hint


@pytest.mark.parametrize(
    ("shape", "hint"),
    [
        ((3, 4, 5), "array[None]"),
        ((2, 4, 5, 3), "transpose(0, 3, 1, 2)"),
        ((2, 3, 4, 6), "shape"),
        ((2, 3, 4, 5, 1), "shape"),
    ],
)
def test_other_shapes_are_refused_with_a_way_out(make_interface, shape, hint):
    error = refused(make_interface(X), {"image": np.zeros(shape, np.float32)})
    assert error.code == "GO-402"
    assert hint in error.hint


def test_channels_first_for_a_channels_last_model_is_recognised(make_interface):
    error = refused(make_interface("image:float32[N,4,5,3]"), {"image": good()})
    assert "transpose(0, 2, 3, 1)" in error.hint


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_nan_and_infinity_are_refused_naming_input_and_count(make_interface, bad, dtype):
    array = np.zeros((1, 2), dtype)
    array[0, 1] = bad
    error = refused(make_interface(f"x:{np.dtype(dtype).name}[1,2]"), {"x": array})
    assert error.code == "GO-404"
    assert "'x' holds 1 " in error.what


def test_text_and_plain_bytes_of_small_floats_reach_their_type(make_interface):
    interface = make_interface("t:string[2]", "b:bfloat16[3]")
    stored = np.ones(3, ml_dtypes.bfloat16).view("V2")
    feed = check_feed({"t": np.array(["a", "bc"]), "b": stored}, interface, "s")
    assert feed["t"].dtype == object
    assert feed["b"].dtype == ml_dtypes.bfloat16
    assert feed["b"].tolist() == [1, 1, 1]
