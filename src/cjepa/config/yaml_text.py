"""Configs as YAML text: only plain data comes in, and what goes out reads back as exactly the same values.

The reading follows YAML 1.2, where `1e-3` is a number and `yes`, `010` and `1:30` are text.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from cjepa.errors import InputError
from cjepa.types import Part

MAX_BYTES = 100_000
_MAX_DEPTH = 20

_NULL, _BOOL, _INT, _FLOAT = (f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float"))
_NUMBER_START = list("-+.0123456789")
_SCALARS = (
    (_NULL, re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""]),
    (_BOOL, re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF")),
    (_INT, re.compile(r"[-+]?(?:0|[1-9][0-9]*)\Z"), _NUMBER_START),
    (_FLOAT, re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z"), _NUMBER_START),
)
_NUMBER_ELSEWHERE = re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?\Z")
"""With zeros in front, which other readers take for a number and this one for a name, such as the folder 007."""


class _Loader(yaml.SafeLoader):
    """The safe loader without aliases, tags and deep nesting: nothing in a file can grow or build objects."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  emptied: the rules are `_SCALARS`
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuse what a config never needs, before it is built."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise _refused("anchors (&) and aliases (*) are not supported; write the value out", event)
        if event.tag is not None:
            raise _refused(f"the tag {event.tag} is not supported; write a plain value", event)
        if self.depth >= _MAX_DEPTH:
            raise _refused(f"more than {_MAX_DEPTH} levels of nesting", event)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """The safe dumper that quotes every string which this or another YAML reader would take for something else."""


for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_tag, _pattern, _first)
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)
_Dumper.add_implicit_resolver(_FLOAT, _NUMBER_ELSEWHERE, _NUMBER_START)


def _represent_list(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
    """Lists of plain values on one line, lists of groups over several."""
    flow = not any(isinstance(value, dict) for value in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=flow)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    """Text with control characters in double quotes: elsewhere PyYAML writes some that it reads as line breaks."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(str, _represent_text)


class _OneLineDumper(_Dumper):
    """The same, with everything on one line."""


_OneLineDumper.add_representer(list, yaml.SafeDumper.represent_list)


def _refused(problem: str, place: yaml.Node | yaml.Event) -> yaml.MarkedYAMLError:
    mark: Any = place.start_mark
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. InputError with the line for anything that is not plain, unique, bounded data."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}); check the path") from error
    if len(data) > MAX_BYTES:
        raise InputError(f"{path} is larger than {MAX_BYTES} bytes; this is not a config file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    values = read_yaml(text, str(path))
    if not isinstance(values, dict):
        found = "is empty" if values is None else f"holds a {type(values).__name__}"
        raise InputError(f"{path} {found}; a config file holds lines of `key: value`")
    return values


def read_yaml(text: str, source: str) -> Any:
    """The value of one YAML document; `source` names it in the InputError."""
    try:
        return _plain(_Loader(text).get_single_node())
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{source}{line}: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise InputError(f"{source} is not readable YAML: {' '.join(str(error).split())[:200]}") from error


def _plain(node: yaml.Node | None) -> Any:
    """The Python value of a node: dict, list, str, int, float, bool or None."""
    match node:
        case yaml.MappingNode():
            result: dict[str, Any] = {}
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise _refused("a key must be a plain name", key)
                if key.value in result:
                    raise _refused(f"the key {key.value} is given twice; keep one of them", key)
                result[key.value] = _plain(value)
            return result
        case yaml.SequenceNode():
            return [_plain(value) for value in node.value]
        case yaml.ScalarNode(tag=tag, value=text):
            return _scalar(tag, text)
    return None


def _scalar(tag: str, text: str) -> str | int | float | bool | None:
    if tag == _NULL:
        return None
    if tag == _BOOL:
        return text.lower() == "true"
    if tag == _INT:
        return int(text)
    return float(text) if tag == _FLOAT else text


def read_scalar(text: str) -> str | int | float | bool | None:
    """The value that this text has as an unquoted scalar; ' #' and ': ' are part of the text."""
    tag = next((tag for tag, pattern, _ in _SCALARS if pattern.match(text)), "")
    return _scalar(tag, text)


def dump_yaml(config: Part) -> str:
    """The whole config as YAML, keys in declared order, lists on one line; reading it back gives an equal config."""
    values = config.model_dump(mode="json")
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)
    return text


def dump_value(value: Any) -> str:
    """One plain value as YAML on one line."""
    text: str = yaml.dump(
        value, Dumper=_OneLineDumper, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000
    )
    return text.removesuffix("...\n").strip()
