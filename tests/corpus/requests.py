"""Good models with bad words, bad samples or a bad place for the result."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from tests.corpus.case import Case, Place, bad_words

GOOD = np.zeros((4, 1, 28, 28), np.float32)


def cases() -> Iterator[Case]:
    """All cases of this module."""
    yield from _words()
    yield from _recipes()
    yield from _samples()
    yield from _outputs()


def _words() -> Iterator[Case]:
    yield bad_words("an unknown option", 2, "GO-201", "--no-such-option", said="--no-such-option")
    yield bad_words("a negative number of threads", 2, "GO-201", "--threads", "-1", said="threads")
    yield bad_words("a size that is no size", 2, "GO-201", "--max-size", "big", said="size")
    yield bad_words("a dimension without a number", 2, "GO-201", "--dim", "N", said="NAME=NUMBER")
    yield bad_words("a shape that is no shape", 2, "GO-201", "--shape", "image=1xTWO", said="TWO")
    yield bad_words("an unknown pass", 2, "GO-202", "--pass", "quantise", said="quantize")
    yield bad_words("an unknown pass option", 2, "GO-203", "--pass", "prune-weights:sparsitty=0.5", said="sparsity")
    yield bad_words("an option out of bounds", 2, "GO-203", "--pass", "prune-weights:sparsity=2", said="sparsity")
    yield bad_words("an option without a value", 2, "GO-203", "--pass", "prune-weights:sparsity", said="key=value")
    order = ("--pass", "quantize", "--pass", "remove-channels:ratio=0.5")
    yield bad_words("an impossible order", 2, "GO-205", *order, said="remove-channels")
    yield bad_words("a selection of nothing", 2, "GO-207", "--pass", "simplify:only=nothing", said="nothing")
    yield bad_words("quantize without samples", 4, "GO-405", "--pass", "quantize")
    yield bad_words("--max-drop without samples", 4, "GO-405", "--pass", "simplify", "--max-drop", "1")
    yield bad_words("--min-sqnr without samples", 4, "GO-405", "--pass", "simplify", "--min-sqnr", "20")
    yield bad_words("an unknown provider", 6, "GO-601", "--provider", "tensorrt", said="CPUExecutionProvider")
    yield bad_words("a library that is not there", 2, "GO-201", "--custom-op-lib", "no-such.so", said="no-such.so")
    yield bad_words("unknown preprocessing", 4, "GO-407", "--preprocess", "resise=4", "--data", "x", said="resize")
    yield bad_words("samples that are not there", 4, "GO-401", "--data", "no-such.npz", said="no-such.npz")
    yield bad_words(
        "a function that is not there", 6, "GO-606", "--data", "no_such_module:feeds", said="no_such_module"
    )
    yield bad_words("a time-out", 7, "GO-702", "--timeout", "0.1", "--pass", "simplify", said="--timeout")


def _recipes() -> Iterator[Case]:
    def case(name: str, code: str, text: str | bytes | None, said: str = "") -> Case:
        def words(place: Place) -> Sequence[object]:
            recipe = place.folder / "recipe.toml"
            if text is not None:
                recipe.write_bytes(text if isinstance(text, bytes) else text.encode())
            return place.good, "-o", place.out, "--overwrite", "-r", recipe

        return Case(name, 2, code, words, said)

    head = "version = 1\n"
    tail = '[[pass]]\nname = "simplify"\n'
    yield case("a recipe that is not there", "GO-204", None, "recipe.toml")
    yield case("a recipe that is no TOML", "GO-204", "version = = 1")
    yield case("a recipe that is no text", "GO-204", b"\xff\xfe\x00")
    yield case("a recipe with an unknown key", "GO-204", f"{head}[gates]\nmin_speedupp = 2\n{tail}", "'min_speedup'")
    yield case("a recipe with a wrong type", "GO-204", f'{head}[gates]\nmin_speedup = "fast"\n{tail}', "min_speedup")
    yield case("a recipe of the future", "GO-204", f"version = 99\n{tail}", "version")
    yield case("a recipe with an unknown pass", "GO-202", f'{head}[[pass]]\nname = "simplifi"\n', "simplify")


def _samples() -> Iterator[Case]:
    def case(name: str, exit_code: int, code: str, write: Callable[[Path], object], said: str = "") -> Case:
        def words(place: Place) -> Sequence[object]:
            data = place.folder / "data.npz"
            write(data)
            return place.good, "-o", place.out, "--overwrite", "--data", data

        return Case(name, exit_code, code, words, said)

    def arrays(name: str, code: str, said: str, **held: np.ndarray) -> Case:
        return case(name, 4, code, lambda path: np.savez(path, **held), said)

    third = np.arange(4)[:, None, None, None] == 2
    yield arrays("samples of another name", "GO-402", "image", imag=GOOD)
    yield arrays("samples with one name more", "GO-402", "other", image=GOOD, other=GOOD)
    yield arrays("samples of another size", "GO-402", "28", image=GOOD[:, :, :-1])
    yield arrays("samples of another rank", "GO-402", "image", image=GOOD[:, 0, 0])
    yield arrays("samples of another type", "GO-402", "float64", image=GOOD.astype(np.float64))
    yield arrays("samples with NaN", "GO-404", "2", image=np.where(third, np.float32("nan"), GOOD))
    yield arrays("samples with infinity", "GO-404", "2", image=np.where(third, np.float32("inf"), GOOD))
    yield arrays("no samples", "GO-401", "", image=GOOD[:0])
    yield arrays("too few labels", "GO-406", "labels", image=GOOD, labels=np.arange(3))
    yield arrays("pickled samples", "GO-403", "pickle", image=np.array([{"a": 1}], dtype=object))
    yield case("a folder without samples", 4, "GO-401", lambda path: path.mkdir(), "no samples")
    yield case("samples that are no zip", 4, "GO-403", lambda path: path.write_bytes(b"text" * 99))
    yield case("samples cut off", 4, "GO-403", lambda path: path.write_bytes(_zipped(_npy(GOOD))[:-40]))
    header = {"descr": "<f4", "fortran_order": False, "shape": (2**31, 1, 28, 28)}
    yield case(
        "samples that declare 6 TiB", 7, "GO-701", lambda path: path.write_bytes(_zipped(_npy(None, header))), "MiB"
    )
    bomb = {"descr": "<f4", "fortran_order": False, "shape": (2**21, 1, 28, 28)}
    yield case("samples that inflate", 7, "GO-701", lambda path: path.write_bytes(_zipped(_npy(None, bomb))), "limit")


def _npy(array: np.ndarray | None, header: dict[str, object] | None = None) -> bytes:
    stream = io.BytesIO()
    if array is not None:
        np.save(stream, array)
    else:
        np.lib.format.write_array_header_1_0(stream, header)
        stream.write(bytes(1 << 16))
    return stream.getvalue()


def _zipped(member: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", member)
    return stream.getvalue()


def _outputs() -> Iterator[Case]:
    def case(name: str, exit_code: int, code: str, words: Callable[[Place], Sequence[object]], said: str = "") -> Case:
        return Case(name, exit_code, code, lambda p: (*words(p), "--pass", "simplify", "--no-measure"), said)

    def copy(place: Place) -> Path:
        path = place.folder / "model.onnx"
        path.write_bytes(place.good.read_bytes())
        return path

    def same(place: Place) -> Sequence[object]:
        return (path := copy(place)), "-o", path, "--overwrite"

    def linked(place: Place) -> Sequence[object]:
        (link := place.folder / "link.onnx").symlink_to(path := copy(place))
        return path, "-o", link, "--overwrite"

    def two(place: Place) -> Sequence[object]:
        return copy(place), copy(place), "-o", place.folder / "results"

    def locked(place: Place) -> Sequence[object]:
        (folder := place.folder / "results").mkdir()
        (folder / "out.onnx").mkdir()
        return place.good, "-o", folder / "out.onnx" / "no" / "out.onnx"

    yield case("an output that exists", 5, "GO-502", lambda p: (p.good, "-o", p.out), "--overwrite")
    yield case("an output that is the input", 5, "GO-502", same, "input")
    yield case("an output that leads to the input", 5, "GO-502", linked, "input")
    yield case("a folder that is not there", 5, "GO-501", locked, "does not exist")
    yield case("a file with a slash behind it", 5, "GO-501", lambda p: (p.good, "-o", f"{p.out}/"), "folder")
    report = ("--overwrite", "--report")
    yield case("a report that is a folder", 5, "GO-501", lambda p: (p.good, "-o", p.out, *report, p.folder), "folder")
    yield case("two models of one name", 2, "GO-201", two, "same file name")
