""".npy: one array for each column, and the images' names beside them."""

import json
import shutil
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np

from cjepa.embedding.store import TYPE, Column, RowStore


def write_npy(store: RowStore, path: Path, folder: Path) -> dict[Path, Path]:
    """Written files, by the place where each belongs: path is the first column's, NAME.patches.npy the second's."""
    placed = {}
    for index, column in enumerate(store.columns):
        target = path if index == 0 else beside_path(path, column)
        placed[target] = _write_array(store, column, folder / target.name)
    names = names_path(path)
    placed[names] = write_names(store, folder / names.name)
    return placed


def _write_array(store: RowStore, column: Column, written: Path) -> Path:
    header = {"descr": TYPE.str, "fortran_order": False, "shape": (store.done, *column.shape)}
    with written.open("wb") as file, store.path(column).open("rb") as rows:
        np.lib.format.write_array_header_1_0(file, header)
        shutil.copyfileobj(rows, file, 1 << 24)
    return written


def beside_path(path: Path, column: Column) -> Path:
    """Where a column after the first lies: emb.npy has emb.patches.npy."""
    return path.with_suffix(f".{column.name}.npy")


def names_path(path: Path) -> Path:
    """Where the names lie: emb.npy has emb.names.jsonl, one JSON string a line, in the order of the rows."""
    return path.with_suffix(".names.jsonl")


def write_names(store: RowStore, written: Path) -> Path:
    """One JSON string a line: a name may hold a line break."""
    with written.open("w", encoding="utf-8") as file:
        file.writelines(_lines(store.names))
    return written


def holds_names(path: Path, names: Sequence[str]) -> bool:
    """Whether a file of names is of these images."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return all(found == line for found, line in zip_longest(file, _lines(names)))


def _lines(names: Sequence[str]) -> Iterator[str]:
    return (json.dumps(name, ensure_ascii=False) + "\n" for name in names)
