"""The presets: complete configs that come with the package, each a run worth repeating."""

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from cjepa.config.keys import nearest
from cjepa.config.parsing import parse
from cjepa.config.run import RunConfig
from cjepa.config.values import apply_overrides
from cjepa.config.yaml_text import load_yaml, read_yaml
from cjepa.errors import InputError

_SUFFIX = ".yaml"
_FOLDER = files("cjepa") / "presets"


def preset_names() -> list[str]:
    """The names of all presets, in order."""
    names = [entry.name for entry in _FOLDER.iterdir()]
    return sorted(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))


def preset_text(name: str) -> str:
    """A preset as it is written, with its comments."""
    return (_FOLDER / f"{name}{_SUFFIX}").read_text(encoding="utf-8")


def preset_summary(name: str) -> str:
    """The first line of a preset, a comment that says what it is."""
    return preset_text(name).partition("\n")[0].removeprefix("#").strip()


def preset_facts(name: str) -> dict[str, str]:
    """What the comments of a preset say of its hardware, its time and its result."""
    return dict(re.findall(r"^# (Hardware|Time|Result): +(.+)$", preset_text(name), re.MULTILINE))


def resolve(origin: str, changes: Sequence[str] = ()) -> RunConfig:
    """The config of a preset or of a YAML file after each "key=value"; InputError names whatever is wrong."""
    return parse(RunConfig, apply_overrides(RunConfig, _values(origin), changes))


def _values(origin: str) -> dict[str, Any]:
    names = preset_names()
    if origin in names:
        values: dict[str, Any] = read_yaml(preset_text(origin), f"preset {origin}")
        return values
    path = Path(origin)
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError as error:  # a name that is too long, a folder on the way that may not be entered
        raise InputError(f"cannot look for {origin} ({error.strerror}); check the path") from error
    if is_file or path.suffix in (_SUFFIX, ".yml"):
        return load_yaml(path)
    if is_folder:
        raise InputError(f"{origin} is a folder; give a preset ({', '.join(names)}), and images with data={origin}")
    meant = nearest(origin, names)
    guess = f"did you mean {meant}?" if meant else f"presets are {', '.join(names)}."
    raise InputError(f"there is no preset or file {origin}; {guess} `cjepa config list` says what they are")
