""".safetensors: all columns in one file, and the images' names beside it."""

import json
import shutil
import struct
from pathlib import Path

from cjepa.embedding.npy import names_path, write_names
from cjepa.embedding.store import RowStore


def write_safetensors(store: RowStore, path: Path, folder: Path) -> dict[Path, Path]:
    """Written files, by the place where each belongs.

    The format is a length (8 bytes), a JSON header and the tensors one after the other; written here because the
    library's own writer takes tensors in memory.
    """
    entries, offset = {}, 0
    for column in store.columns:
        end = offset + store.done * column.row_bytes
        entries[column.name] = {
            "dtype": "F32",
            "shape": [store.done, *column.shape],
            "data_offsets": [offset, end],
        }
        offset = end
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    written, names = folder / path.name, names_path(path)
    with written.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for column in store.columns:
            with store.path(column).open("rb") as rows:
                shutil.copyfileobj(rows, file, 1 << 24)
    return {path: written, names: write_names(store, folder / names.name)}
