"""Nodes put into branches or a function compute what they computed before."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from graphopt.model.model import Model
from graphopt.runtime.session import open_session
from graphopt.testing import builders
from graphopt.testing.nesting import in_branches, in_function, variants
from graphopt.testing.trial import default_samples


@pytest.mark.parametrize("name", ["conv_bn_relu", "attention", "redundant", "dynamic_dims", "overridable"])
def test_the_same_numbers_come_out(name: str) -> None:
    proto = builders.ALL[name](0)
    feed = dict(default_samples(Model.from_proto(proto))[0])
    expected = open_session(proto.SerializeToString(), optimization="none").run(feed)
    for where, nested in variants(proto):
        onnx.checker.check_model(nested, full_check=True)
        session = open_session(nested.SerializeToString(), optimization="none")
        more = {"condition": np.array(True)} if "condition" in session.input_names else {}
        for key, value in session.run({**feed, **more}).items():
            np.testing.assert_array_equal(value, expected[key], err_msg=where)


def test_no_node_is_left_on_the_top_level() -> None:
    proto = builders.conv_bn_relu(0)
    assert [node.op_type for node in in_branches(proto).graph.node] == ["If"]
    assert [node.op_type for node in in_function(proto).graph.node] == ["Inner"]


def test_what_is_nested_already_has_no_variants() -> None:
    assert not list(variants(builders.ALL["if_capturing_weight"](0)))
