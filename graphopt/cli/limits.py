"""``--timeout`` and ``--max-memory``: bounds on the whole command, set as soon as they are read."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from graphopt.blackbox import doing
from graphopt.errors import LimitError

try:
    import resource
except ImportError:  # pragma: no cover - only POSIX has it
    resource = None  # type: ignore[assignment]

F = TypeVar("F", bound=Callable[..., Any])
_LARGEST = 1 << 62
_ROOM = 64_000_000
"""Bytes that passes and a session take. With less, native code fails in ways of its own, anywhere."""
_LIBRARIES = ("numpy", "onnx", "scipy.linalg", "onnxruntime")
_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class Expired(BaseException):
    """The time is over; no handler of a pass's own exceptions may take it for one of them.

    Args:
        seconds: how long it was.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


def limit_options(function: F) -> F:
    """``--timeout``, ``--max-memory`` and ``--in-process``, which the command itself never sees."""
    for option in (
        click.option(
            "--in-process",
            is_flag=True,
            expose_value=False,
            help="Not in a child process: a crash of native code then ends the command without a word.",
        ),
        click.option(
            "--max-memory",
            metavar="SIZE",
            expose_value=False,
            callback=_read_memory,
            help="Most memory to take: bytes, 4GB or 4GiB; none. Replaced weights past a quarter of it go to temporary "
            "files.  [default: that of the machine]",
        ),
        click.option(
            "--timeout",
            type=click.FloatRange(min=0.1),
            metavar="SECONDS",
            expose_value=False,
            callback=_read_timeout,
            help="Give up after this long (exit 7).",
        ),
    ):
        function = option(function)
    return function


def _read_timeout(_ctx: click.Context, _param: click.Parameter, seconds: float | None) -> None:
    if seconds is None:
        return

    def expire(_signum: int, _frame: object) -> None:
        raise Expired(seconds)

    signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    if box := doing.box:
        box.expect_end(time.monotonic() + seconds)


def _read_memory(_ctx: click.Context, _param: click.Parameter, text: str | None) -> None:
    if text is None:
        return
    if text == "none":
        limit_memory(None)
        return
    from graphopt.validation.gates import parse_size

    try:
        size = parse_size(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--max-memory") from None
    _require_room(int(str(size)))
    limit_memory(int(str(size)))


def _require_room(size: int) -> None:
    """Load what every command stands on, and see whether that leaves room to work within ``size`` bytes.

    It is loaded before the limit holds: under it, libraries fail in ways of their own, some by a signal.

    Raises:
        LimitError: GO-701, it does not.
    """
    for name in _LIBRARIES:
        importlib.import_module(name)
    taken = _taken()
    if taken is not None and taken + _ROOM >= size:
        raise LimitError(
            "GO-701",
            "--max-memory is too small to load onnxruntime",
            where=f"{size / 1e6:,.0f} MB",
            why=f"with the libraries around it, it takes {taken / 1e6:,.0f} MB before a model is opened, and "
            f"{_ROOM / 1e6:.0f} MB to open the smallest one",
            hint="give it that much, and a few times the model's weights and the samples on top",
        )


def _taken() -> int | None:
    """Bytes that this process takes, as its limit counts them; ``None`` where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmData:"):
                return 1024 * int(line.split()[1])
    return None


def limit_memory(size: int | None) -> None:
    """Let this process take no more than ``size`` bytes; ``None``: as much as it may.

    Counted is what it may write to and does not share: files that are mapped for reading, as weights are, cost nothing.
    """
    if resource is None:
        return
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    most = _LARGEST if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_DATA, (hard if size is None else min(size, most), hard))


def machine_memory() -> int | None:
    """Bytes of memory that the machine, or the container, has; ``None`` where it does not say."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for name in _CGROUPS:
        try:
            text = Path(name).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if text.isdecimal():
            found.append(int(text))
    return min(found, default=None)


def lift() -> None:
    """Take back what the options set, for callers that stay in the process."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)
    limit_memory(None)
