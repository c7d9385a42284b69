"""Arguments that several commands share, and what they become."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cjepa.errors import InputError


def at_home(paths: Any) -> Any:
    """One path, several or none, with ~ as the home folder: a shell leaves it in --out=~/runs as it is."""
    if isinstance(paths, Path):
        return paths.expanduser()
    return [path.expanduser() for path in paths] if isinstance(paths, list) else paths


Origin = Annotated[
    str, typer.Argument(metavar="PRESET|FILE.yaml", help="A preset (see cjepa config list) or a YAML file.")
]
Changes = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to single keys.", show_default=False)
]
Weights = Annotated[
    Path,
    typer.Argument(
        metavar="RUN", help="A run folder, or weights: an export, an I-JEPA checkpoint, ...", callback=at_home
    ),
]

Heads = Annotated[
    int | None,
    typer.Option(min=1, help="Attention heads, of weights that do not tell them.", show_default=False),
]


def variant(kind: str, union: Any, name: str, changes: Sequence[str]) -> Any:
    """The config of a named variant after the changes."""
    from cjepa.config import apply_overrides, nearest_first, parse, parts_of, variant_name

    parts = {variant_name(part) or "": part for part in parts_of(union)}
    if name not in parts:
        raise InputError(f"there is no {kind} {name}; it is one of {', '.join(nearest_first(name, parts))}")
    return parse(parts[name], apply_overrides(parts[name], {}, changes))


def one_of(option: str, given: str, choices: tuple[Any, ...]) -> Any:
    """What was given, if it is one of the choices; InputError otherwise."""
    if given not in choices:
        raise InputError(f"{option} {given}: it is one of {', '.join(choices)}")
    return given
