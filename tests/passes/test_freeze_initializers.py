"""The pass `freeze-initializers`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from onnx import TensorProto, helper, numpy_helper

from graphopt.analysis.cache import Analyses
from graphopt.data.check import fed_defaults
from graphopt.data.samples import Samples
from graphopt.errors import UsageError
from graphopt.model.model import Model
from graphopt.passes.freeze_initializers import FED, KEPT, NOT_SELECTED, SOME, FreezeInitializers
from graphopt.pipeline.contract import PassContext, PassResult
from graphopt.pipeline.overridable import freezing_gain, listing
from graphopt.pipeline.selection import Selection
from graphopt.runtime.target import Target
from graphopt.testing import builders, formats
from graphopt.testing.draft import Draft
from graphopt.testing.strategies import feature_maps
from graphopt.testing.trial import default_samples
from tests.backend.suite import listed


def context(model: Model, fed: frozenset[str] = frozenset(), **words: Any) -> PassContext:
    return PassContext(
        model=model,
        source=model.clone(),
        analyses=Analyses(model),
        selection=Selection.of(model, words.get("only", ()), words.get("skip", ())),
        samples=None,
        target=Target(),
        time_budget=0.0,
        fed=fed,
    )


def frozen(proto: onnx.ModelProto, fed: frozenset[str] = frozenset(), **options: Any) -> tuple[Model, PassResult]:
    """Run the pass and tidy up, as the manager would."""
    model = Model.from_proto(proto)
    result = FreezeInitializers(FreezeInitializers.Options(**options)).run(context(model, fed, **options))
    model.finish()
    return model, result


def unpacked(proto: onnx.ModelProto, feed: Any) -> list[bytes]:
    """Outputs with the runtime's optimizations and its packing of weights off."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(value).tobytes() for value in session.run(None, dict(feed))]


def test_only_the_listing_goes() -> None:
    source = formats.listed_weights()
    model, result = frozen(source)
    names = [tensor.name for tensor in source.graph.initializer]
    assert list(result.dropped_inputs) == names == [site.where for site in result.applied]
    written = model.to_proto()
    assert [value.name for value in written.graph.input] == ["input"]
    assert written.graph.input[0] == source.graph.input[0]
    assert {t.name: t.SerializeToString() for t in written.graph.initializer} == {
        t.name: t.SerializeToString() for t in source.graph.initializer
    }
    assert [n.SerializeToString() for n in written.graph.node] == [n.SerializeToString() for n in source.graph.node]
    assert result.summary["inputs_frozen"] == len(names)
    assert result.summary["bytes_frozen"] == sum(len(t.raw_data) for t in source.graph.initializer)


@pytest.mark.parametrize("name", sorted(builders.ALL))
def test_outputs_are_bit_identical_once_packing_is_off(name: str) -> None:
    source = listed(builders.ALL[name](0))
    model, _ = frozen(source)
    assert model.interface.overridable == ()
    feed = default_samples(model)[0]
    assert unpacked(model.to_proto(), feed) == unpacked(source, feed)


@settings(max_examples=25, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(feature_maps())
def test_what_was_listed_and_frozen_is_the_model_that_never_listed_anything(proto: onnx.ModelProto) -> None:
    model, _ = frozen(listed(proto))
    assert model.fingerprint() == Model.from_proto(proto).fingerprint()


@pytest.mark.parametrize("build", [formats.ir3, formats.opset8])
def test_below_ir_4_the_listing_is_kept(build: Any) -> None:
    model, result = frozen(build())
    assert not result.modified and not result.skipped
    assert [v.name for v in model.to_proto().graph.input] == [v.name for v in build().graph.input]


def test_with_one_weight_left_out_the_rest_looks_deliberate() -> None:
    source = formats.listed_weights(left_out=1)
    model, result = frozen(source, partial=False)
    assert not result.modified
    assert {skip.reason for skip in result.skipped} == {SOME}
    assert len(result.skipped) == len(source.graph.initializer) - 1
    assert not frozen(source)[0].interface.overridable
    assert model.fingerprint() == Model.from_proto(source).fingerprint()


def test_a_shape_that_a_later_tool_added_does_not_make_the_rest_deliberate() -> None:
    draft = Draft(0)
    x = draft.input("input", [2, 16])
    x = draft.node("MatMul", [x, draft.weight("weight", 16, 12)], "product")
    draft.input("weight", [16, 12])
    draft.node("Reshape", [x, draft.const("shape", np.array([2, 3, 4], np.int64))], "output")
    draft.output("output", [2, 3, 4])
    model, result = frozen(draft.model("reshaped"), partial=False)
    assert result.dropped_inputs == ("weight",)
    assert listing(model).names == ()


def test_a_threshold_with_a_default_is_no_habit() -> None:
    draft = Draft(0)
    x = draft.input("input", [2, 16])
    draft.node("Add", [x, draft.const("threshold", np.array([0.5], np.float32))], "output")
    draft.input("threshold", [1])
    draft.output("output", [2, 16])
    assert frozen(draft.model("threshold"), partial=False)[1].skipped[0].reason == SOME


def test_what_the_samples_feed_stays() -> None:
    source = formats.listed_weights()
    model, result = frozen(source, frozenset({"block0.conv.weight"}), partial=False)
    assert [spec.name for spec in model.interface.overridable] == ["block0.conv.weight"]
    assert [(skip.where, skip.reason) for skip in result.skipped] == [("block0.conv.weight", FED)]


def test_which_inputs_samples_feed() -> None:
    interface = Model.from_proto(formats.overridable()).interface
    plain = {"input": np.zeros((2, 16), np.float32)}
    given = {**plain, "free.weight": np.zeros((16, 32), np.float32)}
    assert fed_defaults(interface, None, Samples.of([plain, plain])) == frozenset()
    assert fed_defaults(interface, Samples.of([plain]), Samples.of([plain, given])) == {"free.weight"}


def test_keep_only_and_skip() -> None:
    source = formats.listed_weights()
    model, result = frozen(source, keep="*.conv.weight")
    assert {spec.name for spec in model.interface.overridable} == {"block0.conv.weight", "output.conv.weight"}
    assert {skip.reason for skip in result.skipped} == {KEPT}
    model, result = frozen(source, only=("op:Conv",))
    assert set(result.dropped_inputs) == {"block0.conv.weight", "output.conv.weight"}
    assert {skip.reason for skip in result.skipped} == {NOT_SELECTED}
    assert frozen(source, skip=("*",))[1].dropped_inputs == ()


def test_a_slip_in_keep_is_an_error() -> None:
    with pytest.raises(UsageError, match="wieght"):
        FreezeInitializers(FreezeInitializers.Options(keep=("block0.conv.wieght",))).run(
            context(Model.from_proto(formats.listed_weights()))
        )
    assert not frozen(formats.ir3(), keep=("anything",))[1].modified


def test_an_input_that_nothing_reads_goes_too() -> None:
    source = formats.listed_weights()
    source.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "unread"))
    source.graph.input.append(helper.make_tensor_value_info("unread", TensorProto.FLOAT, [3]))
    model, result = frozen(source)
    assert "unread" in result.dropped_inputs
    assert model.interface.overridable == ()
    assert "unread" not in frozen(source, only=("op:Conv",))[1].dropped_inputs


def test_a_default_that_is_an_output_and_one_that_a_body_captures() -> None:
    def branch(name: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2])
        return helper.make_graph([helper.make_node("Add", ["x", "w"], [name])], name, [], [out])

    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in ("x", "w", "shown", "y")}
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=branch("a"), else_branch=branch("b"))],
        "captured",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, []), values["x"], values["w"], values["shown"]],
        [values["y"], values["shown"]],
        [numpy_helper.from_array(np.full((2, 2), k, np.float32), name) for k, name in enumerate(("w", "shown"))],
    )
    source = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    model, result = frozen(source)
    assert set(result.dropped_inputs) == {"w", "shown"}
    onnx.checker.check_model(model.to_proto(), full_check=True)
    feed = {"c": np.array(True), "x": np.ones((2, 2), np.float32)}
    assert unpacked(model.to_proto(), feed) == unpacked(source, feed)


def test_the_gain_of_what_is_kept_is_measured_where_there_is_time() -> None:
    source = Model.from_proto(formats.listed_weights(left_out=1))
    feeds = default_samples(source)
    rewrite = FreezeInitializers(FreezeInitializers.Options(partial=False))
    asked = replace(context(source), feeds=feeds, time_budget=1.0)
    summary = rewrite.run(asked).summary
    assert float(str(summary["freezing_low_speedup"])) <= float(str(summary["freezing_speedup"]))
    assert "freezing_speedup" not in rewrite.run(replace(asked, time_budget=0.0)).summary
    assert listing(source).names and not listing(source).every


def test_no_gain_where_the_model_does_not_run() -> None:
    source = Model.from_proto(formats.listed_weights())
    wrong = Samples.of([{"input": np.zeros((1, 3, 8, 8), np.float32)}])
    assert freezing_gain(source, listing(source).names, wrong, Target(), max_seconds=1.0) is None
