import json

from graphopt.report.pair import PairReport, pair_lines

from .records import RESULT, SOURCE, TOOL, gate, latency, validation


def pair(**more):
    return PairReport(tool=TOOL, reference=SOURCE, candidate=RESULT, **more)


def test_a_comparison_shows_outputs_and_scores_but_no_latency():
    text = " ".join(" ".join(pair_lines(pair(validation=(validation(),), gates=(gate(),)))).split())
    assert text.startswith("cnn.onnx → cnn.opt.onnx")
    assert "SQNR 20.1 dB (worst sample 14.2 dB)" in text
    assert "top-1 0.8810 0.8690 -1.20 points" in text
    assert "✔ min-sqnr" in text
    assert "latency" not in text


def test_a_measurement_shows_both_percentiles_and_the_interval():
    text = " ".join(" ".join(pair_lines(pair(latency=(latency(),)))).split())
    assert "latency p50 21.4 ms 8.93 ms 2.40x [2.35, 2.46]" in text
    assert "p95 22.9 ms 9.60 ms CPU, 1 thread, CPU time, 60 pairs" in text
    assert "outputs" not in text


def test_names_cannot_steer_the_terminal():
    evil = SOURCE.model_copy(update={"path": "a\x1b[2J.onnx"})
    assert "\x1b" not in "".join(pair_lines(PairReport(tool=TOOL, reference=evil, candidate=RESULT)))


def test_the_document_reads_back_equal():
    whole = pair(validation=(validation(),), latency=(latency(),), gates=(gate(),), exit_code=0)
    assert json.loads(whole.to_json())["schema_id"] == "graphopt/pair"
    assert PairReport.model_validate_json(whole.to_json()) == whole
