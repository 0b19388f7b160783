"""The document and the table of ``graphopt profile``."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from graphopt.report.profile import (
    AgreementRecord,
    DenormalsRecord,
    KernelRecord,
    OpRecord,
    ProfileReport,
    SourceRecord,
    profile_lines,
    short_op,
)
from graphopt.report.schema import SamplesRecord
from graphopt.report.terminal import as_text

from .records import SOURCE, TOOL

CONV = KernelRecord(
    op="com.microsoft.nchwc:Conv",
    where="block/conv",
    kind="source",
    sources=(SourceRecord(name="block/conv", op="Conv"), SourceRecord(name="block/relu", op="Relu")),
    node_ms=6.0,
    share=0.6,
    fixed=True,
)
REORDER = KernelRecord(
    op="com.microsoft.nchwc:ReorderOutput", where="feature", kind="layout", node_ms=1.0, share=0.1, fixed=False
)
SOFTMAX = KernelRecord(
    op="Softmax",
    where="attention/softmax",
    kind="source",
    sources=(SourceRecord(name="attention/softmax", op="Softmax"),),
    node_ms=3.0,
    share=0.3,
    fixed=False,
    flushed_ms=0.5,
)


def profiled(**more):
    facts = {
        "tool": TOOL,
        "model": SOURCE,
        "samples": SamplesRecord(source="memory", count=2, synthetic=True),
        "provider": "CPUExecutionProvider",
        "threads": 1,
        "agreement": AgreementRecord(
            nodes_ms=10.0,
            session_ms=8.0,
            clock="thread-cpu",
            ratio=1.25,
            profiler_ms=0.009,
            profiler_node_ms=0.003,
            lost_ms=0.0,
            runs=60,
        ),
        "ops": (
            OpRecord(op=CONV.op, kind="source", count=1, total_ms=6.0, share=0.6),
            OpRecord(op="Softmax", kind="source", count=1, total_ms=3.0, share=0.3),
            OpRecord(op=REORDER.op, kind="layout", count=1, total_ms=1.0, share=0.1),
        ),
        "kernels": (CONV, REORDER, SOFTMAX),
        "layout_ms": 1.0,
        "fixed_ms": 6.0,
        "fixed_ops": ("Conv",),
        "denormals": DenormalsRecord(measured=True, nodes=("attention/softmax",), gain_ms=2.5),
    }
    return ProfileReport(**{**facts, **more})


def text_of(report, width=100, **more):
    return as_text(profile_lines(report, width, **more))


def words_of(report, **more):
    return " ".join(text_of(report, **more).split())


def test_the_ratio_is_printed_and_nothing_is_adjusted_to_it():
    text = words_of(profiled())
    assert "session 8.00 ms CPU time of the calling thread, profiler off" in text
    assert "sum of the nodes 10.0 ms 1.250x the session: wall time of 3 nodes" in text
    assert "the profiler's own work, 3.0 µs a node" in text
    assert "2 synthetic inputs" in text


def test_waiting_is_told_where_there_was_any():
    busy = profiled().agreement.model_copy(update={"lost_ms": 4.0})
    assert "other processes" not in words_of(profiled())
    assert "4.00 ms that a run waits while other processes compute" in words_of(profiled(agreement=busy))


def test_fusions_reorders_denormals_and_the_fixed_share_are_named():
    text = words_of(profiled())
    assert "Conv (nchwc) 1 6.000 60.0 % 1 Conv+Relu" in text
    assert "1 reorders the provider added" in text
    assert "no rule can touch 6.00 ms 60.0 %: the arithmetic kernels themselves (Conv (nchwc))" in text
    assert "layout reorders 1.00 ms 10.0 %: 1 ReorderOutput (nchwc)" in text
    assert "fused by the provider 1 nodes they stand for 2 of the model's" in text
    assert "denormals 2.50 ms on 1 nodes that are faster" in text
    assert "attention/softmax (flushed 0.500 ms)" in text


def test_denormals_that_were_not_measured_say_why():
    found = DenormalsRecord(measured=False, reason="not asked for")
    assert "denormals not measured not asked for" in words_of(profiled(denormals=found))
    assert "denormals none" in words_of(profiled(denormals=DenormalsRecord(measured=True)))


def test_the_slowest_nodes_come_first_and_the_rest_is_counted():
    lines = text_of(profiled(), top=1).splitlines()
    assert "block/conv" in lines[-2]
    assert lines[-1].strip() == "and 2 more: --top N or --json"


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_line_is_wider_than_the_terminal(width):
    long = CONV.model_copy(update={"where": "a" * 300, "flushed_ms": 1.0})
    text = text_of(profiled(kernels=(long, REORDER, SOFTMAX)), width)
    assert max(len(line) for line in text.splitlines()) <= width


@pytest.mark.parametrize("width", [60, 100])
def test_no_name_is_cut(width):
    names = [f"/model/{'deep/' * 20}{layer}/{'down/' * 20}MatMul" for layer in (1, 2)]
    report = profiled(kernels=tuple(CONV.model_copy(update={"where": name}) for name in names))
    column = "".join(line[48:].rstrip() for line in text_of(report, width).split("slowest nodes")[1].splitlines()[1:])
    assert column == "".join(names)
    assert [kernel["where"] for kernel in json.loads(report.to_json())["kernels"]] == names


def test_names_cannot_steer_the_terminal():
    evil = CONV.model_copy(update={"where": "a\x1b[2J"})
    assert "\x1b" not in text_of(profiled(kernels=(evil,)))


def test_the_document_reads_back_equal_and_describes_every_key():
    whole = profiled()
    document = json.loads(whole.to_json())
    assert (document["schema_id"], document["schema_version"]) == ("graphopt/profile", 1)
    assert list(document) == list(ProfileReport.model_fields)
    assert ProfileReport.model_validate_json(whole.to_json()) == whole
    with pytest.raises(ValidationError):
        ProfileReport.model_validate_json(json.dumps(document | {"surprise": 1}))
    assert set(ProfileReport.model_json_schema()["properties"]) == set(ProfileReport.model_fields)


def test_operators_are_named_shortly():
    assert [short_op(op) for op in ("Conv", "com.microsoft.nchwc:Conv", "com.microsoft:Gelu")] == [
        "Conv",
        "Conv (nchwc)",
        "Gelu (microsoft)",
    ]
