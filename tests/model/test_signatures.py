"""Which attributes an operator takes, as onnx itself has it."""

from __future__ import annotations

import onnx
from onnx import checker, helper

from graphopt.model.signatures import misfits


def test_an_attribute_that_onnx_refuses_is_refused_and_no_other() -> None:
    """LayerNormalization's schema lets any attribute pass."""
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain or schema.deprecated or any(a.required for a in schema.attributes.values()):
            continue
        inputs, outputs = (
            [f"{kind}{i}" for i in range(n)] for kind, n in (("in", schema.min_input), ("out", schema.min_output))
        )
        node = helper.make_node(schema.name, inputs, outputs, nobody_knows=1)
        refused = any(misfits(node, schema.since_version))
        assert refused == (_refused(node, schema.since_version) and schema.name != "Constant"), schema.name


def _refused(node: onnx.NodeProto, version: int) -> bool:
    context = checker.C.CheckerContext()
    context.ir_version = onnx.IR_VERSION
    context.opset_imports = {"": version}
    try:
        checker.check_node(node, context)
    except checker.ValidationError:
        return True
    return False
