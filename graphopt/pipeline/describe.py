"""A pass as data: its name, safety, summary and options, for the command line, the cards and the JSON."""

from __future__ import annotations

import inspect
import json
from typing import Any

from pydantic.fields import FieldInfo

from graphopt.explain import bounds, type_name
from graphopt.pipeline.contract import Pass
from graphopt.pipeline.families import Family
from graphopt.pipeline.family_pass import FamilyOptions


def describe(cls: type[Pass[Any]], source: str = "") -> dict[str, Any]:
    """What a user can know about a pass.

    Args:
        cls: the pass.
        source: the distribution that brings it.

    Returns:
        ``name``, ``code``, ``safety``, ``source``, ``summary`` (first line of the docstring), ``after``,
        ``needs_samples``, ``options``: name, type, bounds, default (JSON text) and description of each, and
        ``families``: name, what they do and their rules, where the pass is made of rule families.
    """
    doc = inspect.cleandoc(cls.__doc__ or "")
    return {
        "name": cls.name,
        "code": cls.code,
        "safety": cls.safety.value,
        "source": source,
        "summary": doc.splitlines()[0] if doc else "",
        "after": list(cls.after),
        "needs_samples": cls.needs_samples,
        "options": [_option(name, field) for name, field in cls.Options.model_fields.items()],
        "families": [_family(family) for family in _families(cls)],
    }


def _families(cls: type[Pass[Any]]) -> tuple[Family, ...]:
    return cls.Options.known() if issubclass(cls.Options, FamilyOptions) else ()


def _family(family: Family) -> dict[str, Any]:
    return {"name": family.name, "what": family.what, "rules": [rule.name for rule in family.rules]}


def _option(name: str, field: FieldInfo) -> dict[str, str]:
    default = field.get_default(call_default_factory=True)
    return {
        "name": name,
        "type": type_name(field.annotation),
        "bounds": bounds(field),
        "default": json.dumps(default, default=str),
        "description": field.description or "",
    }
