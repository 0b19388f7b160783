"""Operators of the standard domain that rules leave alone, and why."""

from __future__ import annotations

import onnx

RANDOM = frozenset({"Bernoulli", "Dropout", "Multinomial"})
RANDOM |= {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
"""Their values are drawn; Dropout's in training mode."""
QUANTIZATION = frozenset({"DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"})
"""Quantization that is already in a model stays as it is: runtimes look for its form."""


def is_deterministic(op: str, opset: int) -> bool:
    """Whether ONNX knows an operator in this operator set, and does not mark it as giving values of its own."""
    try:
        schema = onnx.defs.get_schema(op, opset, "")
    except onnx.defs.SchemaError:
        return False
    return not bool(getattr(schema, "non_deterministic", False))
