"""Where results go: checked before any work, written after the verdict."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from graphopt.api import Result
from graphopt.errors import OutputError, UsageError
from graphopt.report.schema import Report

_SLASHES = (os.sep, os.altsep or os.sep)


@dataclass(frozen=True)
class Destination:
    """Where one result goes.

    Attributes:
        model: the model file.
        report: the report file.
        failed: where the report of a run goes that wrote no model; replaced without asking.
        overwrite: whether model and report may replace what is there.
    """

    model: Path
    report: Path
    failed: Path
    overwrite: bool

    def place_of(self, report: Report) -> Path:
        """Where this report goes: only beside a model that it tells of."""
        return self.failed if report.output is None else self.report


def plan_outputs(models: Sequence[Path], output: str, report: Path | None, *, overwrite: bool) -> list[Destination]:
    """Settle the output files, and refuse what cannot be written before any work is done.

    Args:
        models: the input models.
        output: a file; or a folder, which is made where it is missing: for several models, where it is one, and where
            it ends on a slash, which a ``Path`` would lose.
        report: the report file, whatever the run comes to; ``None``: beside the model, and where none is written under
            a name of its own, so that an older model keeps the report that tells of it.
        overwrite: whether files may be replaced.

    Raises:
        UsageError: GO-201, several models with one report or one model file to write, or two models of one name.
        OutputError: GO-501 not writable, GO-502 exists.
    """
    place = Path(output)
    if len(models) == 1 and not place.is_dir() and not output.endswith(_SLASHES):
        files = [place]
    else:
        files = [place / model.name for model in models]
        if report is not None and len(models) > 1:
            raise UsageError("GO-201", "--report names one file, but there are several models")
        if len(set(files)) < len(files):
            twice = next(file.name for file in files if files.count(file) > 1)
            hint = "run them into different folders"
            raise UsageError("GO-201", "two models have the same file name", where=twice, hint=hint)
        if not place.is_dir():
            _require_folder_name(place, output)
            _make_folder(place)
    found = [
        Destination(f, report or _beside(f, ".graphopt.json"), report or _beside(f, ".graphopt.failed.json"), overwrite)
        for f in files
    ]
    for destination, model in zip(found, models, strict=True):
        _check(destination, model)
    return found


def write_result(result: Result, destination: Destination, *, command: tuple[str, ...] = ()) -> Report:
    """Write the model, unless a gate of the user's failed, and then the report.

    Args:
        result: what the run handed back.
        destination: where it goes.
        command: the words of the command line, for the report.

    Raises:
        OutputError: GO-501 to GO-504; what was there before is still there.
    """
    report = result.report.model_copy(update={"command": command})
    if report.output is not None:
        result.model.save(destination.model, overwrite=destination.overwrite)
        report = report.model_copy(update={"output": report.output.model_copy(update={"path": str(destination.model)})})
    place = destination.place_of(report)
    write_text(place, report.to_json())
    if report.output is not None and place != destination.failed:
        # What failed before is no longer true of the model that lies here now.
        destination.failed.unlink(missing_ok=True)
    return report


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically.

    Raises:
        OutputError: GO-501.
    """
    staged = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, prefix=".graphopt-", encoding="utf-8", delete=False
        ) as file:
            staged = Path(file.name)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        staged.chmod(0o644)
        staged.replace(path)
    except OSError as error:
        raise OutputError(
            "GO-501", "cannot write the report", where=str(path), why=error.strerror or str(error)
        ) from error
    finally:
        if staged is not None:
            staged.unlink(missing_ok=True)


def _beside(model: Path, ending: str) -> Path:
    return model.with_name(model.name.removesuffix(".onnx") + ending)


def _require_folder_name(place: Path, output: str) -> None:
    """Refuse to make a folder that is called like a model: who wrote it meant a file."""
    if place.suffix == ".onnx" and not output.endswith(_SLASHES):
        raise UsageError(
            "GO-201",
            "several models need a folder to go into, and -o names a model file",
            where=output,
            hint=f"-o {place.with_suffix('')}/",
        )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise OutputError("GO-501", "cannot make the output folder", where=str(folder), why=error.strerror) from error


def _check(destination: Destination, source: Path) -> None:
    for path in (destination.model, destination.report, destination.failed):
        folder = path.parent
        if not folder.is_dir():
            raise OutputError("GO-501", "the output folder does not exist", where=str(folder), hint="make it first")
        if not os.access(folder, os.W_OK):
            raise OutputError("GO-501", "the output folder is not writable", where=str(folder))
        if path.is_dir():
            raise OutputError("GO-501", "the output is a folder", where=str(path))
    if not destination.overwrite:
        _check_free(destination)
    if destination.model.exists() and source.exists() and destination.model.samefile(source):
        raise OutputError(
            "GO-502",
            "the output is the input model",
            where=str(source),
            hint="the input is never changed: write elsewhere",
        )


def _check_free(destination: Destination) -> None:
    kept = [destination.model] if _tells_of_no_model(destination.report) else [destination.model, destination.report]
    for path in kept:
        if path.exists():
            raise OutputError("GO-502", "the output exists", where=str(path), hint="--overwrite replaces it")


def _tells_of_no_model(path: Path) -> bool:
    """Whether it is the report of a run that wrote no model: nothing is lost with it when the run is tried again."""
    try:
        return Report.from_json(path.read_text(encoding="utf-8")).output is None
    except (OSError, ValueError):
        return False
