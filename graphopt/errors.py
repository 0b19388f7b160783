"""Everything graphopt raises on purpose.

One tree, one code per cause. An error says *what* went wrong, *where* (file, node, tensor, option), *why*, and *what to
do*; the class decides the exit code of the process. Codes are stable: pipelines may match on them.
"""

from __future__ import annotations

from typing import ClassVar

CODES: dict[str, str] = {
    "GO-201": "bad command line",
    "GO-202": "unknown pass",
    "GO-203": "bad pass option",
    "GO-204": "bad recipe",
    "GO-205": "impossible pass order",
    "GO-206": "a pass plug-in cannot be used",
    "GO-207": "nothing matches a selection",
    "GO-301": "cannot read the model file",
    "GO-302": "not an ONNX model",
    "GO-303": "incomplete ONNX file",
    "GO-304": "malformed model",
    "GO-305": "unsupported version",
    "GO-306": "external data cannot be used",
    "GO-307": "shape or type conflict",
    "GO-308": "the model uses a feature that graphopt cannot carry yet",
    "GO-309": "two models that do not fit each other",
    "GO-321": "weights hold NaN or infinity",
    "GO-322": "operators that nothing installed here knows",
    "GO-323": "newer than the installed onnxruntime supports",
    "GO-324": "initializers that a caller may override",
    "GO-325": "quantized in places already",
    "GO-326": "repaired on opening",
    "GO-327": "dimensions of size zero",
    "GO-401": "no samples found",
    "GO-402": "samples do not fit the model",
    "GO-403": "unreadable samples",
    "GO-404": "samples contain NaN or infinity",
    "GO-405": "samples are required",
    "GO-406": "labels do not fit the samples",
    "GO-407": "bad preprocessing",
    "GO-501": "cannot write the output",
    "GO-502": "output exists",
    "GO-503": "output is being written by another process",
    "GO-504": "the written model does not read back",
    "GO-601": "provider not available",
    "GO-602": "provider not active",
    "GO-603": "the model does not open in onnxruntime",
    "GO-604": "the model does not run in onnxruntime",
    "GO-605": "the outputs cannot be validated",
    "GO-606": "a user function failed",
    "GO-607": "native code crashed",
    "GO-701": "a limit was exceeded",
    "GO-702": "time ran out",
    "GO-801": "a pass broke its contract",
    "GO-802": "in-place edit of a weight",
    "GO-803": "forbidden graph call",
    "GO-900": "internal error",
}
"""Code → its one-line title. A code that is not listed here cannot be raised."""

MORE_MEMORY = "give it more with --max-memory, or fewer or smaller samples"
"""What to do where memory ran out."""


class GraphoptError(Exception):
    """Root of every error raised on purpose.

    Args:
        code: one of ``CODES``.
        what: one sentence, what went wrong.
        where: the file, node, tensor, option or sample it is about.
        why: the cause, where it is known and not obvious.
        hint: what to do next.
    """

    exit_code: ClassVar[int] = 70

    def __init__(
        self,
        code: str,
        what: str,
        *,
        where: str | None = None,
        why: str | None = None,
        hint: str | None = None,
    ) -> None:
        if code not in CODES:
            raise ValueError(f"unknown error code {code!r}")
        super().__init__(what)
        self.code = code
        self.what = what
        self.where = where
        self.why = why
        self.hint = hint

    def __str__(self) -> str:
        text = self.what
        if self.where:
            text += f" ({self.where})"
        if self.why:
            text += f": {self.why}"
        return text

    def within(self, place: str) -> GraphoptError:
        """This error, its ``where`` beginning with the place (a file) that it happened in."""
        if self.where is None:
            self.where = place
        elif place not in self.where:
            self.where = f"{place}: {self.where}"
        return self

    def as_dict(self) -> dict[str, str | int | None]:
        """The error as the report's JSON holds it."""
        return {
            "code": self.code,
            "title": CODES[self.code],
            "what": self.what,
            "where": self.where,
            "why": self.why,
            "hint": self.hint,
            "exit_code": self.exit_code,
        }


class UsageError(GraphoptError):
    """Command line, recipe or pass options are wrong."""

    exit_code = 2


class ModelError(GraphoptError):
    """The input model cannot be used."""

    exit_code = 3


class SampleError(GraphoptError):
    """Calibration or evaluation samples cannot be used."""

    exit_code = 4


class OutputError(GraphoptError):
    """The result cannot be written."""

    exit_code = 5


class RuntimeFailure(GraphoptError):
    """onnxruntime, a provider or a user's function failed."""

    exit_code = 6


class LimitError(GraphoptError):
    """A resource limit or time-out was hit."""

    exit_code = 7


class PassError(GraphoptError):
    """A pass broke its contract: a bug in the pass."""

    exit_code = 70


class InternalError(GraphoptError):
    """A bug in graphopt."""

    exit_code = 70
