"""The result of comparing or timing two models: the parts of a run's report that concern a pair."""

from __future__ import annotations

import json
from typing import Literal

from graphopt.report.schema import (
    GateRecord,
    LatencyRecord,
    ModelRecord,
    Record,
    ToolRecord,
    ValidationRecord,
    plain,
)
from graphopt.report.terminal import PLAIN_WIDTH, as_text, gate_lines, latency_lines, output_lines, score_lines
from graphopt.report.text import Span, printable, wrap


class PairReport(Record):
    """Two models on the same samples.

    Attributes:
        tool: versions and machine.
        reference: the model that counts as right, and as the baseline of the ratio.
        candidate: the other one.
        validation: how far the outputs lie apart, per provider; empty for ``bench``.
        latency: the paired timing, per provider; empty for ``validate``.
        gates: what was demanded.
        exit_code: 0, or 1 where a gate fails.
    """

    schema_id: Literal["graphopt/pair"] = "graphopt/pair"
    schema_version: Literal[1] = 1
    tool: ToolRecord
    reference: ModelRecord
    candidate: ModelRecord
    validation: tuple[ValidationRecord, ...] = ()
    latency: tuple[LatencyRecord, ...] = ()
    gates: tuple[GateRecord, ...] = ()
    exit_code: int = 0

    def to_json(self) -> str:
        """Two-space indented, ends on a newline."""
        return json.dumps(plain(self.model_dump(mode="python")), indent=2, allow_nan=False) + "\n"


def pair_lines(report: PairReport, width: int = PLAIN_WIDTH) -> list[str]:
    """The report as plain lines for a terminal, laid out like the closing table of a run."""
    names = printable(f"{report.reference.path} → {report.candidate.path}")
    found = [
        *((Span(line),) for line in wrap(names, width)),
        *latency_lines(report.latency, width),
        *score_lines(report.validation),
        *output_lines(report.validation, width),
        *gate_lines(report.gates, width),
    ]
    return as_text(found).splitlines()
