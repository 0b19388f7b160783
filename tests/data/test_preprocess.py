from __future__ import annotations

import runpy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from graphopt.data.preprocess import Preprocess
from graphopt.data.readers import read_samples
from graphopt.errors import SampleError

F32 = np.dtype(np.float32)


def picture(width=6, height=4, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels), pixels


def test_without_keys_pixels_are_only_rearranged():
    image, pixels = picture()
    assert np.array_equal(Preprocess().apply(image, F32), pixels.transpose(2, 0, 1)[None].astype(np.float32))
    assert np.array_equal(Preprocess.parse("layout=nhwc").apply(image, F32)[0], pixels.astype(np.float32))
    assert np.array_equal(Preprocess.parse("layout=nhwc,color=bgr").apply(image, F32)[0], pixels[..., ::-1])
    assert Preprocess.parse("color=gray").apply(image, F32).shape == (1, 1, 4, 6)


def test_an_integer_input_takes_the_pixels_and_no_arithmetic():
    image, pixels = picture()
    values = Preprocess.parse("layout=nhwc").apply(image, np.dtype(np.uint8))
    assert values.dtype == np.uint8
    assert np.array_equal(values[0], pixels)
    with pytest.raises(SampleError) as caught:
        Preprocess.parse("scale=1/255").apply(image, np.dtype(np.uint8))
    assert caught.value.code == "GO-407"


def test_mean_and_std_are_in_pixel_units_after_scale_and_one_a_channel():
    image, pixels = picture()
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    text = "scale=1/255,mean=0.485,0.456,0.406,std=0.229,0.224,0.225,layout=nhwc"
    wanted = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    assert np.array_equal(Preprocess.parse(text).apply(image, F32)[0], wanted)


def test_a_quotient_divides_bit_for_bit():
    # 126 of the 256 pixel values differ from the product with the reciprocal by one unit in the last place.
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    pixels = np.arange(256, dtype=np.float32)
    by_quotient = Preprocess.parse("scale=1/255,color=gray").apply(ramp, F32).reshape(-1)
    by_product = Preprocess.parse(f"scale={1 / 255!r},color=gray").apply(ramp, F32).reshape(-1)
    assert np.array_equal(by_quotient, pixels / np.float32(255))
    assert np.array_equal(by_product, pixels * np.float32(1 / 255))
    assert not np.array_equal(by_quotient, by_product)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("resize=8", (12, 8)),
        ("resize=8x9", (8, 9)),
        ("resize=8,crop=5", (5, 5)),
        ("crop=3x2", (3, 2)),
        ("resize=4", (6, 4)),
    ],
)
def test_sizes_are_width_by_height_and_one_number_is_the_short_side(text, size):
    image, _ = picture(6, 4)
    assert Preprocess.parse(text).apply(image, F32).shape == (1, 3, size[1], size[0])


def test_the_short_side_is_kept_for_pictures_that_stand_upright():
    image, _ = picture(4, 6)
    assert Preprocess.parse("resize=8").apply(image, F32).shape == (1, 3, 12, 8)


def test_the_crop_is_the_centre():
    image, pixels = picture(7, 5)
    cut = Preprocess.parse("crop=3,layout=nhwc").apply(image, F32)[0]
    assert np.array_equal(cut, pixels[1:4, 2:5])


def test_the_filter_is_pillows():
    image, _ = picture(9, 9)
    for name in ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"):
        mine = Preprocess.parse(f"resize=4x4,filter={name},layout=nhwc").apply(image, F32)[0]
        assert np.array_equal(mine, np.asarray(image.resize((4, 4), Image.Resampling[name.upper()])))


def test_a_crop_larger_than_the_picture_is_refused():
    with pytest.raises(SampleError) as caught:
        Preprocess.parse("crop=5").apply(picture(6, 4)[0], F32)
    assert "6x4" in caught.value.what


def test_pictures_of_more_than_eight_bits_are_refused():
    image = Image.fromarray(np.zeros((4, 4), np.uint16))
    with pytest.raises(SampleError) as caught:
        Preprocess().apply(image, F32)
    assert caught.value.code == "GO-403"


@pytest.mark.parametrize(
    "text",
    [
        *("foo=1", "scale=a", "scale=1/0", "scale=nan", "crop=0", "crop=-1", "resize=2x3x4", "layout=chw"),
        *("color=cmyk", "filter=sharp", "mean=1,mean=2", "5", "mean=", "std=1,,2", "std=0", "std=1,0,1", "=3"),
    ],
)
def test_bad_text_is_refused_with_the_key(text):
    with pytest.raises(SampleError) as caught:
        Preprocess.parse(text)
    assert caught.value.code == "GO-407"


def test_an_unknown_key_gets_a_suggestion():
    with pytest.raises(SampleError) as caught:
        Preprocess.parse("colour=rgb")
    assert "did you mean 'color'?" in str(caught.value)
    assert "keys: resize" in str(caught.value.hint)


def test_values_for_another_number_of_channels_are_refused():
    with pytest.raises(SampleError) as caught:
        Preprocess.parse("mean=1,2").apply(picture()[0], F32)
    assert caught.value.code == "GO-407"


NUMBERS = st.floats(0.001, 1000, allow_nan=False).map(repr)


@given(
    scale=st.one_of(NUMBERS, st.tuples(NUMBERS, NUMBERS).map("/".join)),
    mean=st.lists(NUMBERS, min_size=1, max_size=3),
    crop=st.one_of(st.none(), st.integers(1, 9), st.tuples(st.integers(1, 9), st.integers(1, 9))),
    color=st.sampled_from(["rgb", "bgr", "gray"]),
)
@settings(max_examples=50, deadline=None)
def test_settings_survive_json(scale, mean, crop, color):
    size = "" if crop is None else f"crop={crop if isinstance(crop, int) else 'x'.join(map(str, crop))},"
    settings_ = Preprocess.parse(f"{size}scale={scale},mean={','.join(mean)},color={color}")
    assert Preprocess.model_validate_json(settings_.model_dump_json()) == settings_


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mobilenet_v1", "resize=256,crop=224,scale=1/127.5,mean=1,std=1,layout=nchw,color=rgb"),
        ("efficientnet_lite0", "resize=256,crop=224,scale=1/128,mean=127/128,layout=nchw,color=rgb"),
    ],
)
def test_the_shared_picture_folder_gives_the_models_own_feeds_bit_for_bit(shared, make_interface, name, text):
    reference = runpy.run_path(str(shared / "models" / "samples.py"))["load"](name)
    samples = read_samples(
        shared / "models" / "imagenet200",
        make_interface("input:float32[N,3,224,224]"),
        preprocess=Preprocess.parse(text),
    )
    assert len(samples) == 200
    calibration = [i for i in range(200) if i % 5 == 0]
    evaluation = [i for i in range(200) if i % 5]
    for indices, feeds in ((calibration, reference.calib), (evaluation, reference.eval)):
        for mine, theirs in zip(samples.take(indices), feeds, strict=True):
            assert mine["input"].dtype == theirs["input"].dtype
            assert np.array_equal(mine["input"], theirs["input"])
    assert np.array_equal(samples.take(evaluation).labels, reference.labels)
