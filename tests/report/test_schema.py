import json
import math

import numpy as np
import pytest
from pydantic import ValidationError

from graphopt.report.schema import TIMED_WARNING, LatencyRecord, OutputRecord, Report, Timings, plain

from .records import applied, gate, latency, report, validation


def test_a_document_reads_back_equal():
    whole = report()
    assert Report.from_json(whole.to_json()) == whole


def test_the_document_is_strict_json_and_names_its_schema():
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    document = json.loads(report().to_json(), parse_constant=refuse)
    assert (document["schema_id"], document["schema_version"]) == ("graphopt/report", 1)
    assert list(document) == list(Report.model_fields)


def test_infinities_are_strings_and_read_back_as_numbers():
    output = OutputRecord(name="y", kind="float", sqnr_db=math.inf, worst_sqnr_db=-math.inf, max_abs=math.nan)
    found = validation().model_copy(update={"outputs": (output,)})
    whole = report(validation=(found,))
    held = json.loads(whole.to_json())["validation"][0]["outputs"][0]
    assert (held["sqnr_db"], held["worst_sqnr_db"], held["max_abs"]) == ("Infinity", "-Infinity", "NaN")
    back = Report.from_json(whole.to_json()).validation[0].outputs[0]
    assert (back.sqnr_db, back.worst_sqnr_db) == (math.inf, -math.inf)
    assert math.isnan(back.max_abs)


def test_two_runs_that_differ_in_time_only_are_equal_without_timings():
    slow = report(
        latency=(latency(1.1, 0.9, 1.3),),
        warnings=(*report().warnings, f"{TIMED_WARNING}CPUExecutionProvider is inconclusive"),
        timings=Timings(started="2030-12-31T00:00:00+00:00", total_seconds=1.0),
        passes=(applied().model_copy(update={"seconds": 99.0, "summary": {**applied().summary, "fold_ms": 77.0}}),),
        gates=(gate("min-speedup", timed=True, measured=9.9, message="9.90x"),),
    )
    fast = report(
        passes=(applied(),),
        gates=(gate("min-speedup", timed=True, measured=2.4, message="2.40x"),),
    )
    assert slow != fast
    assert slow.without_timings().to_json() == fast.without_timings().to_json()


def test_without_timings_keeps_every_figure_that_no_clock_decided():
    bare = report().without_timings()
    assert bare.passes[0].summary == {"largest_fold": 0.25, "nested": {"kept": 2}}
    assert bare.passes[0].checks[0].figures == {"moved": 1e-7}
    assert bare.gates[0] == gate()
    assert bare.gates[1].passed is False
    assert bare.validation == report().validation


def test_a_verdict_that_flips_still_shows_without_timings():
    held = report(gates=(gate("min-speedup", True, timed=True),)).without_timings()
    failed = report(gates=(gate("min-speedup", False, timed=True),)).without_timings()
    assert held != failed


def test_unknown_keys_and_versions_are_refused():
    document = json.loads(report().to_json())
    with pytest.raises(ValidationError):
        Report.from_json(json.dumps(document | {"surprise": 1}))
    with pytest.raises(ValidationError):
        Report.from_json(json.dumps(document | {"schema_version": 2}))


def test_a_report_cannot_be_changed():
    with pytest.raises(ValidationError):
        report().seed = 5


def test_numpy_values_become_plain_numbers():
    value = plain({"a": np.float32(0.5), "b": np.arange(3), "c": (np.int64(7), None, True), "d": {2, 1}})
    assert value == {"a": 0.5, "b": [0, 1, 2], "c": [7, None, True], "d": [1, 2]}
    assert json.loads(json.dumps(value)) == value
    assert plain(np.float64("inf")) == "Infinity"


def test_what_json_cannot_hold_is_refused():
    with pytest.raises(TypeError):
        plain({"model": object()})


def test_the_json_schema_describes_every_key():
    schema = Report.model_json_schema()
    assert set(schema["properties"]) == set(Report.model_fields)
    assert "conclusive" in schema["$defs"][LatencyRecord.__name__]["properties"]
