"""The configuration of a run, and configs in general: read, changed by arguments, checked, documented, written.

run.py composes the parts' configs. The others know no part: yaml_text.py reads and writes text, values.py applies
shorthands and `key=value` arguments, parsing.py checks, keys.py knows the tree of keys, help.py documents it.
"""

from cjepa.config.help import KeyHelp, describe_keys, json_schema
from cjepa.config.keys import nearest, nearest_first, parts_of, unknown_key, variant_name, walk
from cjepa.config.parsing import differences, parse
from cjepa.config.run import RunConfig
from cjepa.config.values import apply_overrides
from cjepa.config.yaml_text import dump_yaml, load_yaml, read_yaml

__all__ = [
    "KeyHelp",
    "RunConfig",
    "apply_overrides",
    "describe_keys",
    "differences",
    "dump_yaml",
    "json_schema",
    "load_yaml",
    "nearest",
    "nearest_first",
    "parse",
    "parts_of",
    "read_yaml",
    "unknown_key",
    "variant_name",
    "walk",
]
