"""Which columns of Parquet files hold images and labels, and the labels themselves; only those columns are read."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cjepa.data.labels import LabelColumn, ordered_names
from cjepa.data.source import NO_LABEL
from cjepa.errors import InputError


def pyarrow_module() -> Any:
    """pyarrow with its Parquet reader; InputError without it."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(
            f'data: Parquet files need pyarrow, which cannot be imported ({error}); run: pip install "cjepa[parquet]"'
        ) from error
    return pyarrow


def parquet_file(path: Path) -> Any:
    """A file opened so that checksums of pages are compared where it has them."""
    arrow = pyarrow_module()
    return arrow.parquet.ParquetFile(path, memory_map=False, page_checksum_verification=True)


def first_line(error: BaseException) -> str:
    """An error in one line."""
    return (str(error) or type(error).__name__).splitlines()[0]


def damaged_file(path: Path, error: BaseException) -> InputError:
    """What to tell of a file that cannot be read."""
    return InputError(f"data: {path} cannot be read: {first_line(error)}; get it again, or remove it")


def read_schema(path: Path) -> Any:
    """The names and types of the columns of a file, with its metadata."""
    arrow = pyarrow_module()
    try:
        with parquet_file(path) as file:
            return file.schema_arrow
    except (arrow.ArrowException, OSError, MemoryError) as error:
        raise damaged_file(path, error) from error


def choose_image_column(schema: Any, wanted: str | None, path: Path) -> str:
    """The wanted column, or `image`, `img` or the only one that can hold images; InputError if that is none."""
    usable = [field.name for field in schema if _holds_images(field.type)]
    if wanted is not None:
        if wanted in usable:
            return wanted
        known = "it does not hold encoded images" if wanted in schema.names else "there is none of that name"
        raise InputError(f"data.source.image_column: {wanted}: {known} in {path}; it has {_columns(schema)}")
    preferred = [name for name in ("image", "img") if name in usable]
    if not preferred and len(usable) != 1:
        raise InputError(
            f"data: {path} has {len(usable)} columns that could hold images; choose one with data.source.image_column "
            f"(it has {_columns(schema)})"
        )
    return (preferred or usable)[0]


def _columns(schema: Any, shown: int = 12) -> str:
    names = [f"{field.name}: {str(field.type)[:60]}" for field in schema]
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def _holds_images(kind: Any) -> bool:
    types = pyarrow_module().types
    if types.is_struct(kind):
        names = {kind.field(index).name: kind.field(index).type for index in range(kind.num_fields)}
        return "bytes" in names and _is_binary(names["bytes"]) and len(names) <= 2
    return bool(_is_binary(kind))


def _is_binary(kind: Any) -> bool:
    types = pyarrow_module().types
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def read_labels(
    paths: list[Path], schema: Any, wanted: str | None, rows: int
) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """The labels of all rows and the names that they have, those of Hugging Face's ClassLabel if stated."""
    column = wanted or ("label" if "label" in schema.names else None)
    if column is None:
        return np.broadcast_to(np.int64(NO_LABEL), (rows,)), ()
    if column not in schema.names:
        raise InputError(f"data.source.label_column: {column} is not in {paths[0]}; it has {_columns(schema)}")
    kind = _kind_of_labels(schema, column)
    if kind == "numbers":
        return _numbers(paths, column, schema)
    if kind == "text":
        labels = LabelColumn()
        for batch in _batches(paths, column, schema):
            for text in batch.to_pylist():
                labels.add(text or None)
        classes = ordered_names(labels.classes.met)
        return labels.labels(classes), classes
    if wanted is None:
        return np.broadcast_to(np.int64(NO_LABEL), (rows,)), ()
    raise InputError(
        f"data.source.label_column: {column} holds {schema.field(column).type}; labels are whole numbers or text"
    )


def _kind_of_labels(schema: Any, column: str) -> Literal["numbers", "text"] | None:
    """What a column of labels holds, categories of text included; None for anything else and where there is none."""
    types = pyarrow_module().types
    if column not in schema.names:
        return None
    kind = schema.field(column).type
    if types.is_integer(kind):
        return "numbers"
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return "text" if types.is_string(kind) or types.is_large_string(kind) else None


def _numbers(paths: list[Path], column: str, schema: Any) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    arrow, names = pyarrow_module(), _class_names(schema, column)
    try:
        parts = [
            batch.cast(arrow.int64()).fill_null(NO_LABEL).to_numpy(zero_copy_only=False)
            for batch in _batches(paths, column, schema)
        ]
    except arrow.ArrowException as error:
        raise damaged_file(paths[0], error) from error
    numbers = np.concatenate(parts).astype(np.int64) if parts else np.empty(0, np.int64)
    numbers = np.where(numbers < 0, NO_LABEL, numbers)
    if names and numbers.max(initial=NO_LABEL) < len(names):
        return numbers, names
    found, places = np.unique(numbers, return_inverse=True)
    column_of = LabelColumn()
    for number in found.tolist():
        column_of.add(None if number == NO_LABEL else str(number))
    classes = ordered_names(column_of.classes.met)
    return column_of.labels(classes)[places], classes


def _batches(paths: list[Path], column: str, schema: Any) -> Iterator[Any]:
    """The labels of all files; InputError where they are not of the kind, or of the classes, of the first file."""
    arrow = pyarrow_module()
    for path in paths:
        try:
            with parquet_file(path) as file:
                _refuse_other_labels(path, column, file.schema_arrow, schema)
                for batch in file.iter_batches(1 << 16, columns=[column], use_threads=False):
                    yield batch.column(0)
        except (arrow.ArrowException, OSError, MemoryError, KeyError) as error:
            raise damaged_file(path, error) from error


def _refuse_other_labels(path: Path, column: str, found: Any, schema: Any) -> None:
    if _kind_of_labels(found, column) != _kind_of_labels(schema, column):
        raise InputError(f"data: {path}: its column {column} is not like that of the first file; separate them")
    mine, first = _class_names(found, column), _class_names(schema, column)
    if mine and first and mine != first:
        raise InputError(
            f"data: {path}: the numbers in its column {column} stand for other classes than in the first file; "
            "separate them"
        )


def _class_names(schema: Any, column: str) -> tuple[str, ...]:
    """The names that the metadata of Hugging Face state for the classes of a column; none if anything is odd."""
    try:
        names = json.loads(schema.metadata[b"huggingface"])["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()
    good = isinstance(names, list) and all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
    return tuple(names) if good else ()
