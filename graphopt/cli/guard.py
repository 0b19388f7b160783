"""Runs a command in a child process, so that a crash of native code becomes an error report.

onnxruntime and onnx are native code that parses and runs what a stranger may have made. A fault in them ends the
process by a signal, past every ``except``. The command therefore forks before anything heavy is imported (a few
milliseconds); the parent only waits, hands signals on, ends a child that outlives its time, and reports what the child
was at when it died. Where that was a pass of a run, another child does the command over without this pass.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
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


def split(tell: Callable[[str], None]) -> int | GraphoptError | None:
    """Fork; and once more, without it, for each pass that a child crashes in.

    Args:
        tell: takes the line that says so.

    Returns:
        In the child ``None``, at once. In the parent, when the last child has ended: its exit code, or what killed it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    held = signal.pthread_sigmask(signal.SIG_BLOCK, _RELAYED)
    try:
        return _attempts(held, tell)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _attempts(held: set[int | signal.Signals], tell: Callable[[str], None]) -> int | GraphoptError | None:
    parent, box, end = os.getpid(), BlackBox(), 0.0
    while True:
        child = os.fork()
        if child == 0:
            _become_child(box, parent)
            return None
        with _Watch(child, box, end, held) as watch:
            ended = watch.result()
        if not isinstance(ended, RuntimeFailure) or not _may_go_without(box):
            return ended
        end = end or box.end
        if end and time.monotonic() >= end:
            return LimitError("GO-702", "--timeout ran out", where=ended.where)
        tell(f"warning: {ended.what} ({ended.where}): starting over without this pass")
        box = BlackBox({**box.fallen, box.part: _left_out(ended)})


def _may_go_without(box: BlackBox) -> bool:
    """Whether what a child crashed in can be left out, and nothing of what it did stands in the way of another."""
    return box.part > 0 and box.part not in box.fallen and not box.settled


def _left_out(crash: RuntimeFailure) -> RuntimeFailure:
    hint = "report the model to them; the rest of the run went on without this pass"
    return RuntimeFailure(crash.code, crash.what, where=crash.where, why=crash.why, hint=hint)


def _become_child(box: BlackBox, parent: int) -> None:
    doing.box = box
    signal.signal(signal.SIGINT, _interrupted)
    if box.fallen:
        # The clock of the first attempt may ring before this one has read that there is one.
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
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
    """The parent's side: of one child, from its fork to its end.

    Args:
        child: its process.
        box: what it writes.
        end: when the time of all attempts is over, in seconds of ``time.monotonic``; 0: the child keeps its own.
        mask: the signals that are held back where nobody watches.
    """

    def __init__(self, child: int, box: BlackBox, end: float, mask: set[int | signal.Signals]) -> None:
        self._child = child
        self._box = box
        self._end = end
        self._mask = mask
        self._interrupted = 0.0
        self._rung = False
        self._expired = False

    def __enter__(self) -> _Watch:
        self._wake, self._waker = os.pipe()
        os.set_blocking(self._waker, False)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        self._handlers = {number: signal.signal(number, self._relay) for number in _RELAYED}
        self._handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda _signum, _frame: None)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        return self

    def __exit__(self, *_: object) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, _RELAYED)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        os.close(self._wake)
        os.close(self._waker)

    def result(self) -> int | GraphoptError:
        """Wait for the child to end: its exit code, or what killed it."""
        while True:
            pid, status = os.waitpid(self._child, os.WNOHANG)
            if pid:
                return self._judged(os.waitstatus_to_exitcode(status))
            if select.select([self._wake], [], [], _LOOK)[0]:
                os.read(self._wake, 512)
            self._keep_time()

    def _keep_time(self) -> None:
        """End a child that outlives its time; tell it when that is over where an earlier attempt used some of it."""
        now, end = time.monotonic(), self._end or self._box.end
        if self._end and now > end and not self._rung and self._box.exit_code is None:
            self._rung = True
            os.kill(self._child, signal.SIGALRM)
        if end and now > end + GRACE:
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
        if self._box.exit_code is not None:
            return self._box.exit_code
        if code >= 0:
            what = f"the process was ended in the middle, with exit code {code}"
            return RuntimeFailure("GO-607", what, where=self._box.doing or None, why="by a plug-in or a library")
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
        written = "" if self._box.settled else "nothing was written; "
        return RuntimeFailure(
            "GO-607",
            f"native code crashed with {signum.name}",
            where=where,
            why="a fault in onnxruntime or onnx, or in a library of yours, that this model brings out",
            hint=f"{written}leave out the pass or the option it happened in, or report the model to them",
        )
