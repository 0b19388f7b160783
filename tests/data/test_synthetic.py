from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.data.check import check_feed
from graphopt.data.synthetic import dynamic_dims, synthetic_samples
from graphopt.errors import SampleError
from graphopt.model.interface import Interface, TensorSpec


def make(interface, *, seed=0, dims=None, shapes=None, bounds=None, count=2):
    return synthetic_samples(
        interface, seed=seed, dims=dims or {}, shapes=shapes or {}, bounds=bounds or {}, count=count
    )


SPECS = st.builds(
    lambda name, dtype, shape: TensorSpec(name, np.dtype(dtype), shape),
    st.text("abcmask_", min_size=1, max_size=8),
    st.sampled_from(
        ["float32", "float64", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool", "complex64"]
    ),
    st.lists(st.one_of(st.integers(1, 4), st.sampled_from(["N", "S", None])), max_size=4).map(tuple),
)


@given(specs=st.lists(SPECS, min_size=1, max_size=4, unique_by=lambda s: s.name), seed=st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_feeds_fit_the_interface_and_depend_on_the_seed_alone(specs, seed):
    interface = Interface(tuple(specs), (), ())
    dims = dict.fromkeys(dynamic_dims(interface), 3)
    samples = make(interface, seed=seed, dims=dims, count=3)
    assert samples.synthetic
    assert len(samples) == 3
    for feed in samples:
        check_feed(feed, interface, "synthetic")
    assert samples.fingerprint == make(interface, seed=seed, dims=dims, count=3).fingerprint


def test_feeds_differ_between_seeds_inputs_and_numbers_but_not_by_the_order_of_inputs(make_interface):
    one = make(make_interface("a:float32[8]", "b:float32[8]"))
    other = make(make_interface("b:float32[8]", "a:float32[8]"))
    assert np.array_equal(one[0]["a"], other[0]["a"])
    different = [one[0]["a"], one[0]["b"], one[1]["a"], make(make_interface("a:float32[8]"), seed=1)[0]["a"]]
    assert len({array.tobytes() for array in different}) == 4


def test_integers_reach_both_ends_of_their_bounds_and_no_further(make_interface):
    values = make(make_interface("ids:int64[1,1000]"), bounds={"ids": (3, 7)})[0]["ids"]
    assert set(values.reshape(-1).tolist()) == {3, 4, 5, 6, 7}


def test_integers_without_bounds_are_bytes_or_zero_and_one(make_interface):
    feed = make(make_interface("u:uint8[5000]", "i:int8[5000]", "n:int64[5000]", "b:bool[5000]"))[0]
    assert (feed["u"].min(), feed["u"].max()) == (0, 255)
    assert (feed["i"].min(), feed["i"].max()) == (-128, 127)
    assert set(feed["n"].tolist()) == {0, 1}
    assert set(feed["b"].tolist()) == {False, True}


@pytest.mark.parametrize("dtype", ["int64", "int32", "bool"])
def test_masks_are_half_ones_then_zeros(make_interface, dtype):
    feed = make(make_interface(f"attention_mask:{dtype}[N,5]", "Mask2:int64[]"))[0]
    assert feed["attention_mask"].tolist() == [[1, 1, 1, 0, 0]]
    assert feed["Mask2"] == 1


def test_a_float_mask_is_an_ordinary_input(make_interface):
    assert len(set(make(make_interface("mask:float32[9]"))[0]["mask"].tolist())) == 9


def test_small_floats_and_text_can_be_made(make_interface):
    feed = make(make_interface("b:bfloat16[4]", "t:string[2]"))[0]
    assert feed["b"].dtype == ml_dtypes.bfloat16
    assert feed["t"].dtype == object


def test_batch_is_one_and_a_shape_names_the_sizes_for_all_inputs(make_interface):
    interface = make_interface("ids:int64[N,S]", "mask:int64[N,S]", "x:float32[?,4]")
    feed = make(interface, dims={"S": 9}, shapes={"ids": (2, 6)})[0]
    assert {name: array.shape for name, array in feed.items()} == {"ids": (2, 6), "mask": (2, 6), "x": (1, 4)}


def test_unnamed_dimensions_are_called_after_input_and_axis(make_interface):
    interface = make_interface("x:float32[N,?,W]", "y:float32[2,W]")
    assert dynamic_dims(interface) == {"N": ("x[0]",), "x.1": ("x[1]",), "W": ("x[2]", "y[1]")}
    assert make(interface, dims={"x.1": 2, "W": 3})[0]["x"].shape == (1, 2, 3)


def test_inputs_with_a_default_are_left_out(make_interface):
    assert set(make(make_interface("x:float32[2]", defaults=("w:float32[2]",)))[0]) == {"x"}


def test_what_cannot_be_made_up_is_refused_with_the_option_to_give(make_interface):
    cases = [
        (make_interface("x:float32[N,S]"), {}, "--dim S="),
        (Interface((TensorSpec("x", np.dtype("f4"), None),), (), ()), {}, "--shape x="),
        (Interface((TensorSpec("x", None, None, "sequence"),), (), ()), {}, "--data"),
        (make_interface("x:float32[N,3]"), {"y": (1, 3)}, "inputs: x"),
    ]
    for interface, shapes, hint in cases:
        with pytest.raises(SampleError) as caught:
            make(interface, shapes=shapes)
        assert caught.value.code == "GO-402"
        assert hint in caught.value.hint
    with pytest.raises(SampleError):
        make(make_interface("x:float32[N,3]"), shapes={"x": (1, 4)})
