"""What a table of options does not take, in plain words: which one, what was given, and what it takes.

Every ``ValidationError`` of pydantic that a user can cause is told by ``explain``; pydantic's own wording is for those
who wrote the class.
"""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from graphopt.nearest import did_you_mean

_PLAIN: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "multiple_of": "multiple of"}
_LONGEST = 60
"""Characters of a value that stand in a message."""


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Every problem of a failed validation in one line.

    Args:
        error: what pydantic found.
        model: the class that was validated; its fields say what they take.
    """
    problems = [_problem(dict(item), _find(model, item["loc"])) for item in error.errors()]
    return "; ".join(dict.fromkeys(problems))  # each branch of a union finds the same fault


def type_name(annotation: Any, words: Mapping[Any, str] | None = None) -> str:
    """A type as users write values of it: ``float``, ``"a" or "b"``, ``list of str``.

    Args:
        annotation: of a field.
        words: other names for some types.
    """
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_name(args[0], words)
    if origin is typing.Literal:
        return " or ".join(json.dumps(a) for a in args)
    if origin in (tuple, list):
        return f"list of {type_name(args[0], words)}" if args else "list"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(type_name(a, words) for a in args)
    if annotation is type(None):
        return "nothing"
    name: str = getattr(annotation, "__name__", str(annotation))
    return (words or {}).get(annotation, name)


def bounds(field: FieldInfo) -> str:
    """The numeric bounds of a field, e.g. ``>= 0, <= 1``; empty without any."""
    found = []
    for item in field.metadata:
        found += [
            f"{sign} {getattr(item, key)}" for key, sign in _SIGNS.items() if getattr(item, key, None) is not None
        ]
    return ", ".join(found)


@dataclass(frozen=True)
class _Place:
    """Where in the tables a problem is.

    Attributes:
        path: as a user would name it; tables of a list count from 1.
        table: the class that the key belongs to.
        field: of that class; ``None``: it has no such key.
        entry: it is about one entry of the field's list.
        inner: it is about a part of the field's value.
    """

    path: str
    table: type[BaseModel]
    field: FieldInfo | None
    entry: bool
    inner: bool


def _find(model: type[BaseModel], loc: tuple[int | str, ...]) -> _Place:
    table, field, entry = model, None, False
    inside: type[BaseModel] | None = model
    path = ""
    for index, part in enumerate(loc):
        if inside is None:
            return _Place(path, table, field, entry, inner=index > 0)
        entry = isinstance(part, int)
        if isinstance(part, int):
            path += f" {part + 1}"
            continue
        table = inside
        field = next((f for name, f in table.model_fields.items() if part in (name, f.alias)), None)
        inside = None if field is None else _table_of(field.annotation)
        path += f".{part}" if path else part
    return _Place(path, table, field, entry, inner=False)


def _table_of(annotation: Any) -> type[BaseModel] | None:
    """The class of the tables in a field; ``None``: it holds plain values."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in typing.get_args(annotation) if (found := _table_of(arg)) is not None), None)


def _problem(item: Mapping[str, Any], place: _Place) -> str:
    if item["type"] == "extra_forbidden":
        return f"{place.path}: unknown key{_nearest(item['loc'][-1], place.table)}"
    takes = "" if place.field is None else _takes(place.field, entry=place.entry)
    if item["type"] == "missing":
        return f"{place.path} is missing; it takes {takes}"
    if item["type"] == "value_error" or not takes:
        said = item["msg"].removeprefix("Value error, ")
        return f"{place.path}: {said}" if place.path else said
    return f"{place.path} {'holds' if place.inner else 'is'} {_value(item['input'])}, but takes {takes}"


def _nearest(key: object, table: type[BaseModel]) -> str:
    known = [field.alias or name for name, field in table.model_fields.items()]
    return f", {did_you_mean(str(key), known) or 'there are ' + ', '.join(known)}"


def _takes(field: FieldInfo, *, entry: bool) -> str:
    table = _table_of(field.annotation)
    if table is not None:
        return "a table" if entry or typing.get_origin(field.annotation) not in (tuple, list) else "a list of tables"
    finite = any(getattr(found, "allow_inf_nan", None) is False for found in field.metadata)
    words = {**_PLAIN, **({float: "a finite number"} if finite else {})}
    kinds = [kind for kind in _kinds(field.annotation) if kind is not type(None)]
    names = [type_name(kind, words) for kind in kinds]
    what = " or ".join(f"a {name}" if name.startswith("list") else name for name in names)
    return f"{what} {limits}" if (limits := bounds(field)) else what


def _kinds(annotation: Any) -> tuple[Any, ...]:
    union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
    return typing.get_args(annotation) if union else (annotation,)


def _value(given: object) -> str:
    if isinstance(given, bool):
        return str(given).lower()
    if isinstance(given, Mapping):
        return "a table"
    text = repr(given)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
