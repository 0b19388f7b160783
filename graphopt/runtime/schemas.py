"""Which operators and versions the installed onnxruntime takes, asked of it rather than kept in a table."""

from __future__ import annotations

from functools import cache

from onnx import TensorProto, helper

from graphopt.errors import RuntimeFailure
from graphopt.runtime.session import Backend, open_session


@cache
def runtime_domains() -> frozenset[str]:
    """Operator domains that onnxruntime implements itself, ``com.microsoft`` among them; ``""`` is the standard one."""
    from onnxruntime.capi import onnxruntime_pybind11_state as binding

    return frozenset(schema.domain for schema in binding.get_all_operator_schema())


def opens_version(ir_version: int, opset: int, *, backend: Backend | None = None) -> str | None:
    """Why onnxruntime does not take a model of these versions; ``None`` where it does.

    Asked with a model of one Identity, so that nothing but the versions can be the cause.
    """
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", value[:1], value[1:])
    imports = [helper.make_opsetid("", opset or 1)]
    probe = helper.make_model(graph, opset_imports=imports, ir_version=ir_version)
    try:
        open_session(probe.SerializeToString(), backend=backend)
    except RuntimeFailure as error:
        return error.why
    return None
