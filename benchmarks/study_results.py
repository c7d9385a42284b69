"""The files of the study: one for each run, whatever came of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "study"

Result = dict[str, Any]


def load(folder: Path = RESULTS) -> dict[str, Result]:
    """All results, by the key of their run."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def save(key: str, result: Mapping[str, Any], folder: Path = RESULTS) -> None:
    """The file of a run, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{key}.part"
    temporary.write_text(written(result), encoding="utf-8")
    temporary.replace(folder / f"{key}.json")


def written(result: Mapping[str, Any]) -> str:
    """JSON with a line for each key, and for each row of a list of rows."""
    lines = []
    for key, value in result.items():
        rows = value if isinstance(value, list) and value and isinstance(value[0], dict) else None
        text = json.dumps(value) if rows is None else "[\n  " + ",\n  ".join(map(json.dumps, rows)) + "\n ]"
        lines.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"
