"""Every bad input ends as the table of exit codes says: one paragraph, nothing written, nothing lost."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnx.checker
import pytest

from tests.conftest import Cli
from tests.corpus import accepted, files, models, requests
from tests.corpus.case import Case, Place

CASES = [*files.cases(), *models.cases(), *requests.cases()]
MODELS = [case for case in CASES if case.model]
EARLY = ("no file", "samples that are not there", "unknown preprocessing", "an unknown provider")
CHEAP = [
    case
    for case in CASES
    if (case.exit_code == 2 and case.code != "GO-207") or case.code == "GO-405" or case.name in EARLY
]
"""What is wrong with these shows without opening the model."""


def named(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name.replace(" ", "-"))


@pytest.fixture
def place(tmp_path: Path, cnn: Path, few: Path) -> Place:
    for name in ("input", "output"):
        (tmp_path / name).mkdir()
    out = tmp_path / "output" / "out.onnx"
    out.write_bytes(b"precious")
    return Place(tmp_path / "input", cnn, few, out)


@named(CASES)
def test_it_is_refused(case: Case, place: Place, cli: Cli) -> None:
    words = case.words(place)
    before = content(place.folder)
    done = cli("run", *words)
    assert done.code == case.exit_code, done.err
    assert f"error[{case.code}]" in done.err
    assert case.said in done.err.replace(f"{words[0]}: ", "")
    assert "Traceback" not in done.err
    assert len(done.err.strip().splitlines()) <= 2, done.err
    assert done.out == ""
    assert content(place.out.parent) == {"out.onnx": b"precious"}
    assert content(place.folder) == before


@named(CHEAP)
def test_it_is_told_before_the_output_that_exists(case: Case, place: Place, cli: Cli) -> None:
    done = cli("run", *(word for word in case.words(place) if word != "--overwrite"))
    assert f"error[{case.code}]" in done.err
    assert case.said in done.err


@named(MODELS)
def test_check_finds_it(case: Case, place: Place, cli: Cli) -> None:
    model, *_ = case.words(place)
    done = cli("check", model, "--format", "json")
    (found,) = json.loads(done.out)["models"]
    errors = [finding for finding in found["findings"] if finding["severity"] == "error"]
    assert done.code == 3
    assert case.code in [finding["code"] for finding in errors]
    assert done.err == ""


@pytest.mark.parametrize("name", accepted.MODELS)
def test_what_only_looks_bad_is_used(name: str, place: Place, cli: Cli) -> None:
    model, codes = accepted.MODELS[name]
    path = place.folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    checked = cli("check", path, "--json")
    found = json.loads(checked.out)["models"][0]["findings"]
    assert checked.code == 0
    assert {finding["code"] for finding in found} == codes
    done = cli("run", path, "-o", place.out, "--overwrite", "--pass", "simplify", "--no-measure")
    assert done.code == 0, done.err
    onnx.checker.check_model(onnx.load(place.out))


def test_the_corpus_is_large_and_its_names_are_its_own() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names)) >= 60
    assert {case.exit_code for case in CASES} >= {2, 3, 4, 5, 6, 7}


def content(folder: Path) -> dict[str, bytes | None]:
    """Name → bytes of the regular files below a folder; ``None`` for everything else."""
    readable = {p: p.is_file() and not p.stat().st_size > 1 << 24 and p.stat().st_mode & 0o400 for p in walk(folder)}
    return {str(p.relative_to(folder)): p.read_bytes() if ok else None for p, ok in readable.items()}


def walk(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if not p.is_symlink()]


@named(MODELS)
def test_the_error_names_the_file(case: Case, place: Place, cli: Cli) -> None:
    model, *rest = case.words(place)
    assert Path(model).name in cli("run", model, *rest).err
