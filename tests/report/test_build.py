import math

import numpy as np

from graphopt.data.samples import Samples
from graphopt.errors import PassError
from graphopt.model.model import Model
from graphopt.pipeline.contract import Pass, PassContext, PassOptions, PassResult, Safety, Site, Skip
from graphopt.pipeline.outcome import CheckResult, Outcome, OutcomeKind
from graphopt.pipeline.recipe import Step
from graphopt.report.build import (
    gate_records,
    latency_record,
    model_record,
    pass_record,
    samples_record,
    tool_record,
    validation_record,
)
from graphopt.runtime.latency import LatencyStats, PairedLatency
from graphopt.runtime.session import open_session
from graphopt.testing.builders import conv_bn_relu, mlp
from graphopt.validation.compare import compare
from graphopt.validation.gates import Facts, Gates, judge
from graphopt.validation.threeway import ThreeWay


class Touch(Pass):
    """Does nothing; its outcome is made by hand."""

    name = "touch"
    code = "TCH"
    safety = Safety.ROUNDING

    def run(self, ctx: PassContext) -> PassResult:
        return PassResult(False)


def step(**options):
    return Step(Touch(PassOptions(**options)), named=True)


def test_a_models_record_tells_its_size_and_identity():
    model = Model.from_proto(conv_bn_relu())
    record = model_record(model, "cnn.onnx")
    assert record.sha256 == model.fingerprint()
    assert record.nodes == len(model.to_proto().graph.node)
    sizes = [int(np.prod(t.dims)) for t in model.to_proto().graph.initializer]
    assert record.parameters == sum(sizes)
    assert record.opset == 17


def test_an_outcome_becomes_a_record_with_everything_in_it():
    result = PassResult(
        True,
        applied=(Site("conv", "halved", "half", {"kept": np.int64(16)}),),
        skipped=(Skip("fc", "feeds an output"),),
        summary={"ratio": np.float32(0.5)},
        notes=("read me",),
    )
    checks = (CheckResult("outputs", False, "moved", {"max_relative": math.inf}),)
    outcome = Outcome(step(skip=("fc",)), OutcomeKind.ROLLED_BACK, "outputs check: moved", result, checks, nodes=(3, 3))
    record = pass_record(outcome)
    assert (record.name, record.outcome, record.safety, record.named) == ("touch", "rolled back", "rounding", True)
    assert record.options == {"skip": ["fc"]}
    assert record.applied[0].figures == {"kept": 16}
    assert record.skipped[0].reason == "feeds an output"
    assert record.summary == {"ratio": 0.5}
    assert record.checks[0].figures == {"max_relative": "Infinity"}
    assert (record.nodes_before, record.nodes_after) == (3, 3)


def test_a_failed_pass_keeps_its_error():
    error = PassError("GO-801", "touch raised ValueError", hint="--debug shows the traceback")
    record = pass_record(Outcome(step(), OutcomeKind.FAILED, str(error), error=error))
    assert record.error is not None
    assert (record.error["code"], record.error["exit_code"]) == ("GO-801", 70)
    assert record.applied == ()


def test_samples_are_known_by_their_content():
    feeds = [{"x": np.ones(3, np.float32)}, {"x": np.zeros(3, np.float32)}]
    record = samples_record(Samples.of(feeds, np.array([0, 1]), source="memory"))
    assert (record.count, record.labelled, record.synthetic) == (2, True, False)
    assert record.sha256 == Samples.of(feeds, np.array([0, 1])).fingerprint
    assert samples_record(Samples.of(feeds), fingerprint=False).sha256 == ""
    assert samples_record(None) is None


def test_a_real_comparison_and_its_gates_become_records():
    model = Model.from_proto(mlp())
    rng = np.random.default_rng(0)
    samples = Samples.of([{"input": rng.normal(size=(4, 16)).astype(np.float32)} for _ in range(3)])
    session = open_session(model)
    found = compare(session, session, samples)
    record = validation_record("CPUExecutionProvider", found, ThreeWay(20.0, 19.0, 30.0, "fine"))
    assert [o.sqnr_db for o in record.outputs] == [math.inf]
    assert (record.samples, record.synthetic) == (3, False)
    assert record.threeway.optimized_db == 19.0
    verdicts = judge(Gates(min_sqnr=20), Facts(100, (("CPUExecutionProvider", found),)))
    (gate,) = gate_records(verdicts)
    assert (gate.name, gate.passed, gate.measured) == ("min-sqnr", True, math.inf)


def test_a_latency_keeps_every_time_measured():
    base, new = LatencyStats(2.0, 2.2, 4, (2.0, 2.0)), LatencyStats(1.0, 1.1, 4, (1.0, 1.0))
    record = latency_record("CPU", 1, PairedLatency(2.0, 1.9, 2.1, base, new, 2, 2, "wall", True))
    assert (record.ratio, record.baseline.times_ms, record.candidate.p95_ms) == (2.0, (2.0, 2.0), 1.1)


def test_the_tool_record_names_the_versions_that_ran():
    import onnx

    record = tool_record()
    assert (record.numpy, record.onnx) == (np.__version__, onnx.__version__)
