"""Which operators and versions the installed onnxruntime takes, asked of it rather than kept in a table."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from onnx import TensorProto, helper

from graphopt.errors import RuntimeFailure
from graphopt.runtime.optimized import optimized_nodes
from graphopt.runtime.providers import CPU
from graphopt.runtime.session import Backend, OnnxRuntime, open_session
from graphopt.runtime.target import ProviderSpec

IR_VERSION = 10
"""For probes: every onnxruntime supported here takes it, and it does not depend on the operator set."""
Attributes = tuple[tuple[str, int | float | str], ...]


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


def has_kernel(
    op: str,
    opset: int,
    *,
    shapes: Sequence[Sequence[int]] = ((1, 2, 4, 4),),
    provider: ProviderSpec | None = None,
    **attributes: int | float | str,
) -> bool:
    """Whether a provider runs an operator on float32 by a kernel of that name; asked once per process and question.

    onnxruntime opens a model with an operator that it has no kernel for wherever ONNX defines that operator as a
    function of others (Mish, GroupNormalization, Swish and HardSwish on the CPU provider of 1.32): it runs the
    function's body. So a session that opens is not the answer; the graph that it runs is.

    Args:
        op: an operator of the standard domain; its first output is asked for.
        opset: the operator set that the model imports.
        shapes: one shape for each input.
        provider: the provider; the CPU provider when ``None``. One that cannot be used has no kernels.
        attributes: attributes of the node.
    """
    spec = provider or ProviderSpec()
    given = tuple(tuple(int(d) for d in shape) for shape in shapes)
    return _asked(op, opset, given, tuple(sorted(attributes.items())), spec.name, tuple(sorted(spec.options.items())))


@cache
def _asked(
    op: str,
    opset: int,
    shapes: tuple[tuple[int, ...], ...],
    attributes: Attributes,
    provider: str,
    options: tuple[tuple[str, str], ...],
) -> bool:
    probe = _one_node(op, opset, shapes, attributes)
    spec = ProviderSpec(provider, dict(options))
    try:
        runs = any(node.op == op for node in optimized_nodes(probe, provider=spec, optimization="none"))
    except RuntimeFailure:
        return False
    return runs and (provider == CPU or _opens_alone(probe, spec))


def _opens_alone(probe: bytes, spec: ProviderSpec) -> bool:
    """Whether the provider takes every node itself, leaving none to the CPU provider."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        OnnxRuntime().open(probe, options, [(spec.name, dict(spec.options))])
    except Exception:  # onnxruntime's exceptions have no common base below this one
        return False
    return True


def _one_node(op: str, opset: int, shapes: tuple[tuple[int, ...], ...], attributes: Attributes) -> bytes:
    names = [f"x{index}" for index in range(len(shapes))]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in zip(names, shapes, strict=True)
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    node = helper.make_node(op, names, ["y"])
    node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes)
    graph = helper.make_graph([node], "probe", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION)
    return bytes(model.SerializeToString())
