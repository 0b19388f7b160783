"""Runs a command in a child process, so that a crash of native code becomes an error report.

onnxruntime and onnx are native code that parses and runs what a stranger may have made. A fault in them ends the
process by a signal, past every ``except``. The command therefore forks before anything heavy is imported (a few
milliseconds); the parent only waits, hands signals on, ends a child that outlives its time, and reports what the child
was at when it died.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType

from graphopt.blackbox import BlackBox, doing
from graphopt.cli.limits import limit_memory, machine_memory
from graphopt.errors import GraphoptError, LimitError, RuntimeFailure

GUARDED = frozenset({"run", "inspect", "check", "validate", "bench", "profile"})
"""Commands that open models."""
GRACE = 5.0
"""Seconds that a child whose time is over may take to say so itself; native code may not let it."""
_LOOK = 0.5
_PATIENCE = 1.0
_RELAYED = (signal.SIGINT, signal.SIGTERM)
_PR_SET_PDEATHSIG = 1


def wanted(words: Sequence[str]) -> bool:
    """Whether these words run a command that opens models, on a system that can fork."""
    alone = {"--in-process", "--help", "-h"}.intersection(words)
    return hasattr(os, "fork") and bool(words) and words[0] in GUARDED and not alone


def split() -> int | GraphoptError | None:
    """Fork.

    Returns:
        In the child ``None``, at once. In the parent, when the child has ended: its exit code, or what killed it.
    """
    box, parent = BlackBox(), os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    held = signal.pthread_sigmask(signal.SIG_BLOCK, _RELAYED)
    child = os.fork()
    if child == 0:
        _become_child(box, parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        return None
    watch = _Watch(child, box)
    signal.pthread_sigmask(signal.SIG_SETMASK, held)
    return watch.result()


def _become_child(box: BlackBox, parent: int) -> None:
    doing.box = box
    signal.signal(signal.SIGINT, _interrupted)
    limit_memory(machine_memory())
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)


def _interrupted(_signum: int, _frame: FrameType | None) -> None:
    """Ctrl-C reaches the child twice, from the terminal and from the parent; clearing up is not to be interrupted."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


class _Watch:
    """The parent's side."""

    def __init__(self, child: int, box: BlackBox) -> None:
        self._child = child
        self._box = box
        self._interrupted = 0.0
        self._expired = False
        self._wake, waker = os.pipe()
        os.set_blocking(waker, False)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _signum, _frame: None)
        for number in _RELAYED:
            signal.signal(number, self._relay)

    def result(self) -> int | GraphoptError:
        while True:
            pid, status = os.waitpid(self._child, os.WNOHANG)
            if pid:
                return self._judged(os.waitstatus_to_exitcode(status))
            if select.select([self._wake], [], [], _LOOK)[0]:
                os.read(self._wake, 512)
            if self._box.end and time.monotonic() > self._box.end + GRACE:
                self._expired = True
                os.kill(self._child, signal.SIGKILL)

    def _relay(self, signum: int, _frame: FrameType | None) -> None:
        """Hand a signal on. Who presses Ctrl-C again a while later means it."""
        now = time.monotonic()
        if signum == signal.SIGINT:
            if self._interrupted and now - self._interrupted > _PATIENCE:
                os.kill(self._child, signal.SIGKILL)
                return
            self._interrupted = self._interrupted or now
        os.kill(self._child, signum)

    def _judged(self, code: int) -> int | GraphoptError:
        if code >= 0:
            return code
        if self._box.exit_code is not None:
            return self._box.exit_code
        if self._interrupted or -code in _RELAYED:
            return 128 + (signal.SIGINT if self._interrupted else -code)
        return self._error(signal.Signals(-code))

    def _error(self, signum: signal.Signals) -> GraphoptError:
        where = self._box.doing or None
        if self._expired:
            return LimitError("GO-702", "--timeout ran out, and native code went on", where=where)
        if signum is signal.SIGKILL:
            return LimitError(
                "GO-701",
                "the process was killed, most likely for want of memory",
                where=where,
                hint="--max-memory ends it earlier, with a better reason",
            )
        return RuntimeFailure(
            "GO-607",
            f"native code crashed with {signum.name}",
            where=where,
            why="a fault in onnxruntime or onnx, or in a library of yours, that this model brings out",
            hint="nothing was written; leave out the pass or the option it happened in, or report the model to them",
        )
