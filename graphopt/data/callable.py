"""Samples and metrics from the user's own Python: ``module:function``."""

from __future__ import annotations

import importlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from graphopt.data.check import check_feed
from graphopt.data.samples import Array, Feed, Samples
from graphopt.errors import GraphoptError, LimitError, RuntimeFailure, SampleError

if TYPE_CHECKING:
    from graphopt.model.interface import Interface

MAX_BYTES = 8 * 2**30
"""Bytes of samples that a function may give; a generator may have no end."""
_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def is_reference(text: str) -> bool:
    """Whether ``text`` has the form ``module:function``."""
    return _REFERENCE.fullmatch(text) is not None


def load_function(reference: str) -> Callable[..., Any]:
    """Import ``module:function``; modules of the current directory are found too.

    Raises:
        RuntimeFailure: GO-606, the module does not import, or holds no such function.
    """
    module_name, _, function_name = reference.partition(":")
    with working_directory_importable():
        try:
            value: Any = importlib.import_module(module_name)
        except (Exception, SystemExit) as error:
            raise_user_error(f"cannot import {module_name!r}", reference, error)
    for part in function_name.split("."):
        value = getattr(value, part, None)
    if not callable(value):
        raise RuntimeFailure(
            "GO-606",
            f"module {module_name!r} has no function {function_name!r}",
            where=reference,
            hint="write module:function",
        )
    function: Callable[..., Any] = value
    return function


def function_samples(
    function: Callable[[], Any],
    interface: Interface,
    source: str,
    *,
    limit: int | None = None,
    max_bytes: int = MAX_BYTES,
) -> Samples:
    """What a user's function gives, read into memory.

    Args:
        function: called without arguments; gives an iterable of feeds, or a pair (feeds, labels).
        interface: the model's inputs.
        source: what to call the samples.
        limit: stop after this many feeds.
        max_bytes: limit on all feeds together.

    Raises:
        RuntimeFailure: GO-606, the function failed.
        SampleError: GO-402, GO-404, a feed does not fit; GO-403, no iterable of feeds; GO-406 labels.
        LimitError: GO-701, more than ``max_bytes``.
    """
    with working_directory_importable():
        try:
            feeds, labels = _parts(function(), source)
            kept = list(_checked(iter(feeds), interface, source, limit, max_bytes))
            values = None if labels is None else np.asarray(labels)
        except GraphoptError:
            raise
        except (Exception, SystemExit) as error:
            raise_user_error("the function that gives the samples failed", source, error)
    if values is not None and limit is not None and values.ndim:
        values = values[: len(kept)]
    return Samples(tuple(kept), labels=values, source=source)


def raise_user_error(what: str, where: str, error: BaseException) -> NoReturn:
    """Turn an exception of a user's code into an error that names its line.

    Raises:
        RuntimeFailure: GO-606, always.
    """
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    place = f", line {frames[-1].lineno} of {Path(frames[-1].filename).name}" if len(frames) > 1 else ""
    text = str(error).strip().splitlines()
    why = f"{type(error).__name__}{': ' + text[0] if text else ''}{place}"
    raise RuntimeFailure("GO-606", what, where=where, why=why, hint="run with --debug to see it in full") from error


@contextmanager
def working_directory_importable() -> Iterator[None]:
    """Let the user's code import what lies in the current directory, as a script could; what it prints is no result."""
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if added and here in sys.path:
            sys.path.remove(here)


def _parts(given: Any, source: str) -> tuple[Any, Any]:
    feeds, labels = given, None
    if isinstance(given, tuple) and len(given) == 2 and not isinstance(given[1], Mapping):
        feeds, labels = given
    if isinstance(feeds, Mapping) or not (hasattr(feeds, "__iter__") or hasattr(feeds, "__getitem__")):
        raise SampleError(
            "GO-403",
            f"expected feeds, got {type(feeds).__name__}",
            where=source,
            hint="give an iterable of dicts (input name: array), or a pair (feeds, labels)",
        )
    return feeds, labels


def _checked(
    feeds: Iterator[Any], interface: Interface, source: str, limit: int | None, max_bytes: int
) -> Iterator[Feed]:
    total = 0
    for index, feed in enumerate(feeds):
        if limit is not None and index >= limit:
            return
        where = f"{source}, sample {index}"
        if not isinstance(feed, Mapping):
            hint = "each feed is a dict: input name to array"
            raise SampleError("GO-403", f"expected a feed, got {type(feed).__name__}", where=where, hint=hint)
        checked = check_feed(feed, interface, where)
        total += sum(_nbytes(value) for value in checked.values())
        if total > max_bytes:
            raise LimitError(
                "GO-701",
                f"the samples exceed {max_bytes / 2**30:.3g} GiB",
                where=source,
                hint="give fewer samples, or npz files, which are read one by one",
            )
        yield checked


def _nbytes(value: Array) -> int:
    return int(getattr(value, "nbytes", 0))
