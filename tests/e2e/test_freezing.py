"""Initializers that are also inputs, and weights behind DequantizeLinear, in whole runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt import Model, optimize
from graphopt.errors import UsageError
from graphopt.pipeline.recipe import Recipe
from graphopt.report.schema import PassRecord, Report
from graphopt.runtime.target import Target
from graphopt.testing import formats
from graphopt.testing.draft import Draft
from graphopt.validation.equivalence import check_equivalence, prepare_feeds
from tests.conftest import Cli


@pytest.fixture(scope="module")
def every() -> onnx.ModelProto:
    """A stack of Conv, BatchNormalization and Relu whose every initializer is an input."""
    return formats.listed_weights(blocks=4, size=16)


@pytest.fixture(scope="module")
def some() -> onnx.ModelProto:
    """The same with one weight that is no input."""
    return formats.listed_weights(blocks=4, size=16, left_out=1)


def record(report: Report, name: str) -> PassRecord:
    (found,) = (p for p in report.passes if p.name == name)
    return found


def inputs(model: Model) -> list[str]:
    return [value.name for value in model.to_proto().graph.input]


def assert_same_outputs(source: onnx.ModelProto, result: Model) -> None:
    reference = Model.from_proto(source)
    feeds = prepare_feeds(reference, None, seed=7, target=Target()).feeds
    assert feeds is not None
    found = check_equivalence(reference, result, feeds, safety="rounding", target=Target())
    assert found.passed, found.message


def test_the_default_run_freezes_a_habit_and_says_so(every: onnx.ModelProto) -> None:
    result = optimize(every, max_seconds=1, tune_time=1, gates={"never_slower": False})
    frozen = record(result.report, "freeze-initializers")
    assert (frozen.outcome, frozen.named) == ("applied", False)
    assert len(frozen.applied) == 20
    assert inputs(result.model) == ["input"]
    assert result.model.node_count == 8, "simplify folds BatchNormalization once the weights are constants"
    assert not any("left alone" in text for text in result.report.warnings)
    assert_same_outputs(every, result.model)
    assert inputs(Model.from_proto(every))[:2] == ["input", "block0.conv.weight"]


def test_a_deliberate_interface_is_kept_with_the_gain_of_freezing_it(some: onnx.ModelProto) -> None:
    result = optimize(some, max_seconds=1, tune_time=1)
    kept = record(result.report, "freeze-initializers")
    assert kept.outcome == "unchanged"
    assert len(kept.skipped) == 19
    assert "--freeze-initializers" in kept.skipped[0].reason
    assert 0 < kept.summary["freezing_low_speedup"] <= kept.summary["freezing_speedup"]
    assert any("times as fast with these 19 inputs frozen" in note for note in kept.notes)
    assert any(text.startswith("19 initializers are also graph inputs") for text in result.report.warnings)
    assert inputs(result.model) == [value.name for value in some.graph.input]


def test_what_a_clock_decided_is_left_out_of_a_comparison(some: onnx.ModelProto) -> None:
    reports = [optimize(some, max_seconds=0.5, tune_time=0).report.without_timings() for _ in range(2)]
    assert reports[0].passes == reports[1].passes
    assert reports[0].warnings == reports[1].warnings


def test_consent_freezes_what_was_kept(some: onnx.ModelProto) -> None:
    result = optimize(some, freeze_initializers=True, measure=False)
    assert record(result.report, "freeze-initializers").named
    assert inputs(result.model) == ["input"]
    assert_same_outputs(some, result.model)


def test_a_refusal_keeps_what_would_be_frozen(every: onnx.ModelProto) -> None:
    result = optimize(every, freeze_initializers=False, measure=False)
    assert "freeze-initializers" not in [p.name for p in result.report.passes]
    assert inputs(result.model) == [value.name for value in every.graph.input]
    assert any("are also graph inputs" in text for text in result.report.warnings)


@pytest.mark.parametrize("part", ["data", "evaluation"])
def test_an_input_that_samples_give_values_for_is_kept_and_fed_to_both(every: onnx.ModelProto, part: str) -> None:
    rng = np.random.default_rng(0)
    weight = onnx.numpy_helper.to_array(every.graph.initializer[0])
    feeds = [{"input": rng.standard_normal((1, 32, 16, 16)).astype(np.float32)} for _ in range(6)]
    given: dict[str, Any] = {**feeds[-1], "block0.conv.weight": weight * np.float32(0.5)}
    words = {"data": [*feeds, given]} if part == "data" else {"evaluation": [*feeds, given], "calib": feeds}
    result = optimize(every, measure=False, **words)
    assert inputs(result.model) == ["input", "block0.conv.weight"]
    (skip,) = record(result.report, "freeze-initializers").skipped
    assert skip.where == "block0.conv.weight"
    (validation,) = result.report.validation
    worst = min(output.worst_sqnr_db or 0.0 for output in validation.outputs)
    assert worst >= (10.0 if record(result.report, "quantize").outcome == "applied" else 100.0)


def test_the_resolved_recipe_gives_the_same_bytes(every: onnx.ModelProto) -> None:
    first = optimize(every, max_seconds=1, tune_time=1, gates={"never_slower": False})
    entries = first.report.recipe.resolved["pass"]
    assert entries[0] == {"name": "freeze-initializers", "partial": False}
    again = optimize(every, recipe=Recipe.model_validate(first.report.recipe.resolved), measure=False)
    assert again.model.fingerprint() == first.model.fingerprint()


def test_flags_on_the_command_line(cli: Cli, some: onnx.ModelProto, tmp_path: Path) -> None:
    source, out = tmp_path / "some.onnx", tmp_path / "out.onnx"
    onnx.save(some, source)
    done = cli("run", source, "-o", out, "--freeze-initializers", "--no-measure", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["passes"][0]["outcome"] == "applied"
    assert [value.name for value in onnx.load(out).graph.input] == ["input"]
    both = cli("run", source, "-o", out, "--overwrite", "--freeze-initializers", "--keep-overridable")
    assert (both.code, "exclude each other" in both.err) == (2, True)
    named = cli("run", source, "-o", out, "--overwrite", "--freeze-initializers", "--pass", "simplify")
    assert (named.code, "name the pass" in named.err) == (2, True)


def test_weights_behind_dequantizelinear_are_folded_on_consent_only(cli: Cli, tmp_path: Path) -> None:
    draft = Draft(0)
    x = draft.input("input", [1, 8, 8, 8])
    weight = draft.const("w", draft.rng.integers(-127, 128, (16, 8, 3, 3)).astype(np.int8))
    scale = draft.const("scale", draft.rng.uniform(0.001, 0.002, 16).astype(np.float32))
    zero = draft.const("zero", np.zeros(16, np.int8))
    weight = draft.node("DequantizeLinear", [weight, scale, zero], "weight", axis=0)
    draft.node("Conv", [x, weight], "output", kernel_shape=[3, 3])
    draft.output("output", [1, 16, 6, 6])
    source = draft.model("weight_only")
    onnx.save(source, tmp_path / "source.onnx")
    assert "whose layers compute in float: 1; --dequantize-constants" in cli("inspect", tmp_path / "source.onnx").out
    kept = optimize(source, measure=False)
    assert "DequantizeLinear" in [node.op for node in kept.model.editor.nodes()]
    result = optimize(source, dequantize_constants=True, measure=False)
    done = record(result.report, "dequantize-constants")
    assert (done.outcome, done.named) == ("applied", True)
    assert [node.op for node in result.model.editor.nodes()] == ["Conv"]
    assert done.summary["file_bytes_before"] == result.report.source.bytes < done.summary["file_bytes_after"]
    assert "the file goes from" in done.headline
    assert_same_outputs(source, result.model)
    with pytest.raises(UsageError, match="default run"):
        optimize(source, passes=["simplify"], dequantize_constants=True)


def test_inspect_names_them_and_what_freezing_brings(cli: Cli, some: onnx.ModelProto, tmp_path: Path) -> None:
    source = tmp_path / "some.onnx"
    onnx.save(some, source)
    told = cli("inspect", source)
    assert told.code == 0, told.err
    assert "19 initializers are also inputs" in told.out
    assert "block0.bn.scale, " in told.out
    assert "times as fast with these 19 inputs frozen (--freeze-initializers)" in told.out
    assert "output.bn.var" not in told.out
    assert "output.bn.var" in cli("inspect", source, "-v", "--no-measure").out
    figures = json.loads(cli("inspect", source, "--json").out)
    assert 0 < figures["freezing"]["low"] <= figures["freezing"]["speedup"] <= figures["freezing"]["high"]
    assert "freezing" not in json.loads(cli("inspect", source, "--json", "--no-measure").out)


def test_two_models_cannot_be_compared_on_values_that_one_of_them_has_frozen(
    cli: Cli, every: onnx.ModelProto, tmp_path: Path
) -> None:
    source, frozen, samples = (tmp_path / name for name in ("source.onnx", "frozen.onnx", "samples.npz"))
    onnx.save(every, source)
    optimize(every, passes=["freeze-initializers"], measure=False).model.save(frozen)
    rng = np.random.default_rng(0)
    values = {"input": rng.standard_normal((2, 32, 16, 16)).astype(np.float32)}
    np.savez(samples, **values)
    assert cli("validate", source, frozen, "--data", samples).code == 0
    for command in ("validate", "bench"):
        given = tmp_path / "given"
        given.mkdir(exist_ok=True)
        weight = onnx.numpy_helper.to_array(every.graph.initializer[0])
        np.savez(given / "one.npz", **{"input": values["input"][:1], "block0.conv.weight": weight})
        refused = cli(command, source, frozen, "--data", given)
        assert refused.code == 4, refused.out + refused.err
        assert "block0.conv.weight, which the second model no longer takes" in refused.err
