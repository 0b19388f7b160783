import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.cli.progress import make_progress
from graphopt.progress import Silent
from graphopt.report.schema import OutputRecord, PassRecord, Verdict
from graphopt.report.terminal import encodable, print_report, render
from graphopt.report.text import (
    alike,
    cells,
    change,
    count,
    counted,
    cut,
    fraction,
    pad,
    printable,
    seconds,
    significant,
    size,
    wrap,
)

from .records import applied, gate, latency, report, validation


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Narrow(io.StringIO):
    encoding = "ascii"


def line_with(text, words):
    return next(line for line in text.splitlines() if words in line)


def test_before_and_after_stand_side_by_side():
    text = render(report())
    assert line_with(text, "nodes  ").split() == ["nodes", "85", "120", "+41", "%"]
    assert line_with(text, "file size").split() == ["file", "size", "17.0", "MB", "4.4", "MB", "-74", "%"]
    assert "4.2 M        4.2 M" in line_with(text, "parameters")
    assert "21.4 ms      8.93 ms      2.40x [2.35, 2.46]" in line_with(text, "latency p50")
    assert "0.8810       0.8690       -1.20 points" in line_with(text, "top-1")


def test_each_pass_says_what_changed_and_what_it_left_alone():
    text = render(report())
    assert "85 → 75 nodes; 9 BatchNorm folded, 1 Dropout removed" in " ".join(text.split())
    assert "left alone 3: the weight is shared (2); the statistics are inputs (1)" in text
    assert "✘ remove-channels" in text
    assert "rolled back: outputs check: output 'logits': max|Δ|/max|y| 0.9 >" in text
    assert "1 min 15 s" in text


def test_outputs_and_gates_come_with_their_numbers():
    text = " ".join(render(report()).split())
    assert "SQNR 20.1 dB (worst sample 14.2 dB)" in text
    assert "cosine 0.9987 (worst 0.9941)" in text
    assert "argmax agrees 98.8 %" in text
    assert "✔ min-sqnr: 20.1 dB ≥ 15 dB" in text
    assert "✘ min-speedup: 2.40x [2.35, 2.46] < 2.5x" in text


def test_the_last_line_is_the_verdict_and_the_report_is_named():
    text = render(report(), report_path="cnn.opt.graphopt.json")
    assert text.splitlines()[-1] == "FAILED: gate failed: min-speedup; no model was written (exit 1)"
    assert "report cnn.opt.graphopt.json" in text
    good = render(report(verdict=Verdict(exit_code=0, text="kept: simplify")))
    assert good.splitlines()[-1] == "OK: kept: simplify (exit 0)"


def test_defaults_are_told_from_the_users_gates():
    assert "floor, default: fine" in render(report(gates=(gate("floor", user_set=False, message="fine"),)))


def test_verbose_names_every_place_and_check():
    text = render(report(), verbose=True)
    for words in ("changed bn3: folded", "left alone bn11: the statistics are inputs", "check outputs: held"):
        assert words in text
    assert "bn3" not in render(report())


def test_many_outputs_are_cut_to_the_worst_four():
    whole = report(validation=(validation(outputs=6),))
    assert "and 2 more" in render(whole)
    assert "aux5" not in render(whole)
    assert "aux5" in render(whole, verbose=True)


def test_discrete_and_identical_outputs_have_their_own_words():
    outputs = (
        OutputRecord(name="ids", kind="discrete", agreement=0.995),
        OutputRecord(name="same", kind="float", sqnr_db=float("inf"), worst_sqnr_db=float("inf"), max_abs=0.0),
    )
    text = render(report(validation=(validation().model_copy(update={"outputs": outputs}),)))
    assert "99.5 % of the elements are equal" in text
    assert line_with(text, "same").split() == ["same", "identical"]


def test_an_output_that_holds_no_number_is_not_called_identical():
    blind = {"kind": "float", "sqnr_db": float("inf"), "worst_sqnr_db": float("inf"), "max_abs": 0.0}
    outputs = tuple(OutputRecord(name=f"dead{i}", **blind, finite_share=0.0, nan_mismatch=i) for i in range(2))
    told = validation(5).model_copy(update={"outputs": (*validation(5).outputs, *outputs)})
    text = render(report(validation=(told,)))
    assert "identical" not in text
    assert "nothing was compared: all elements of the original are NaN or infinite" in line_with(text, "dead0")
    assert "1 of them not so in the other model" in " ".join(text.split())


def test_an_output_without_elements_is_not_called_identical():
    blank = OutputRecord(name="boxes", kind="discrete", agreement=1.0, finite_share=0.0, empty=True)
    equal = OutputRecord(name="ids", kind="discrete", agreement=1.0)
    text = render(report(validation=(validation().model_copy(update={"outputs": (blank, equal)}),)))
    assert "nothing was compared: it holds no element on any sample" in line_with(text, "boxes")
    assert line_with(text, "ids").split() == ["ids", "identical"]


def test_two_providers_are_told_apart():
    two = (latency(), latency(3.0, 2.9, 3.1, "CUDAExecutionProvider"))
    text = render(report(latency=two))
    assert "latency p50 CPU" in text
    assert "latency p50 CUDA" in text


@pytest.mark.parametrize("width", [60, 72, 100, 200])
@pytest.mark.parametrize("verbose", [False, True])
def test_no_line_is_wider_than_asked(width, verbose):
    long = applied(notes=("word " * 60, "x" * 300, "名前" * 80))
    source = report().source.model_copy(update={"path": "a/very/long/path/" * 20 + "m.onnx"})
    text = render(report(passes=(long,), source=source), width=width, verbose=verbose, report_path="r" * 250)
    assert max(cells(line) for line in text.splitlines()) <= width


def test_plain_text_holds_no_control_code():
    out = io.StringIO()
    print_report(report(), stream=out)
    assert "\x1b" not in out.getvalue()
    assert out.getvalue() == render(report())


def test_a_terminal_gets_colours_and_the_same_words(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    print_report(report(), stream=out)
    bare = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    assert "\x1b[" in out.getvalue()
    assert [line.rstrip() for line in bare.splitlines()] == render(report()).splitlines()


def test_no_color_means_no_escape_sequence_at_all(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    print_report(report(), stream=out)
    assert out.getvalue() == render(report(), width=80)
    monkeypatch.setattr("sys.stderr", out)
    assert isinstance(make_progress(quiet=False), Silent)


def test_names_from_a_model_cannot_steer_the_terminal():
    evil = "y\x1b[2J\x07"
    found = validation().model_copy(update={"outputs": (OutputRecord(name=evil, kind="discrete", agreement=1.0),)})
    failed = PassRecord(name="simplify", outcome="failed", reason=f"at {evil}")
    text = render(report(validation=(found,), passes=(failed,), warnings=(evil,)), verbose=True)
    assert "\x1b" not in text
    assert "\x07" not in text


def test_a_stream_without_the_signs_gets_ascii():
    out = Narrow()
    print_report(report(), stream=out)
    assert out.getvalue().isascii()
    assert "x remove-channels" in out.getvalue()
    assert encodable("2 → 1", "utf-8") == "2 → 1"
    assert encodable("2 → 1", "latin-1") == "2 -> 1"


def test_a_run_without_passes_or_measurements_still_closes():
    text = render(report(passes=(), validation=(), latency=(), gates=(), warnings=(), output=None, result=None))
    assert "no pass was run" in text
    assert text.splitlines()[-1].startswith("FAILED")


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=120), st.integers(1, 30))
def test_wrapping_keeps_every_character_and_the_width(text, width):
    safe = printable(text)
    lines = wrap(safe, width)
    assert "".join("".join(lines).split()) == "".join(safe.split())
    assert all(cells(line) <= max(width, 2) for line in lines)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40), st.integers(2, 30))
def test_cut_and_pad_give_the_asked_width(text, width):
    assert cells(pad(cut(printable(text), width), width)) == width


def test_numbers_read_as_people_write_them():
    assert [size(n) for n in (999, 1500, 17_000_000, 250_000_000)] == ["999 B", "1.5 kB", "17.0 MB", "250 MB"]
    assert [count(n) for n in (85, 9_999, 25_600_000)] == ["85", "9,999", "25.6 M"]
    assert [change(100, 71), change(100, 100), change(1000, 1001), change(0, 5)] == ["-29 %", "", "+0.1 %", "new"]
    assert [seconds(0.3), seconds(125), seconds(None)] == ["0.3 s", "2 min 05 s", ""]
    digits = [significant(v, 3) for v in (21.43, 0.01234, 1.5e-7, 0.0, 1234.5)]
    assert digits == ["21.4", "0.0123", "1.50e-07", "0", "1234"]


def test_a_single_miss_is_never_shown_as_all_right():
    assert fraction(0.99996) == "> 99.9 %"
    assert fraction(1.0) == "100.0 %"


def test_reasons_are_counted_the_most_frequent_first():
    assert counted(["b", "a", "a", "c", "d"], 2) == "2 a, 1 b, 2 others"


def test_reasons_that_differ_in_numbers_only_are_told_once():
    reasons = ["has 288 elements, fewer than 1024", "is shared", "has 576 elements, fewer than 1024", "x", "y"]
    assert alike(reasons, 2) == "has … elements, fewer than 1024 (2); is shared (1); other reasons (2)"
    assert alike(["a 1"], 3) == "a 1 (1)"
