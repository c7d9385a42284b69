"""Logs of one JSON object a line: appended whole, readable after a kill, cut back when a run is resumed."""

import io
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cjepa.errors import StorageError
from cjepa.training.durable import replace

_log = logging.getLogger(__name__)


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a run; empty where there is no such file or, with a warning, a damaged one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        _log.warning("%s cannot be read and is left out: %s", path, error)
        return {}
    if not isinstance(value, dict):
        _log.warning("%s cannot be read and is left out: it holds no JSON object", path)
        return {}
    return value


class RowLog:
    """A file of rows, each with the `step` it belongs to (metrics, evaluations, unreadable images)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row. It is in the file when this returns, so a kill of the process cannot lose it.

        A line that a kill or a copy had cut is ended first, so that it does not take this row with it. StorageError
        when it cannot be written; nothing of the row is left then.
        """
        assert isinstance(row["step"], int), row
        line = json.dumps(dict(row), allow_nan=False, ensure_ascii=False) + "\n"
        try:
            # Opened anew each time: the file may have been cut back or replaced.
            with self.path.open("a+b", buffering=0) as file:
                end = file.tell()
                try:
                    _write_whole(file, (line if _ends_whole(file, end) else "\n" + line).encode())
                except OSError:
                    file.truncate(end)
                    raise
        except OSError as error:
            raise self._failure(error) from error

    def sync(self) -> None:
        """Bring all rows to the disk; call it before a checkpoint that is later than they are."""
        try:
            if self.path.exists():
                with self.path.open("rb") as file:
                    os.fsync(file.fileno())
        except OSError as error:
            raise self._failure(error) from error

    def truncate_after(self, step: int) -> None:
        """Remove the rows after `step` and any line cut by a kill, so that a resumed run repeats none."""
        self.keep(lambda row: row["step"] <= step)

    def keep(self, wanted: Callable[[Mapping[str, Any]], bool]) -> None:
        """Remove the other rows and any line cut by a kill."""
        if not self.path.exists():
            return
        try:
            content = self.path.read_bytes()
            kept = b"".join(line for line, row in _parse(content) if row is not None and wanted(row))
            if kept != content:
                replace(self.path, kept)
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> StorageError:
        return StorageError(
            f"{self.path} cannot be written: {error.strerror or error}; make room or repair the folder, then run the "
            "same command again"
        )


def _ends_whole(file: io.FileIO, end: int) -> bool:
    """Whether the file has no line that was cut."""
    if not end:
        return True
    file.seek(end - 1)
    return file.read(1) == b"\n"


def _write_whole(file: io.FileIO, content: bytes) -> None:
    """All of it: on a disk that fills up, the system may take the first part and refuse the second."""
    while content:
        content = content[file.write(content) :]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All whole rows of a log, in order; a last line without its end is left out, a damaged one is reported."""
    rows = [(number, row) for number, (_, row) in enumerate(_parse(path.read_bytes()), 1)]
    damaged = [number for number, row in rows if row is None]
    if damaged:
        _log.warning("%s: %d damaged lines left out, the first is line %d", path, len(damaged), damaged[0])
    return [row for _, row in rows if row is not None]


def _parse(content: bytes) -> list[tuple[bytes, dict[str, Any] | None]]:
    """Each whole line with its row, or with None when it is damaged (a power cut can leave zeros)."""
    return [(line + b"\n", _parse_line(line)) for line in content.split(b"\n")[:-1]]


def _parse_line(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int else None
