from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from graphopt.data.preprocess import Preprocess
from graphopt.data.readers import read_samples
from graphopt.errors import GraphoptError, SampleError

X = "x:float32[N,3,4,4]"
PLAIN = Preprocess()


def picture(path, value=0, size=(4, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def values(samples):
    return [int(feed["x"].flat[0]) for feed in samples]


def refused(folder, interface, preprocess=PLAIN):
    with pytest.raises(GraphoptError) as caught:
        read_samples(folder, interface, preprocess=preprocess)
    return caught.value


def test_pictures_without_classes_have_no_labels(tmp_path, make_interface):
    for value in (3, 1, 2):
        picture(tmp_path / f"{value}.png", value)
    samples = read_samples(tmp_path, make_interface(X), preprocess=PLAIN)
    assert values(samples) == [1, 2, 3]
    assert samples.labels is None


@pytest.mark.parametrize("place", ["", "images/"])
def test_labels_csv_decides_on_files_order_and_labels(tmp_path, make_interface, place):
    for value in range(4):
        picture(tmp_path / f"{place}{value}.png", value)
    (tmp_path / "labels.csv").write_text("file,label\n3.png,7\n0.png,1\n")
    samples = read_samples(tmp_path, make_interface(X), preprocess=PLAIN)
    assert values(samples) == [3, 0]
    assert samples.labels.tolist() == [7, 1]


def test_labels_csv_wins_over_class_folders(tmp_path, make_interface):
    picture(tmp_path / "cat" / "a.png", 1)
    picture(tmp_path / "dog" / "b.png", 2)
    assert read_samples(tmp_path, make_interface(X), preprocess=PLAIN).labels.tolist() == [0, 1]
    (tmp_path / "labels.csv").write_text("file,label\ncat/a.png,5\ndog/b.png,4\n")
    assert read_samples(tmp_path, make_interface(X), preprocess=PLAIN).labels.tolist() == [5, 4]


def test_class_folders_that_are_numbers_are_the_labels(tmp_path, make_interface):
    for name in ("12", "5", "100"):
        picture(tmp_path / name / "a.png", int(name))
    samples = read_samples(tmp_path, make_interface(X), preprocess=PLAIN)
    assert samples.labels.tolist() == values(samples)


def test_a_fixed_batch_stacks_pictures_and_labels(tmp_path, make_interface):
    for value in range(5):
        picture(tmp_path / str(value) / "a.png", value)
    samples = read_samples(tmp_path, make_interface("x:float32[2,3,4,4]"), preprocess=PLAIN)
    assert [feed["x"][:, 0, 0, 0].tolist() for feed in samples] == [[0, 1], [2, 3]]
    assert samples.labels.tolist() == [[0, 1], [2, 3]]
    assert samples.notes


def test_a_model_without_a_batch_axis_takes_one_picture(tmp_path, make_interface):
    picture(tmp_path / "a.png", 9)
    samples = read_samples(tmp_path, make_interface("x:float32[3,4,4]"), preprocess=PLAIN)
    assert samples[0]["x"].shape == (3, 4, 4)


def test_pictures_without_preprocessing_are_refused(tmp_path, make_interface):
    picture(tmp_path / "a.png")
    error = refused(tmp_path, make_interface(X), None)
    assert error.code == "GO-407"
    assert "--preprocess" in error.hint


def test_pictures_of_another_size_are_refused_naming_the_file(tmp_path, make_interface):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png", size=(5, 4))
    error = refused(tmp_path, make_interface(X))
    assert error.code == "GO-402"
    assert "b.png" in error.where


@pytest.mark.parametrize("keep", [0, 20, 60])
def test_files_that_are_no_pictures_or_end_early_are_refused(tmp_path, make_interface, keep):
    picture(tmp_path / "a.png", 5, (40, 40))
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[:keep])
    error = refused(tmp_path, make_interface("x:float32[N,3,40,40]"))
    assert error.code == "GO-403"
    assert error.where.endswith("a.png")


def test_a_picture_of_absurd_size_is_a_limit(tmp_path, make_interface, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    picture(tmp_path / "a.png", size=(8, 8))
    assert refused(tmp_path, make_interface("x:float32[N,3,8,8]")).code == "GO-701"


@pytest.mark.parametrize(
    ("table", "code"),
    [
        ("picture,class\na.png,1\n", "GO-406"),
        ("file,label\na.png,cat\n", "GO-406"),
        ("file,label\na.png,-1\n", "GO-406"),
        ("file,label\na.png\n", "GO-406"),
        ("file,label\n../a.png,1\n", "GO-406"),
        ("file,label\nmissing.png,1\n", "GO-403"),
        ("file,label\n", "GO-401"),
        ("", "GO-406"),
    ],
)
def test_a_bad_labels_csv_is_refused(tmp_path, make_interface, table, code):
    picture(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text(table)
    error = refused(tmp_path, make_interface(X))
    assert error.code == code
    assert "labels.csv" in error.where


def test_a_labels_csv_from_a_spreadsheet_is_read(tmp_path, make_interface):
    picture(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_bytes(b"\xef\xbb\xbffile,label,who\r\na.png, 3 ,me\r\n")
    assert read_samples(tmp_path, make_interface(X), preprocess=PLAIN).labels.tolist() == [3]


def test_pictures_beside_class_folders_are_refused(tmp_path, make_interface):
    picture(tmp_path / "a.png")
    picture(tmp_path / "cat" / "b.png")
    assert refused(tmp_path, make_interface(X)).code == "GO-406"


@pytest.mark.parametrize("inputs", [(X, "y:float32[N]"), ("x:float32[N,4]",), ()])
def test_models_that_take_no_single_picture_are_refused(tmp_path, make_interface, inputs):
    picture(tmp_path / "a.png")
    assert refused(tmp_path, make_interface(*inputs)).code == "GO-402"


def test_without_pillow_the_error_says_what_to_install(tmp_path, make_interface, monkeypatch):
    picture(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    error = refused(tmp_path, make_interface(X))
    assert isinstance(error, SampleError)
    assert "graphopt[images]" in error.hint


def test_a_checked_picture_is_not_decoded_again(tmp_path, make_interface):
    picture(tmp_path / "a.png", 1)
    samples = read_samples(tmp_path, make_interface(X), preprocess=PLAIN)
    before = samples[0]["x"].copy()
    (tmp_path / "a.png").unlink()
    assert np.array_equal(samples[0]["x"], before)
