"""Reports to render, made by hand."""

import math

from graphopt.report.schema import (
    CheckRecord,
    GateRecord,
    LatencyRecord,
    LatencyStatsRecord,
    ModelRecord,
    OutputRecord,
    PassRecord,
    RecipeRecord,
    Report,
    SiteRecord,
    SkipRecord,
    ThreeWayRecord,
    Timings,
    ToolRecord,
    ValidationRecord,
    Verdict,
)

TOOL = ToolRecord(
    graphopt="0.1.0",
    python="3.11.9",
    onnx="1.21.0",
    onnxruntime="1.30.0",
    onnx_graphsurgeon="0.6.1",
    numpy="2.1.0",
    platform="Linux x86_64",
    cpu="a processor",
)
SOURCE = ModelRecord(path="cnn.onnx", sha256="a" * 64, bytes=17_000_000, nodes=85, parameters=4_230_000, opset=17)
RESULT = ModelRecord(path="cnn.opt.onnx", sha256="b" * 64, bytes=4_400_000, nodes=120, parameters=4_230_000, opset=17)


def applied(**more):
    return PassRecord(
        name="simplify",
        outcome="applied",
        safety="rounding",
        applied=(
            *(SiteRecord(where=f"bn{i}", what="folded", rule="BatchNorm folded") for i in range(9)),
            SiteRecord(where="drop", what="removed", rule="Dropout removed"),
        ),
        skipped=(
            SkipRecord(where="bn9", reason="the weight is shared"),
            SkipRecord(where="bn10", reason="the weight is shared"),
            SkipRecord(where="bn11", reason="the statistics are inputs"),
        ),
        summary={"largest_fold": 0.25, "fold_ms": 3.5, "nested": {"inner_seconds": 1.0, "kept": 2}},
        checks=(
            CheckRecord(name="outputs", passed=True, message="1e-7 ≤ 1e-5", figures={"run_ms": 1.0, "moved": 1e-7}),
        ),
        nodes_before=85,
        nodes_after=75,
        seconds=0.31,
        **more,
    )


def rolled_back():
    return PassRecord(
        name="remove-channels",
        outcome="rolled back",
        reason="outputs check: output 'logits': max|Δ|/max|y| 0.9 > 1e-05",
        checks=(CheckRecord(name="outputs", passed=False, message="moved", figures={"max_relative": math.inf}),),
        nodes_before=75,
        nodes_after=75,
        seconds=75.0,
    )


def validation(outputs=1, **more):
    return ValidationRecord(
        provider="CPUExecutionProvider",
        samples=80,
        outputs=tuple(
            OutputRecord(
                name="logits" if i == 0 else f"aux{i}",
                kind="float",
                sqnr_db=20.14 + i,
                worst_sqnr_db=14.2,
                worst_sample=7,
                cosine=0.9987,
                worst_cosine=0.9941,
                max_abs=0.0844,
                max_ref=12.0,
                agreement=0.9875,
            )
            for i in range(outputs)
        ),
        class_output="logits",
        reference_top1=0.881,
        candidate_top1=0.869,
        threeway=ThreeWayRecord(
            unoptimized_db=22.0, optimized_db=20.1, runtime_db=30.0, message="22.0 dB off, 20.1 dB on"
        ),
        **more,
    )


def latency(ratio=2.4, low=2.35, high=2.46, provider="CPUExecutionProvider"):
    return LatencyRecord(
        provider=provider,
        threads=1,
        ratio=ratio,
        low=low,
        high=high,
        baseline=LatencyStatsRecord(median_ms=21.43, p95_ms=22.9, runs=60, times_ms=(21.4,)),
        candidate=LatencyStatsRecord(median_ms=21.43 / ratio, p95_ms=9.6, runs=60, times_ms=(8.9,)),
        pairs=60,
        clock="thread-cpu",
        conclusive=True,
    )


def gate(name="min-sqnr", passed=True, **more):
    fields = {
        "user_set": True,
        "bound": 15.0,
        "measured": 20.14,
        "unit": "dB",
        "message": "20.1 dB ≥ 15 dB on output 'logits'",
    }
    return GateRecord(name=name, passed=passed, **(fields | more))


def report(**more):
    fields = {
        "tool": TOOL,
        "command": ("graphopt", "run", "cnn.onnx"),
        "source": SOURCE,
        "output": RESULT,
        "result": RESULT,
        "recipe": RecipeRecord(
            resolved={"version": 1, "pass": [{"name": "simplify"}]}, toml="version = 1\n", source="int8.toml"
        ),
        "passes": (applied(), rolled_back()),
        "validation": (validation(),),
        "latency": (latency(),),
        "gates": (
            gate(),
            gate(
                "min-speedup", False, timed=True, message="2.40x [2.35, 2.46] < 2.5x", unit="x", measured=2.4, bound=2.5
            ),
        ),
        "verdict": Verdict(exit_code=1, text="gate failed: min-speedup; no model was written"),
        "warnings": ("fidelity not gated: there are no held-back samples",),
        "timings": Timings(started="2025-01-01T00:00:00+00:00", total_seconds=76.0),
    }
    return Report(**(fields | more))
