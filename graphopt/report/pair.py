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


def pair_lines(report: PairReport) -> list[str]:
    """The report as plain lines for a terminal."""
    lines = [f"{report.reference.path} → {report.candidate.path}"]
    for found in report.validation:
        kind = "synthetic inputs" if found.synthetic else "samples"
        lines.append(f"{found.provider}, {found.samples} {kind}")
        for out in found.outputs:
            if out.kind == "float":
                lines.append(
                    f"  {out.name}: SQNR {_db(out.sqnr_db)} (worst sample {_db(out.worst_sqnr_db)}), "
                    f"cosine {_number(out.cosine)}, max|Δ| {_number(out.max_abs)}"
                    + (f", argmax agrees {out.agreement:.1%}" if out.agreement is not None else "")
                )
            else:
                lines.append(f"  {out.name}: {out.agreement or 0.0:.2%} of the elements are equal")
        for name, before, after in (
            ("top-1", found.reference_top1, found.candidate_top1),
            ("top-5", found.reference_top5, found.candidate_top5),
            (found.metric, found.reference_metric, found.candidate_metric),
        ):
            if before is not None and after is not None:
                lines.append(f"  {name}: {before:.4f} → {after:.4f}")
    for timed in report.latency:
        lines.append(
            f"{timed.provider}, {timed.threads} thread(s), {timed.clock}, {timed.pairs} pairs: median "
            f"{timed.baseline.median_ms:.3f} → {timed.candidate.median_ms:.3f} ms, p95 {timed.baseline.p95_ms:.3f} → "
            f"{timed.candidate.p95_ms:.3f} ms, ratio {timed.ratio:.3f}x [{timed.low:.3f}, {timed.high:.3f}]"
            + ("" if timed.conclusive else ", inconclusive")
        )
    lines += [f"{'✔' if g.passed else '✘'} {g.name}: {g.message}" for g in report.gates]
    return lines


def _db(value: float | None) -> str:
    return "-" if value is None else ("identical" if value == float("inf") else f"{value:.1f} dB")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"
