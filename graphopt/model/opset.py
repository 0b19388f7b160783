"""Raising the standard operator set, with graphopt's own adapters.

onnx's version converter needs the whole model in one protobuf, loses what it does not know and rewrites nodes that need
no change. Here each node is looked at by itself: onnx's schemas say whether its operator changed on the way, and
whether the change can be passed over (a new optional attribute or input with the old meaning as its default, more
types) or needs an adapter. All steps up to ``NEWEST`` were read for changes of meaning that the signatures do not show.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import onnx
from onnx.defs import OpSchema

from graphopt.errors import ModelError
from graphopt.model import wellformed
from graphopt.model.opset_adapters import ADAPTERS, Step

if TYPE_CHECKING:
    from graphopt.model.model import Model

OLDEST = 7
"""Oldest operator set that can be raised: before it, broadcasting was another matter."""
NEWEST = 21
"""Newest operator set to raise to: later changes of meaning were not reviewed."""


def raise_opset(model: Model, version: int) -> tuple[str, ...]:
    """See ``Model.raise_opset``; edits through the model's editor, and leaves the opset statement to the caller."""
    current = model.opset
    if not current >= OLDEST or version > NEWEST:
        raise ModelError(
            "GO-305",
            f"cannot raise opset {current} to {version}",
            why=f"opsets {OLDEST} to {NEWEST} can be raised",
            hint="export the model again with a newer opset",
        )
    adapted: dict[str, int] = {}
    for node, _ in list(model.editor.all_nodes()):
        if node.domain in (None, "", "ai.onnx"):
            step = Step(model, node, version)
            name = node.op
            if _raise_node(step, current, version):
                adapted[name] = adapted.get(name, 0) + 1
    shown = ", ".join(f"{count} {op}" for op, count in sorted(adapted.items()))
    rewritten = f": {shown} brought to their newer form" if adapted else ""
    return (f"opset {current} raised to {version}{rewritten}",)


def _raise_node(step: Step, current: int, version: int) -> bool:
    changed = False
    at = current
    while (later := _next_change(step.node.op, at, version)) is not None:
        adapter = ADAPTERS.get((step.node.op, later))
        if adapter is not None:
            adapter(step)
            changed = True
        elif not _compatible(_schema(step.node.op, at), _schema(step.node.op, later)):
            raise step.refused(f"no adapter from opset {at} to {later}")
        at = later
    return changed


def check_functions(proto: onnx.ModelProto, version: int) -> None:
    """Refuses local functions whose bodies would need adapters: they are carried, not edited.

    Raises:
        ModelError: GO-305 naming the function.
    """
    for function in proto.functions:
        own = next((e.version for e in function.opset_import if e.domain in ("", "ai.onnx")), version)
        for node in wellformed.walk_nodes(function.node):
            if node.domain in ("", "ai.onnx") and _next_change(node.op_type, own, version) is not None:
                raise ModelError(
                    "GO-305",
                    f"cannot raise the opset to {version}: a local function uses an older {node.op_type}",
                    where=f"function {function.name!r}",
                )


@cache
def _history() -> dict[str, dict[int, OpSchema]]:
    found: dict[str, dict[int, OpSchema]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            found.setdefault(schema.name, {})[schema.since_version] = schema
    return found


def _next_change(op: str, after: int, until: int) -> int | None:
    return min((v for v in _history().get(op, {}) if after < v <= until), default=None)


def _schema(op: str, version: int) -> OpSchema | None:
    versions = _history().get(op, {})
    at = max((v for v in versions if v <= version), default=None)
    return None if at is None else versions[at]


def _compatible(old: OpSchema | None, new: OpSchema | None) -> bool:
    """Whether a node of the old schema means the same under the new one, as far as signatures tell."""
    if old is None or new is None or new.deprecated:
        return False
    return _attributes_agree(old, new) and _inputs_agree(old, new) and len(old.outputs) <= len(new.outputs)


def _attributes_agree(old: OpSchema, new: OpSchema) -> bool:
    for name, attribute in old.attributes.items():
        other = new.attributes.get(name)
        if other is None or other.type != attribute.type:
            return False
        if not attribute.required and other.default_value != attribute.default_value:
            return False
    return not any(a.required for name, a in new.attributes.items() if name not in old.attributes)


def _inputs_agree(old: OpSchema, new: OpSchema) -> bool:
    if len(new.inputs) < len(old.inputs):
        return False
    return all(i.option == OpSchema.FormalParameterOption.Optional for i in new.inputs[len(old.inputs) :])
