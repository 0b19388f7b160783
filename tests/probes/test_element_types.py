"""A constant of any element type can be read, put back and replaced: gs writes some of them wrong or not at all."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graphopt.model.model import Model
from tests.probes.weights import element_types, with_values


@pytest.mark.parametrize("name", sorted(element_types()))
def test_a_replaced_constant_is_written_with_its_type_and_values(name: str) -> None:
    elem = element_types()[name]
    model = Model.from_proto(with_values(elem))
    node = next(n for n in model.editor.nodes() if n.name == "keep")
    value = model.editor.constant(node.inputs[0])
    assert value is not None
    turned = np.roll(value, 1)
    model.editor.set_constant(node, 0, turned)
    model.finish()
    written = next(t for t in model.to_proto().graph.initializer if t.name == "w")
    assert written.data_type == elem
    assert numpy_helper.to_array(written).tolist() == turned.tolist() != np.roll(turned, 1).tolist()
    onnx.checker.check_model(model.to_proto())


@pytest.mark.parametrize("name", sorted(element_types()))
def test_a_constant_read_and_put_back_keeps_its_bytes(name: str) -> None:
    source = with_values(element_types()[name])
    model = Model.from_proto(source)
    node = next(n for n in model.editor.nodes() if n.name == "keep")
    model.editor.set_constant(node, 0, np.array(model.editor.constant(node.inputs[0])))
    written = next(t for t in model.to_proto().graph.initializer if t.name == "w")
    held = next(t for t in source.graph.initializer if t.name == "w")
    assert written.SerializeToString() == held.SerializeToString()
