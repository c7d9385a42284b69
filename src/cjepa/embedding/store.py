"""Rows on disk while they are computed: appended, synced now and then, and good up to the last sync after a kill."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cjepa.types import Unreadable

JOB, DONE, UNREADABLE = "job.json", "done.json", "unreadable.jsonl"
TYPE = np.dtype("<f4")


@dataclass(frozen=True)
class Column:
    """One kind of embedding: its name and the shape of an image's."""

    name: str
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one image."""
        return int(np.prod(self.shape)) * TYPE.itemsize


def rows_kept(folder: Path) -> int:
    """How many rows of a folder count; none where that cannot be read."""
    try:
        return int(json.loads((folder / DONE).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return 0


class RowStore:
    """A folder with one raw little-endian float32 file for each column, and how many rows of them count."""

    def __init__(self, folder: Path, columns: Sequence[Column], names: Sequence[str]) -> None:
        self.folder = folder
        self.columns = tuple(columns)
        self.names = names
        self.done = rows_kept(folder)
        if any(self._size(column) < self.done * column.row_bytes for column in self.columns):
            self.done = 0  # something cut them: made longer again, they would be rows of zeros
        self._files = {column.name: self._open(column) for column in self.columns}
        self._cut_unreadable()

    def path(self, column: Column) -> Path:
        """The raw file of a column."""
        return self.folder / f"{column.name}.f32"

    def append(self, values: Mapping[str, npt.NDArray[np.float32]], unreadable: Sequence[Unreadable]) -> None:
        """The next rows; they count once `sync` was called."""
        counts = {len(array) for array in values.values()}
        assert len(counts) == 1, counts
        assert values.keys() == self._files.keys(), values.keys()
        for name, array in values.items():
            self._files[name].write(np.ascontiguousarray(array, TYPE).tobytes())
        if unreadable:
            with (self.folder / UNREADABLE).open("a", encoding="utf-8") as file:
                for each in unreadable:
                    row: dict[str, Any] = {"row": each.index, "name": each.name, "reason": each.reason}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.done += counts.pop()

    def sync(self) -> None:
        """Bring all rows to the disk, then say how many there are."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        temporary = self.folder / f".{DONE}"
        temporary.write_text(json.dumps(self.done), encoding="utf-8")
        temporary.replace(self.folder / DONE)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()

    def rows(self, column: Column, first: int, stop: int) -> npt.NDArray[np.float32]:
        """Rows first .. stop - 1 of a column, read from the disk."""
        with self.path(column).open("rb") as file:
            file.seek(first * column.row_bytes)
            content = file.read((stop - first) * column.row_bytes)
        return np.frombuffer(content, TYPE).reshape(stop - first, *column.shape)

    def unreadable(self) -> list[dict[str, Any]]:
        """Row, name and reason of every image that could not be decoded."""
        path = self.folder / UNREADABLE
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def _size(self, column: Column) -> int:
        path = self.path(column)
        return path.stat().st_size if path.exists() else 0

    def _open(self, column: Column) -> Any:
        """The raw file, cut back to the rows that count: what a kill left behind them is written again."""
        path = self.path(column)
        path.touch()
        file = path.open("r+b")
        file.truncate(self.done * column.row_bytes)
        file.seek(0, os.SEEK_END)
        return file

    def _cut_unreadable(self) -> None:
        path = self.folder / UNREADABLE
        if path.exists():
            kept = [line for line in path.read_text(encoding="utf-8").split("\n")[:-1] if self._counts(line)]
            path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def _counts(self, line: str) -> bool:
        return bool(json.loads(line)["row"] < self.done)
