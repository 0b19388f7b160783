"""What a case of the corpus is: files, a command line, and how it has to end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """Where a case builds its files.

    Attributes:
        folder: empty, for the files of the case.
        good: a model without fault, a small convolutional network.
        samples: good samples for it.
        out: the output the command line names; an old one is there, and must stay as it is.
    """

    folder: Path
    good: Path
    samples: Path
    out: Path


@dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
        name: of the case.
        exit_code: of the process.
        code: the error code.
        words: builds the files and returns the words behind ``graphopt run``.
        said: text that the message must hold.
        model: whether it is the model that is bad, so that ``graphopt check`` finds it too.
    """

    name: str
    exit_code: int
    code: str
    words: Callable[[Place], Sequence[object]]
    said: str = ""
    model: bool = False


def bad_model(name: str, code: str, write: Callable[[Path], object], said: str = "", exit_code: int = 3) -> Case:
    """A case whose model file is written by ``write``."""

    def words(place: Place) -> Sequence[object]:
        path = place.folder / "model.onnx"
        write(path)
        return path, "-o", place.out, "--overwrite", "--pass", "simplify"

    return Case(name, exit_code, code, words, said, model=True)


def bad_words(name: str, exit_code: int, code: str, *words: object, said: str = "") -> Case:
    """A case whose words behind a good model are bad."""
    return Case(name, exit_code, code, lambda p: (p.good, "-o", p.out, "--overwrite", *words), said)
