from __future__ import annotations

import io
import pickle
import zipfile

import numpy as np
import pytest

from graphopt.data.npz import load_arrays
from graphopt.data.readers import read_samples
from graphopt.errors import GraphoptError, LimitError, SampleError

X = "x:float32[N,3]"


def data(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


def refused(source, interface, **keywords):
    with pytest.raises(GraphoptError) as caught:
        read_samples(source, interface, **keywords)
    return caught.value


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_rows_become_feeds_whether_stored_or_compressed(tmp_path, make_interface, write):
    write(tmp_path / "s.npz", x=data(5, 3), labels=np.arange(5))
    samples = read_samples(tmp_path / "s.npz", make_interface(X))
    assert [feed["x"].tolist() for feed in samples] == [[row] for row in data(5, 3).tolist()]
    assert samples.labels.tolist() == [0, 1, 2, 3, 4]
    assert not samples.synthetic


def test_an_array_in_column_order_reads_back_equal(tmp_path, make_interface):
    path = save(tmp_path / "s.npz", x=np.asfortranarray(data(4, 3)))
    feeds = list(read_samples(path, make_interface(X)))
    assert np.array_equal(np.concatenate([f["x"] for f in feeds]), data(4, 3))
    assert all(f["x"].flags.c_contiguous for f in feeds)


def test_a_fixed_batch_cuts_rows_and_labels_and_notes_the_rest(tmp_path, make_interface):
    path = save(tmp_path / "s.npz", x=data(7, 3), labels=np.arange(7))
    samples = read_samples(path, make_interface("x:float32[2,3]"))
    assert [feed["x"].shape for feed in samples] == [(2, 3)] * 3
    assert samples.labels.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert "1 rows" in samples.notes[0]


def test_one_rank_more_gives_one_feed_an_element_and_scalars_one_a_value(tmp_path, make_interface):
    interface = make_interface("state:float32[2,?,3]", "x:float32[N,4]", "rate:int64[]")
    path = save(tmp_path / "s.npz", state=data(5, 2, 1, 3), x=data(5, 4), rate=np.arange(5))
    samples = read_samples(path, interface)
    assert len(samples) == 5
    assert {n: a.shape for n, a in samples[3].items()} == {"state": (2, 1, 3), "x": (1, 4), "rate": ()}
    assert samples[3]["rate"] == 3
    assert np.array_equal(samples[3]["state"], data(5, 2, 1, 3)[3])


def test_labels_is_an_input_where_the_model_has_one(tmp_path, make_interface):
    path = save(tmp_path / "s.npz", x=data(2, 3), labels=np.arange(2))
    samples = read_samples(path, make_interface(X, "labels:int64[N]"))
    assert samples.labels is None
    assert samples[1]["labels"].tolist() == [1]


def test_different_numbers_of_feeds_are_refused(tmp_path, make_interface):
    path = save(tmp_path / "s.npz", x=data(2, 3), y=data(3, 3))
    error = refused(path, make_interface(X, "y:float32[N,3]"))
    assert error.code == "GO-402"
    assert "x: 2, y: 3" in error.why


@pytest.mark.parametrize("array", [data(3), data(2, 2, 2, 3)])
def test_other_ranks_are_refused(tmp_path, make_interface, array):
    assert refused(save(tmp_path / "s.npz", x=array), make_interface(X)).code == "GO-402"


def test_an_empty_file_and_no_rows_are_no_samples(tmp_path, make_interface):
    assert refused(save(tmp_path / "none.npz", x=data(0, 3)), make_interface(X)).code == "GO-401"
    assert refused(save(tmp_path / "short.npz", x=data(1, 3)), make_interface("x:float32[2,3]")).code == "GO-401"
    assert refused(save(tmp_path / "empty.npz"), make_interface(X)).code == "GO-402"


def test_nan_is_refused_naming_the_sample(tmp_path, make_interface):
    array = data(4, 3)
    array[2, 1] = np.nan
    error = refused(save(tmp_path / "s.npz", x=array), make_interface(X))
    assert error.code == "GO-404"
    assert "sample 2" in error.where


@pytest.mark.parametrize("labels", [np.arange(3), np.array([0.5, 1.5]), np.array(["a", "b"])])
def test_labels_that_do_not_fit_are_refused(tmp_path, make_interface, labels):
    path = save(tmp_path / "s.npz", x=data(2, 3), labels=labels)
    assert refused(path, make_interface(X)).code == "GO-406"


def test_a_pickled_array_is_never_unpickled(tmp_path, make_interface):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("the pickle ran",))

    np.savez(tmp_path / "s.npz", x=np.array([Trap()], dtype=object))
    error = refused(tmp_path / "s.npz", make_interface(X))
    assert error.code == "GO-403"
    assert "pickled" in error.what


def test_a_bare_pickle_named_npz_is_refused(tmp_path, make_interface):
    (tmp_path / "s.npz").write_bytes(pickle.dumps({"x": 1}))
    assert refused(tmp_path / "s.npz", make_interface(X)).code == "GO-403"


def test_a_bomb_is_refused_before_it_is_inflated(tmp_path):
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros(2_000_000, np.float32))
    assert (tmp_path / "bomb.npz").stat().st_size < 20_000
    with pytest.raises(LimitError) as caught:
        load_arrays(tmp_path / "bomb.npz", max_bytes=1_000_000)
    assert caught.value.code == "GO-701"
    assert len(load_arrays(tmp_path / "bomb.npz", max_bytes=8_000_000)["x"]) == 2_000_000


def test_a_header_that_declares_terabytes_is_refused(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**40,)})
    for compression, code in ((zipfile.ZIP_DEFLATED, "GO-701"), (zipfile.ZIP_STORED, "GO-403")):
        with zipfile.ZipFile(tmp_path / "s.npz", "w", compression) as archive:
            archive.writestr("x.npy", header.getvalue() + b"\0" * 64)
        with pytest.raises(GraphoptError) as caught:
            load_arrays(tmp_path / "s.npz")
        assert caught.value.code == code


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_any_damage_is_refused_or_harmless_never_a_crash_nor_wrong_data(tmp_path, write):
    write(tmp_path / "s.npz", x=data(4, 3), y=np.arange(9))
    whole = (tmp_path / "s.npz").read_bytes()
    broken = tmp_path / "broken.npz"
    rng = np.random.default_rng(0)
    for _ in range(300):
        raw = bytearray(whole)
        if rng.random() < 0.3:
            raw = raw[: rng.integers(len(raw))]
        else:
            raw[rng.integers(len(raw))] ^= 1 << rng.integers(8)
        broken.write_bytes(raw)
        try:
            arrays = load_arrays(broken)
        except SampleError as error:
            assert error.code == "GO-403"
            continue
        except LimitError:
            continue
        if set(arrays) == {"x", "y"} and arrays["x"].dtype == np.float32 and arrays["x"].shape == (4, 3):
            assert np.array_equal(arrays["x"], data(4, 3))


def test_members_that_are_no_arrays_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "s.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(SampleError) as caught:
        load_arrays(tmp_path / "s.npz")
    assert "readme.txt" in caught.value.why


def test_a_folder_holds_one_feed_a_file_sorted_by_name_with_free_shapes(tmp_path, make_interface):
    for i, width in enumerate([4, 2, 3]):
        save(tmp_path / f"{i}.npz", x=np.full((1, width), i, np.float32), labels=np.array(i))
    samples = read_samples(tmp_path, make_interface("x:float32[1,W]"))
    assert [feed["x"].shape for feed in samples] == [(1, 4), (1, 2), (1, 3)]
    assert samples.labels.tolist() == [0, 1, 2]


def test_a_folder_where_only_some_files_hold_labels_is_refused(tmp_path, make_interface):
    save(tmp_path / "a.npz", x=data(1, 3), labels=np.array([1]))
    save(tmp_path / "b.npz", x=data(1, 3))
    error = refused(tmp_path, make_interface(X))
    assert error.code == "GO-406"
    assert error.where.endswith("b.npz")


def test_a_bad_file_of_a_folder_is_named(tmp_path, make_interface):
    save(tmp_path / "a.npz", x=data(1, 3))
    save(tmp_path / "b.npz", x=data(1, 4))
    error = refused(tmp_path, make_interface(X))
    assert error.code == "GO-402"
    assert error.where.endswith("b.npz")


@pytest.mark.shared
def test_feeds_of_unequal_length_are_read_from_the_shared_folder(shared, make_interface):
    interface = make_interface(*(f"{n}:int64[N,S]" for n in ("input_ids", "attention_mask", "token_type_ids")))
    samples = read_samples(shared / "models" / "minilm_l6_v2" / "variable", interface)
    assert len(samples) == 32
    lengths = {feed["input_ids"].shape[1] for feed in samples}
    assert min(lengths) == 10
    assert max(lengths) == 43
