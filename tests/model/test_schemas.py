"""What onnx's schemas ask of a node."""

from __future__ import annotations

import onnx
import pytest
from onnx import AttributeProto

from graphopt.model.schemas import demands_of, schema_of


def test_what_an_operator_asks_of_its_nodes() -> None:
    clip, cast = demands_of("Clip", 17), demands_of("Cast", 17)
    assert clip is not None and cast is not None
    assert clip.inputs == (1, 3) and clip.outputs == (1, 1)
    assert clip.single == ((0, "input"),)
    assert cast.required == ("to",)
    assert cast.kinds == {"to": AttributeProto.INT}


def test_the_operator_set_decides() -> None:
    before, after = demands_of("Unsqueeze", 11), demands_of("Unsqueeze", 13)
    assert before is not None and after is not None
    assert (before.inputs, before.required) == ((1, 1), ("axes",))
    assert (after.inputs, after.required) == ((2, 2), ())


@pytest.mark.parametrize(("op", "version"), [("NoSuchOperator", 17), ("Gelu", 19), ("Relu", 0), ("Relu", 1 << 40)])
def test_what_onnx_does_not_know(op: str, version: int) -> None:
    assert schema_of(op, version) is None
    assert demands_of(op, version) is None


def test_an_input_that_cannot_be_left_out_is_one_that_every_node_has() -> None:
    for schema in onnx.defs.get_all_schemas_with_history():
        demands = demands_of(schema.name, schema.since_version) if schema.domain == "" else None
        if demands is not None:
            assert all(index < demands.inputs[0] for index, _ in demands.single), schema.name
