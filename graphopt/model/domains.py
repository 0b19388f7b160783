"""The operator set that every runtime knows, under both of its names."""

from __future__ import annotations

import onnx_graphsurgeon as gs

STANDARD_DOMAINS = ("", "ai.onnx")


def in_standard_domain(node: gs.Node) -> bool:
    """Whether a node is of the operator set every runtime knows."""
    return (node.domain or "") in STANDARD_DOMAINS
