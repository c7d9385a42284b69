"""The tree of keys below a `Part`: which keys exist, for which variant, and which one a mistyped key meant."""

import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Annotated, Any, Literal, Protocol, Union, get_args, get_origin, runtime_checkable

from pydantic.fields import FieldInfo

from cjepa.types import Part

_NEAR = 0.6  # least similarity at which a suggestion helps more than it misleads


@runtime_checkable
class NamedSizes(Protocol):
    """A Part class whose groups of values have names."""

    def named(self, name: str) -> dict[str, Any]:
        """The values of a name; KeyError or ValueError, listing the names, for any other."""
        ...


@dataclass(frozen=True)
class Key:
    """One key of the tree: its dotted path, its field and default, and the variant that it needs, if any.

    `when` reads "objective=cjepa"; `default` is PydanticUndefined for a required key.
    """

    path: str
    field: FieldInfo
    default: object
    when: str


def members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a type, without Annotated and flattened: int | (str | None) gives int, str, NoneType."""
    if get_origin(annotation) is Annotated:
        return members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(each for member in get_args(annotation) for each in members(member))
    return (annotation,)


def parts_of(annotation: Any) -> tuple[type[Part], ...]:
    """The variants of a key that holds a group of keys; empty for a key that holds a plain value."""
    found = [member for member in members(annotation) if member is not types.NoneType]
    parts = tuple(member for member in found if isinstance(member, type) and issubclass(member, Part))
    return parts if len(parts) == len(found) else ()


def is_optional(annotation: Any) -> bool:
    """Whether the key may be null."""
    return types.NoneType in members(annotation)


def item_of(annotation: Any, index: int) -> Any:
    """The type of an item of a tuple or list; None for a key that holds neither."""
    for member in members(annotation):
        if get_origin(member) in (tuple, list):
            types_of_items = get_args(member)
            return (
                types_of_items[0]
                if types_of_items[-1] is Ellipsis
                else types_of_items[min(index, len(types_of_items) - 1)]
            )
    return None


def literals_of(annotation: Any) -> tuple[object, ...]:
    """The values of all Literals of a type."""
    found = [member for member in members(annotation) if get_origin(member) is Literal]
    return tuple(value for member in found for value in get_args(member))


def variant_name(part: type[Part]) -> str | None:
    """The name that selects this part in its union: the only value of its key `name`."""
    field = part.model_fields.get("name")
    names = literals_of(field.annotation) if field is not None else ()
    return str(names[0]) if len(names) == 1 else None


def variant(parts: tuple[type[Part], ...], name: object) -> type[Part] | None:
    """The part of a union that has this name; the part itself where there is no choice."""
    if len(parts) == 1:
        return parts[0]
    return next((part for part in parts if variant_name(part) == name), None)


def walk(model: type[Part], base: Part | None = None, prefix: str = "", when: str = "") -> Iterator[Key]:
    """All keys below a part in declared order, groups before their keys, and every variant of every union.

    base: the instance that the parent has as its default, whose values are then the defaults.
    """
    for name, field in model.model_fields.items():
        default = getattr(base, name) if base is not None else field.get_default(call_default_factory=True)
        path = prefix + name
        yield Key(path, field, default, when)
        parts = parts_of(field.annotation)
        for part in parts:
            choice = f"{path}={variant_name(part)}" if len(parts) > 1 else ""
            below = default if isinstance(default, Part) and type(default) is part else None
            yield from walk(part, below, f"{path}.", ", ".join(filter(None, (when, choice))))


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that a mistyped name most likely meant, or None; names may be dotted paths.

    The last component decides, the path breaks ties, so a key in the wrong place is found as well.
    """
    ranked = nearest_first(name, candidates)
    return ranked[0] if ranked and _similarity(name, ranked[0])[0] >= _NEAR else None


def nearest_first(name: str, candidates: Iterable[str]) -> list[str]:
    """The candidates, the most similar to `name` first."""
    return sorted(set(candidates), key=lambda candidate: (*(-s for s in _similarity(name, candidate)), candidate))


def unknown_key(model: type[Part], path: str, chosen: str = "", also: Iterable[str] = ()) -> str:
    """What to say about a key that does not exist: the key that was meant, or those that exist at its place.

    chosen: the variant it was given to, as "objective=ijepa", if it belongs to another variant. also: names that are
    no keys and may have been meant.
    """
    keys = list(walk(model))
    elsewhere = [key.when for key in keys if key.path == path and key.when]
    if elsewhere:
        return f"unknown key {path} for {chosen}; it belongs to {join_conditions(elsewhere)}"
    meant = nearest(path, [*(key.path for key in keys), *also])
    if meant is not None:
        return f"unknown key {path}; did you mean {meant}?"
    parent = path
    while parent:
        parent = parent.rpartition(".")[0]
        beside = {key.path: None for key in keys if key.path.rpartition(".")[0] == parent}
        if beside:
            return f"unknown key {path}; keys {'of ' + parent if parent else 'here'}: {', '.join(beside)}"
        if any(key.path == parent for key in keys):
            return f"unknown key {path}; {parent} is a single value without keys of its own"
    return f"unknown key {path}"


def join_conditions(whens: Iterable[str]) -> str:
    """Conditions as one text: "objective=cjepa" and "objective=sigreg" give "objective=cjepa or sigreg"."""
    names: dict[str, list[str]] = {}
    for when in whens:
        union, _, name = when.rpartition("=")
        names.setdefault(union, []).append(name)
    return " or ".join(f"{union}={' or '.join(group)}" for union, group in names.items())


def plain(limit: object) -> object:
    """A limit as people write it: 0 for 0.0."""
    return int(limit) if isinstance(limit, float) and limit.is_integer() else limit


def _similarity(name: str, candidate: str) -> tuple[float, float]:
    """Similarity of the last components, then of the whole paths, each in 0..1; knows lr for learning_rate."""
    whole = SequenceMatcher(None, _letters(name), _letters(candidate)).ratio()
    words = candidate.rpartition(".")[2].split("_")
    given, wanted = _letters(name.rpartition(".")[2]), _letters("".join(words))
    if given == wanted:
        return 1.0, whole
    if len(given) > 1 and given == "".join(word[:1] for word in words):
        return 0.9, whole
    if min(len(given), len(wanted)) > 2 and (wanted.startswith(given) or given.startswith(wanted)):
        return 0.85, whole
    return SequenceMatcher(None, given, wanted).ratio(), whole


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
