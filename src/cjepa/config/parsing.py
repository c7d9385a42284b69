"""Configs in: values to a checked `Part`, with every problem in words; and how two configs differ."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from cjepa.config.keys import (
    is_optional,
    item_of,
    literals_of,
    nearest_first,
    parts_of,
    plain,
    unknown_key,
    variant,
    variant_name,
    walk,
)
from cjepa.config.values import complete
from cjepa.config.yaml_text import dump_value
from cjepa.errors import InputError
from cjepa.types import Part

P = TypeVar("P", bound=Part)

_ABSENT = "(not set)"
_LONGEST = 80  # characters of a given value that a message repeats

# The words for pydantic's error types; the braces are filled from the error's context.
_WORDS = {
    "missing": "is required but missing",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "path_type": "must be text",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "model_type": "must be a group of keys",
    "model_attributes_type": "must be a group of keys",
    "dict_type": "must be a group of keys",
    "none_required": "must be null",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "too_short": "must have at least {min_length} items",
    "too_long": "must have at most {max_length} items",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
}


def parse(model: type[P], values: Mapping[str, object]) -> P:
    """The config that these values describe. InputError names each bad key, what is wrong and what was given.

    Types are strict: true is not a number, "3" is not 3; an integer is a number and a list is a tuple.
    """
    completed = complete(model, values)
    broken = [f"{path}: must be a finite number, got {number}" for path, number in _not_finite(completed, "")]
    if broken:
        raise _invalid(broken)
    try:
        return model.model_validate_json(json.dumps(completed, default=str), strict=True)
    except ValidationError as error:
        raise _invalid(_problems(model, error)) from error


def differences(old: Part, new: Part) -> list[str]:
    """One line for each key whose value differs: "training.batch_size: 128 -> 256"."""
    before, after = (dict(_flat(part.model_dump(mode="json"), "")) for part in (old, new))
    changed = [key for key in before | after if before.get(key, _ABSENT) != after.get(key, _ABSENT)]
    return [f"{key}: {before.get(key, _ABSENT)} -> {after.get(key, _ABSENT)}" for key in changed]


def _invalid(problems: Sequence[str]) -> InputError:
    if len(problems) == 1:
        return InputError(problems[0])
    return InputError("\n".join(["the configuration has several problems:", *(f"  {line}" for line in problems)]))


def _flat(value: object, path: str) -> Iterator[tuple[str, str]]:
    """Every leaf below a value with its dotted path, as YAML, in which 1, 1.0 and "1" differ."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _flat(below, f"{path}.{key}" if path else key)
    else:
        yield path, dump_value(value)


def _not_finite(value: object, path: str) -> Iterator[tuple[str, float]]:
    """Paths of infinite numbers and NaN: they pass comparisons and cannot be written to every format."""
    if isinstance(value, float) and not math.isfinite(value):
        yield path, value
    elif isinstance(value, Mapping):
        for key, below in value.items():
            yield from _not_finite(below, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for index, below in enumerate(value):
            yield from _not_finite(below, f"{path}[{index}]")


def _problems(model: type[Part], error: ValidationError) -> list[str]:
    """One line for each key; the alternatives of one key (a number or a list) are joined."""
    lines: dict[str, tuple[list[str], str]] = {}
    optional: dict[str, bool] = {}
    result = []
    for detail in error.errors(include_url=False):
        path, annotation, chosen = _locate(model, detail["loc"])
        if detail["type"] == "extra_forbidden":
            dotted = str(detail["loc"][-1])
            known = "." in dotted and any(key.path == path for key in walk(model))
            result.append(_not_nested(dotted) if known else unknown_key(model, path, chosen))
            continue
        if detail["type"].startswith("union_tag"):
            path = f"{path}.name"
        words, given = lines.setdefault(path, ([], _given(detail)))
        word = _in_words(detail, annotation)
        if word not in words:
            words.append(word)
        optional.setdefault(path, is_optional(annotation) and detail["type"].endswith("_type"))
    for path, (words, given) in lines.items():
        words = [*words, "null"] if optional[path] else words
        said = words[0] + "".join(f" or {word.removeprefix('must be ')}" for word in words[1:])
        result.append(f"{path}: {said}{given}" if path else f"{said}{given}")
    return result


def _not_nested(dotted: str) -> str:
    """What to say about the path of a key in a file, where only arguments have it in one piece."""
    groups, _, name = dotted.rpartition(".")
    return (
        f"the key {dotted} is written with dots; in a file, write {name} on a line of its own below {groups}, indented"
    )


def _in_words(detail: ErrorDetails, annotation: Any) -> str:
    """What is wrong with a value, after "key: "."""
    kind, context, value = detail["type"], detail.get("ctx", {}), detail["input"]
    if kind == "literal_error" and (choices := literals_of(annotation)):
        return f"is not one of {', '.join(nearest_first(str(value), map(str, choices)))}"
    if kind.startswith("union_tag"):
        names = [name for part in parts_of(annotation) if (name := variant_name(part)) is not None]
        if kind == "union_tag_not_found":
            return f"is required; one of {', '.join(names)}"
        return f"is not one of {', '.join(nearest_first(str(context.get('tag')), names))}"
    if kind in ("value_error", "assertion_error"):
        return str(context["error"])
    if kind == "json_invalid":
        return "some text is not valid Unicode; rename the file or folder it names"
    if kind in _WORDS:
        return _WORDS[kind].format(**{name: plain(limit) for name, limit in context.items()})
    return detail["msg"].replace("Input should be", "must be")


def _given(detail: ErrorDetails) -> str:
    """The value that was given, shortened, where it is the value of the key itself."""
    value = detail["input"]
    if detail["type"] in ("missing", "json_invalid", "union_tag_not_found"):
        return ""
    if detail["type"] == "union_tag_invalid":
        value = value["name"]
    elif detail["type"] in ("value_error", "assertion_error") and isinstance(value, dict):
        return ""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return f", got {text if len(text) <= _LONGEST else text[:_LONGEST] + '...'}"


def _locate(model: type[Part], location: tuple[int | str, ...]) -> tuple[str, Any, str]:
    """The dotted path of pydantic's location, the key's type, and the last variant passed as "objective=ijepa".

    pydantic also names the member of a union that it tried; those items are not part of the path.
    """
    path, chosen = "", ""
    annotation: Any = model
    parts: tuple[type[Part], ...] = (model,)
    for item in location:
        if len(parts) > 1:
            one = variant(parts, item)
            parts, chosen = (one,) if one else (), f"{path}={item}"
        elif isinstance(item, int):
            path, annotation = f"{path}[{item}]", item_of(annotation, item)
            parts = parts_of(annotation)
        elif parts:
            path = f"{path}.{item}" if path else item
            field = parts[0].model_fields.get(item)
            annotation = field.annotation if field is not None else None
            parts = parts_of(annotation)
    return path, annotation, chosen
