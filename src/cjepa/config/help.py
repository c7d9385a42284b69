"""Every key of a config in words, for `--help` and the documentation, and as a JSON schema."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from cjepa.config.keys import (
    Key,
    NamedSizes,
    join_conditions,
    literals_of,
    members,
    parts_of,
    plain,
    variant_name,
    walk,
)
from cjepa.config.yaml_text import dump_value
from cjepa.types import Part

REQUIRED = "(required)"

_NAMES: Mapping[Any, str] = {
    int: "whole number",
    float: "number",
    bool: "true or false",
    str: "text",
    Path: "path",
    NoneType: "null",
}


@dataclass(frozen=True)
class KeyHelp:
    """One key in words: its type with limits, its default as YAML, its meaning and its choices, if closed.

    `text` ends with the variants that have the key, as "(objective=cjepa)", unless all of them have it.
    """

    key: str
    type: str
    default: str
    text: str
    choices: tuple[str, ...]


def describe_keys(model: type[Part]) -> list[KeyHelp]:
    """Every key that takes a value, in declared order: plain keys, and groups that a bare value can choose."""
    keys = list(walk(model))
    rows: dict[KeyHelp, list[str]] = {}
    for key in keys:
        help_ = _describe(key)
        if help_ is not None:
            rows.setdefault(help_, []).append(key.when)
    return [_with_condition(row, whens, keys) for row, whens in rows.items()]


def json_schema(model: type[Part]) -> dict[str, Any]:
    """The JSON schema of the config, for editors; it knows the full form only, not the shorthands."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}


def _with_condition(row: KeyHelp, whens: list[str], keys: list[Key]) -> KeyHelp:
    """The row with the variants that have its key, unless every variant of that union does."""
    union = whens[0].rpartition(", ")[2].partition("=")[0]
    if not union or whens == [key.when for key in keys if key.path == f"{union}.name"]:
        return row
    return replace(row, text=f"{row.text} ({join_conditions(whens)})".strip())


def _describe(key: Key) -> KeyHelp | None:
    """The help of one key; None for groups that need their keys written, and for the name within a variant."""
    parts = parts_of(key.field.annotation)
    text = " ".join((key.field.description or "").split())
    if parts:
        names = tuple(name for part in parts if (name := variant_name(part)) is not None)
        kinds = ["name"] if names else []
        kinds += [f"short for {key.path}.{part.shorthand}" for part in parts if part.shorthand is not None]
        kinds += ["named size" for part in parts if isinstance(part, NamedSizes)]
        if not kinds:
            return None
        chosen = variant_name(type(key.default)) if isinstance(key.default, Part) else None
        default = chosen or ("" if isinstance(key.default, Part) else _default(key.default))
        return KeyHelp(key.path, " or ".join(kinds), default, text, names)
    if key.when and key.path.endswith(".name"):
        return None
    choices = tuple(str(value) for value in literals_of(key.field.annotation))
    return KeyHelp(key.path, _type_in_words(key.field), _default(key.default), text, choices)


def _default(default: object) -> str:
    return REQUIRED if default is PydanticUndefined else dump_value(to_jsonable_python(default))


def _type_in_words(field: FieldInfo) -> str:
    """The type with its limits: "number > 0 or null", "[number, number]"."""
    limits = [limit for item in field.metadata for limit in _limits(item)]
    allowed = f" {' and '.join(limits)}" if limits else ""
    every = members(field.annotation)
    words = dict.fromkeys(_in_words(member) for member in every if member is not NoneType)
    return " or ".join(words) + allowed + (" or null" if NoneType in every else "")


def _in_words(annotation: Any) -> str:
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        return "name" if all(isinstance(value, str) for value in arguments) else "choice"
    if get_origin(annotation) is tuple and arguments[-1:] != (...,):
        return f"[{', '.join(_alternatives(argument) for argument in arguments)}]"
    if get_origin(annotation) in (tuple, list):
        return f"list of: {_alternatives(arguments[0])}"
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return variant_name(annotation) or annotation.__name__
    return _NAMES.get(annotation, str(getattr(annotation, "__name__", annotation)))


def _alternatives(annotation: Any) -> str:
    return " or ".join(dict.fromkeys(_in_words(member) for member in members(annotation)))


def _limits(item: object) -> list[str]:
    match item:
        case annotated_types.Gt(gt=limit):
            return [f"> {plain(limit)}"]
        case annotated_types.Ge(ge=limit):
            return [f">= {plain(limit)}"]
        case annotated_types.Lt(lt=limit):
            return [f"< {plain(limit)}"]
        case annotated_types.Le(le=limit):
            return [f"<= {plain(limit)}"]
    return []
