"""The report of a run: one JSON document with a versioned schema, from which everything else is rendered.

Numbers that JSON cannot hold are written as the strings ``"Infinity"``, ``"-Infinity"`` and ``"NaN"``, and
read back as numbers. Everything that a clock decided can be taken out with ``Report.without_timings``: what
is left of two runs of the same model, samples, seed and resolved recipe is equal.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from graphopt.pipeline.contract import TIMED_NOTE

SCHEMA_ID = "graphopt/report"
SCHEMA_VERSION = 1

TIMED_SUFFIXES = ("_ms", "_seconds", "speedup")
"""Keys of figures that a clock decided end like this; ``without_timings`` drops them."""

TIMED_WARNING = TIMED_NOTE
"""Warnings that a clock decided begin like this; ``without_timings`` drops them too, and such notes."""

Json = Any
"""What JSON can hold; checked where it is put in, by ``plain``."""


def plain(value: object) -> Json:
    """A value as JSON can hold it: tuples and arrays as lists, infinities as strings.

    Raises:
        TypeError: a value of another type.
    """
    if isinstance(value, bool | str | None | int):
        return value if isinstance(value, bool | str | None) else int(value)
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(inner) for inner in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if hasattr(value, "tolist"):  # numpy arrays and scalars
        return plain(value.tolist())
    raise TypeError(f"a report cannot hold a {type(value).__name__}")


def _number(value: float) -> float | str:
    if math.isfinite(value):
        return float(value)
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


Table = Annotated[dict[str, Json], BeforeValidator(plain)]
"""Free-form figures, held as JSON holds them."""
PassOutcome = Literal["applied", "unchanged", "skipped", "rolled back", "failed"]
Count = Annotated[int, Field(ge=0)]


class Record(BaseModel):
    """Base of every part of a report: immutable, unknown keys refused, infinities as strings."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class ToolRecord(Record):
    """What made the report: versions and machine."""

    graphopt: str
    python: str
    onnx: str
    onnxruntime: str
    onnx_graphsurgeon: str
    numpy: str
    platform: str = Field(description="operating system and architecture")
    cpu: str = Field(description="processor name, as far as the system tells")
    instruction_sets: tuple[str, ...] = Field((), description="those that decide INT8 speed, e.g. avx512_vnni")


class ModelRecord(Record):
    """A model's size and identity."""

    path: str = Field(default="", description="file; empty for a model that came from, or stayed in, memory")
    sha256: str = Field(description="fingerprint of the model's content")
    bytes: Count = Field(description="size of the saved file(s), weights included")
    nodes: Count
    parameters: Count = Field(description="elements of all weights")
    opset: int = Field(description="version of the default operator set")
    ir_version: int = 0


class SamplesRecord(Record):
    """Where samples came from."""

    source: str
    count: Count
    labelled: bool = False
    synthetic: bool = Field(default=False, description="seeded synthetic inputs, no real data")
    sha256: str = Field(default="", description="fingerprint of the content; empty where it was not computed")
    notes: tuple[str, ...] = ()


class RecipeRecord(Record):
    """The resolved recipe: with every measured decision written in, so that it re-runs to the same bytes."""

    resolved: Table = Field(default_factory=dict)
    toml: str = ""
    source: str = Field(default="", description="recipe file; empty for --pass or the default run")


class SiteRecord(Record):
    """One place that a pass changed."""

    where: str
    what: str
    rule: str = ""
    figures: Table = Field(default_factory=dict)


class SkipRecord(Record):
    """One place that a pass left alone, and why."""

    where: str
    reason: str
    rule: str = ""


class CheckRecord(Record):
    """One check made around a pass."""

    name: str
    passed: bool | None = Field(description="null: could not be made, see message")
    message: str = ""
    figures: Table = Field(default_factory=dict)


class PassRecord(Record):
    """What became of one pass."""

    name: str
    outcome: PassOutcome
    reason: str = Field(default="", description="why it was skipped, rolled back or failed")
    named: bool = Field(True, description="asked for by the user, not by the default run")
    headline: str = Field(default="", description="what was done, in one line")
    safety: str = ""
    options: Table = Field(default_factory=dict)
    applied: tuple[SiteRecord, ...] = ()
    skipped: tuple[SkipRecord, ...] = ()
    summary: Table = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
    checks: tuple[CheckRecord, ...] = ()
    nodes_before: Count | None = None
    nodes_after: Count | None = None
    seconds: float | None = Field(default=None, ge=0, description="wall time, checks included")
    error: Table | None = None


class OutputRecord(Record):
    """How far one output moved."""

    name: str
    kind: Literal["float", "discrete"]
    sqnr_db: float | None = None
    worst_sqnr_db: float | None = None
    worst_sample: int | None = None
    cosine: float | None = None
    worst_cosine: float | None = None
    max_abs: float | None = None
    max_ref: float | None = None
    agreement: float | None = None
    nan_mismatch: Count = 0
    shape_mismatch: Count = 0
    finite_share: float = Field(1.0, description="of the source's elements; at 0 nothing could be compared")
    empty: bool = Field(False, description="it held no element on any sample: nothing could be compared")


class ThreeWayRecord(Record):
    """SQNR of the worst output, in dB: is the error the rewrite's own, or the runtime's?"""

    unoptimized_db: float = Field(description="original against result, runtime optimizations off")
    optimized_db: float = Field(description="original against result, runtime optimizations on")
    runtime_db: float = Field(description="result without against result with runtime optimizations")
    message: str = ""


class ValidationRecord(Record):
    """The result against the source on held-back samples, on one provider."""

    provider: str
    samples: Count
    synthetic: bool = False
    outputs: tuple[OutputRecord, ...] = ()
    class_output: str | None = None
    reference_top1: float | None = None
    candidate_top1: float | None = None
    reference_top5: float | None = None
    candidate_top5: float | None = None
    metric: str = ""
    reference_metric: float | None = None
    candidate_metric: float | None = None
    threeway: ThreeWayRecord | None = None


class LatencyStatsRecord(Record):
    """Latency of one model, in milliseconds."""

    median_ms: float
    p95_ms: float
    runs: Count
    times_ms: tuple[float, ...] = ()


class LatencyRecord(Record):
    """Source against result, timed in interleaved pairs on one provider; above 1 the result is faster."""

    provider: str
    threads: Count
    ratio: float
    low: float = Field(description="lower end of the ratio's 95 % interval")
    high: float
    baseline: LatencyStatsRecord
    candidate: LatencyStatsRecord
    pairs: Count
    openings: Count = Field(default=1, description="how often both models were opened; the interval is over these")
    clock: Literal["thread-cpu", "wall"]
    conclusive: bool


class GateRecord(Record):
    """One gate and what it said."""

    name: str
    passed: bool
    user_set: bool
    bound: float
    measured: float | None
    unit: str
    message: str
    provider: str = ""
    timed: bool = Field(default=False, description="decided by timing: another run may decide otherwise")


class Verdict(Record):
    """How the run ended."""

    exit_code: int
    text: str = Field(description="one sentence; holds no timings")
    validated: bool = Field(True, description="false: the source could not be run, outputs were not compared")


class Timings(Record):
    """When and how long; left out when two runs are compared."""

    started: str = Field(default="", description="ISO 8601, UTC")
    total_seconds: float = Field(default=0.0, ge=0)


class Report(Record):
    """Everything about one run."""

    schema_id: Literal["graphopt/report"] = "graphopt/report"
    schema_version: Literal[1] = 1
    tool: ToolRecord
    command: tuple[str, ...] = ()
    seed: int = 0
    source: ModelRecord
    output: ModelRecord | None = Field(default=None, description="null: no model was written")
    result: ModelRecord | None = Field(default=None, description="what was judged, written or not")
    recipe: RecipeRecord = RecipeRecord()
    calibration: SamplesRecord | None = None
    evaluation: SamplesRecord | None = None
    passes: tuple[PassRecord, ...] = ()
    validation: tuple[ValidationRecord, ...] = ()
    latency: tuple[LatencyRecord, ...] = ()
    gates: tuple[GateRecord, ...] = ()
    verdict: Verdict
    warnings: tuple[str, ...] = ()
    errors: tuple[Table, ...] = ()
    timings: Timings | None = None

    def to_json(self) -> str:
        """The document: two-space indented, keys in the schema's order, ends on a newline."""
        return json.dumps(self.to_plain(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_plain(self) -> dict[str, Json]:
        """The document as dicts, lists, strings, numbers, booleans and ``None``."""
        document: dict[str, Json] = plain(self.model_dump(mode="python"))
        return document

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Read a document back.

        Raises:
            pydantic.ValidationError: it is no report of this schema version.
        """
        return cls.model_validate_json(text)

    def without_timings(self) -> Report:
        """The same report without anything a clock decided, to compare two runs by."""
        return self.model_copy(
            update={
                "timings": None,
                "latency": (),
                "passes": tuple(_untimed_pass(p) for p in self.passes),
                "gates": tuple(_untimed_gate(g) for g in self.gates),
                "warnings": tuple(w for w in self.warnings if not w.startswith(TIMED_WARNING)),
            }
        )


def _untimed_pass(record: PassRecord) -> PassRecord:
    return record.model_copy(
        update={
            "seconds": None,
            "summary": _untimed(record.summary),
            "notes": tuple(n for n in record.notes if not n.startswith(TIMED_NOTE)),
            "applied": tuple(s.model_copy(update={"figures": _untimed(s.figures)}) for s in record.applied),
            "checks": tuple(c.model_copy(update={"figures": _untimed(c.figures)}) for c in record.checks),
        }
    )


def _untimed_gate(record: GateRecord) -> GateRecord:
    return record.model_copy(update={"measured": None, "message": ""}) if record.timed else record


def _untimed(figures: Json) -> Json:
    if isinstance(figures, Mapping):
        return {k: _untimed(v) for k, v in figures.items() if not str(k).endswith(TIMED_SUFFIXES)}
    if isinstance(figures, list | tuple):
        return [_untimed(v) for v in figures]
    return figures
