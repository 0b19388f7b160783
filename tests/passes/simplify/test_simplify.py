"""The pass `simplify` as a whole, and its driver."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from graphopt.data.synthetic import synthetic_samples
from graphopt.model.model import Model
from graphopt.passes.simplify import RULES, Simplify
from graphopt.pipeline.contract import Safety
from graphopt.runtime.session import open_session
from graphopt.testing import builders
from graphopt.testing.draft import Draft
from graphopt.testing.formats import if_capturing_weight
from graphopt.testing.trial import DIMS

from .harness import distance, simplified


@pytest.mark.parametrize("name", builders.ALL)
def test_exact_rules_change_no_bit_of_any_builder(name: str) -> None:
    done = simplified(builders.ALL[name](3), exact_only=True)
    assert distance(done, **DIMS) == 0


def test_every_rule_states_its_case() -> None:
    for name, rule in RULES.items():
        assert rule.name == name
        assert rule.safety in (Safety.EXACT, Safety.ROUNDING)
        for heading in ("Pattern:", "Conditions:", "Proof:", "Refuses:"):
            assert heading in (rule.__doc__ or ""), f"{name} lacks {heading}"


def test_the_redundant_model_becomes_what_it_computes() -> None:
    done = simplified(builders.redundant())
    assert done.ops == ["Conv", "Mul", "GlobalAveragePool", "Flatten", "Gemm"]
    assert done.result.summary["nodes_before"] == 10
    assert done.result.summary["nodes_after"] == 5


def test_rules_can_be_left_out() -> None:
    assert "BatchNormalization" in simplified(builders.conv_bn_relu(), exclude_rules=("fold-batchnorm",)).ops
    with pytest.raises(ValidationError, match="no rule is called fold-batchnrom; the rules are dead-node"):
        Simplify.Options(exclude_rules=("fold-batchnrom",))


def test_bodies_are_not_touched() -> None:
    proto = if_capturing_weight()
    done = simplified(proto)
    inner = [node.op for node, graph in done.after.editor.all_nodes() if graph is not done.after.graph]
    assert inner == [
        node.op_type for outer in proto.graph.node for attribute in outer.attribute for node in attribute.g.node
    ]


def test_only_confines_it() -> None:
    done = simplified(builders.conv_bn_relu(), only=("block1*",))
    assert done.rules == {"fold-batchnorm": 1}
    assert done.ops.count("BatchNormalization") == 1


def test_work_grows_with_the_graph_not_with_its_square(monkeypatch: pytest.MonkeyPatch) -> None:
    def looks(length: int) -> int:
        draft = Draft()
        x = draft.input("x", [2])
        for index in range(length):
            x = draft.node("Relu", [draft.node("Identity", [x], f"copy{index}")], f"relu{index}")
        draft.node("Neg", [x], "y")
        draft.output("y", [2])
        count = 0
        rule = RULES["dead-node"]
        original: Any = rule.apply

        def counted(self: Any, node: Any, scope: Any) -> Any:
            nonlocal count
            count += 1
            return original(self, node, scope)

        with monkeypatch.context() as patch:
            patch.setattr(rule, "apply", counted)
            assert simplified(draft.model("chain")).ops == ["Relu"] * length + ["Neg"]
        return count

    assert looks(400) <= 2.1 * looks(200)


def _samples(folder: Path) -> Any:
    """The module that feeds the shared models."""
    path = folder / "models" / "samples.py"
    spec = importlib.util.spec_from_file_location("shared_samples", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["shared_samples"] = module
    spec.loader.exec_module(module)
    return module


NODES = {
    "mobilenet_v1": (85, 58),
    "efficientnet_lite0": (456, 115),
    "cifar10_resnet32": (141, 90),
    "fmnist_resnet8": (39, 25),
    "mnist_opset8": (12, 10),
    "orientation": (115, 80),
    "ppocr_v4_rec": (860, 417),
    "ppocr_v4_det": (672, 328),
    "magika": (95, 93),
}
"""Shared model → nodes before and after."""


@pytest.mark.shared
@pytest.mark.parametrize("name", NODES)
@pytest.mark.parametrize("exact_only", [False, True])
def test_shared_models_compute_the_same(name: str, exact_only: bool, shared: Path) -> None:
    loaded = _samples(shared).load(name)
    source = Model.open(loaded.model)
    done = simplified(source.to_proto(), exact_only=exact_only)
    if not exact_only:
        assert (source.node_count, done.after.node_count) == NODES[name]
    before, after, optimized = (
        open_session(model, optimization=level)
        for model, level in ((source, "none"), (done.after, "none"), (source, "all"))
    )
    for feed in loaded.eval[:2]:
        expected, found, noisy = (session.run(feed) for session in (before, after, optimized))
        for key, value in expected.items():
            top = np.max(np.abs(value))
            noise = np.max(np.abs(value - noisy[key])) / top
            error = np.max(np.abs(value - found[key])) / top
            assert error <= (0 if exact_only else max(1e-5, 4 * noise))


ODD: dict[str, dict[str, int]] = {
    "basic_pitch_tf2onnx": {},
    "espcn": {},
    "mtcnn_onet_nhwc": {},
    "plcmos_gru": {"batch_size": 1, "frames": 200},
    "swift_f0_scalars": {"samples": 16000},
    "slanet_loop": {"DynamicDimension.0": 1, "DynamicDimension.1": 128, "DynamicDimension.2": 128},
}
"""Odd model → sizes of its dynamic dimensions."""


@pytest.mark.shared
@pytest.mark.parametrize("name", ODD)
def test_odd_models_change_no_bit_in_exact_mode(name: str, shared: Path) -> None:
    source = Model.open(shared / "models" / "odd" / f"{name}.onnx")
    done = simplified(source.to_proto(), exact_only=True)
    feeds = synthetic_samples(source.interface, seed=0, dims=ODD[name], shapes={}, bounds={}, count=1)
    before, after = (open_session(model, optimization="none").run(feeds[0]) for model in (source, done.after))
    for key, value in before.items():
        np.testing.assert_array_equal(value, after[key])


@pytest.mark.shared
@pytest.mark.parametrize("name", ["silero_vad_if_lstm", "unknown_domain"])
def test_odd_models_that_take_more_to_run_stay_valid(name: str, shared: Path) -> None:
    source = Model.open(shared / "models" / "odd" / f"{name}.onnx")
    done = simplified(source.to_proto())
    assert done.after.node_count <= source.node_count
    assert done.after.interface == source.interface
