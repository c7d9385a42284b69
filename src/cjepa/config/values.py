"""What a user writes, completed: shorthands written out, `key=value` arguments applied, defaults of parents kept.

A bare value for a group of keys is a shorthand, in files and in arguments alike: the name of a variant
(`objective=ijepa`), the value of the part's `shorthand` key (`data=DIR` for data.source.path), or one of the
part's named sizes (`model.encoder=small`).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from cjepa.config.keys import NamedSizes, is_optional, nearest_first, parts_of, unknown_key, variant, variant_name, walk
from cjepa.config.yaml_text import read_scalar, read_yaml
from cjepa.errors import InputError
from cjepa.types import Part

_NULLS = ("none", "null", "~")


def apply_overrides(model: type[Part], values: Mapping[str, object], overrides: Sequence[str]) -> dict[str, Any]:
    """The values after each "key=value", in order, shorthands written out; not yet checked by `parse`.

    A value is read as YAML unless the key's type wants the text as it stands. `objective=ijepa` starts the
    new variant from its defaults; `objective.name=ijepa` keeps the keys that both variants have.
    """
    result = complete(model, values)
    known = {key.path for key in walk(model)}
    problems = []
    for override in overrides:
        path, sign, text = override.partition("=")
        path = path.strip()
        if not sign or not path:
            raise InputError(
                f"{override!r} is not of the form key=value; write for example {_example(model, override)}"
            )
        if not text.strip():
            raise InputError(f"{override!r} has no value; write {path}=null to unset it")
        if path in known:
            _assign(model, result, path.split("."), text, path)
        else:
            problems.append(unknown_key(model, path))
    if problems:
        raise InputError("\n".join(problems))
    return result


def _example(model: type[Part], override: str) -> str:
    """A bare word is most often the folder of images whose key was forgotten."""
    if "data" in model.model_fields:
        return f"data={override.strip(' =') or 'DIR'}"
    return f"{next(name for name in model.model_fields if name != 'name')}=VALUE"


def complete(
    part: type[Part], values: Mapping[str, object], base: Part | None = None, path: str = ""
) -> dict[str, Any]:
    """The values with shorthands written out, and with what the parent's default sets but the values do not.

    Without the latter, giving one key of a group would silently reset the others from the default of the
    parent to that of the group's own class.
    """
    result: dict[str, Any] = {}
    for key, value in values.items():
        field = part.model_fields.get(key)
        if field is None:
            result[key] = value  # `parse` reports it
            continue
        default = getattr(base, key) if base is not None else field.get_default(call_default_factory=True)
        result[key] = _complete_group(field.annotation, value, default, f"{path}.{key}" if path else key)
    if base is not None:
        result |= base.model_dump(mode="json", include=base.model_fields_set - set(values))
    return result


def _complete_group(annotation: object, value: object, default: object, path: str) -> object:
    parts = parts_of(annotation)
    if not parts or value is None:
        return value
    if not isinstance(value, Mapping):
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        if isinstance(value, bool | float) and any(part.shorthand for part in parts):  # 1e3 or True, as it was written
            raise InputError(f"{path}: {text} is no name; put a name that reads like a number, or like true, in quotes")
        value = _expand(annotation, None, text, path)
    if not isinstance(value, Mapping):
        return value
    if len(parts) > 1 and "name" not in value and isinstance(default, Part):
        value = {"name": variant_name(type(default)), **value}
    chosen = variant(parts, value.get("name"))
    if chosen is None:
        return dict(value)  # `parse` reports it
    base = default if isinstance(default, Part) and type(default) is chosen else None
    return complete(chosen, value, base, path)


def _expand(annotation: object, present: Mapping[str, Any] | None, text: str, path: str) -> dict[str, Any] | None:
    """The group that a bare value stands for; keys of `present` stay if the variant stays."""
    parts, text = parts_of(annotation), text.strip()
    if is_optional(annotation) and text.lower() in _NULLS:
        return None
    present = dict(present or {})
    chosen = next((part for part in parts if variant_name(part) == text), None)
    if chosen is not None:
        return {**present, "name": text} if present.get("name") == text else {"name": text}
    takers = [part for part in parts if part.shorthand is not None or isinstance(part, NamedSizes)]
    if not takers:
        raise InputError(_no_bare_value(parts, text, path))
    taker = next((part for part in takers if variant_name(part) == present.get("name")), takers[0])
    name = variant_name(taker)
    if len(parts) > 1 and present.get("name") != name:
        present = {"name": name}
    if taker.shorthand is not None:
        _assign(taker, present, [taker.shorthand], text, f"{path}.{taker.shorthand}")
    elif isinstance(taker, NamedSizes):
        present |= _named(taker, text, path)
    return present


def _named(sizes: NamedSizes, name: str, path: str) -> dict[str, Any]:
    try:
        return sizes.named(name)
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: {error.args[0] if error.args else error}") from error


def _no_bare_value(parts: tuple[type[Part], ...], text: str, path: str) -> str:
    names = [name for part in parts if (name := variant_name(part)) is not None]
    if names:
        return f"{path}: {text!r} is not one of {', '.join(nearest_first(text, names))}"
    keys = ", ".join(f"{path}.{key}" for part in parts for key in part.model_fields)
    return f"{path} is a group of keys and cannot be {text!r}; set one of {keys}"


def _assign(part: type[Part], values: dict[str, Any], keys: Sequence[str], text: str, path: str) -> None:
    """Set one key, known to exist for some variant, below the values of a part."""
    key, *below = keys
    field = part.model_fields.get(key)
    if field is None:  # a key of another variant: `parse` says so, unless a later override selects that one
        values[key] = _nest(below, text)
        return
    parts = parts_of(field.annotation)
    if not below:
        values[key] = _expand(field.annotation, values.get(key), text, path) if parts else _typed(field, text)
        return
    group = _complete_group(field.annotation, values.get(key) or {}, field.get_default(call_default_factory=True), path)
    assert isinstance(group, dict), "the path is known, so its parents are groups"
    if len(parts) > 1 and below == ["name"]:
        chosen = variant(parts, text.strip())
        kept = group if chosen is None else {k: v for k, v in group.items() if k in chosen.model_fields}
        values[key] = {**kept, "name": text.strip()}
        return
    chosen = variant(parts, group.get("name"))
    if chosen is None:
        group[below[0]] = _nest(below[1:], text)
    else:
        _assign(chosen, group, below, text, path)
    values[key] = group


def _nest(keys: Sequence[str], text: str) -> object:
    value = _read(text)
    for key in reversed(keys):
        value = {key: value}
    return value


def _read(text: str) -> Any:
    """Text of an argument as YAML; only lists and quoted text may use YAML's punctuation, what fails is text."""
    try:
        return read_yaml(text, text) if text.lstrip()[:1] in ("[", '"', "'") else read_scalar(text.strip())
    except ValueError:
        return text


def _typed(field: FieldInfo, text: str) -> Any:
    """Text of an argument as the value that the key's type accepts: a folder may be called 2024 or [old]."""
    value = _read(text)
    candidates = [None, value, text] if text.strip().lower() in _NULLS else [value, text]
    annotation: Any = field.annotation
    adapter = TypeAdapter(annotation)
    for candidate in candidates:
        try:
            adapter.validate_json(json.dumps(candidate), strict=True)
        except ValidationError:
            continue
        return candidate
    return value
