""".parquet: a table with a row for each image: `path` and a column of fixed-size lists for each kind of embedding."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cjepa.embedding.store import RowStore

_GROUP_BYTES = 32 << 20
"""Bytes of embeddings in one row group, which is what is held in memory."""


def write_parquet(store: RowStore, path: Path, folder: Path) -> dict[Path, Path]:
    """The written file, by the place where it belongs; unreadable images have null. Needs pyarrow."""
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema([("path", pa.string())] + [(column.name, _type(column.shape, pa)) for column in store.columns])
    missing = {row["row"] for row in store.unreadable()}
    rows = max(1, _GROUP_BYTES // sum(column.row_bytes for column in store.columns))
    written = folder / path.name
    with parquet.ParquetWriter(written, schema) as writer:
        for first in range(0, store.done, rows):
            stop = min(first + rows, store.done)
            absent = np.array([row in missing for row in range(first, stop)], dtype=np.bool_)
            arrays = [pa.array([store.names[row] for row in range(first, stop)], pa.string())]
            arrays += [_lists(store.rows(column, first, stop), absent, pa) for column in store.columns]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
    return {path: written}


def _type(shape: tuple[int, ...], pa: Any) -> Any:
    """Nested fixed-size lists: [D], or [N][D] for patches."""
    kind = pa.float32()
    for length in reversed(shape):
        kind = pa.list_(kind, length)
    return kind


def _lists(values: npt.NDArray[np.float32], absent: npt.NDArray[np.bool_], pa: Any) -> Any:
    array = pa.array(values.reshape(-1))
    for axis in range(values.ndim - 1, 0, -1):
        mask = pa.array(absent) if axis == 1 else None
        array = pa.FixedSizeListArray.from_arrays(array, values.shape[axis], mask=mask)
    return array
