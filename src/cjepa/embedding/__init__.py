"""Embeddings of images as files: rows are kept on disk while they are computed, then written in one format."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, assert_never, cast, get_args

from cjepa.embedding.npy import beside_path, holds_names, names_path, write_npy
from cjepa.embedding.parquet import write_parquet
from cjepa.embedding.safetensors_file import write_safetensors
from cjepa.embedding.store import Column, RowStore
from cjepa.errors import InputError

__all__ = ["Column", "Features", "Format", "RowStore", "format_of", "names_path", "others", "refuse_others", "write"]

Format = Literal[".npy", ".parquet", ".safetensors"]
Features = Literal["pooled", "patches", "both"]


def format_of(path: Path) -> Format:
    """The format that a file name asks for; InputError for others, and where an extra is missing."""
    if path.suffix not in get_args(Format):
        raise InputError(f"{path}: embeddings are written as {', '.join(get_args(Format))}; name the file so")
    if path.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise InputError('.parquet needs pyarrow; to have it: pip install "cjepa[parquet]"') from error
    return cast("Format", path.suffix)


def others(path: Path) -> list[Path]:
    """Embeddings of the same name in other formats, which have their names and unreadable images in the same files."""
    named_so = (path.with_suffix(suffix) for suffix in get_args(Format))
    return [each for each in named_so if each != path and each.exists()]


def refuse_others(format_: Format, path: Path, columns: Sequence[Column], names: Sequence[str]) -> None:
    """InputError where a file beside `path` that would be written is part of other embeddings."""
    for other in others(path):
        if names_path(path).is_file() and not holds_names(names_path(path), names):
            raise InputError(f"{names_path(path)} is that of {other}, of other images; name another file with --out")
    for beside in (beside_path(path, column) for column in columns[1:] if format_ == ".npy"):
        if beside.exists() and names_path(beside).exists():
            raise InputError(f"{beside} exists already, with names of its own; name another file with --out")


def write(format_: Format, store: RowStore, path: Path, folder: Path) -> dict[Path, Path]:
    """Write the finished rows into files in `folder`; each by the place where it belongs, `path` and those beside."""
    match format_:
        case ".npy":
            return write_npy(store, path, folder)
        case ".parquet":
            return write_parquet(store, path, folder)
        case ".safetensors":
            return write_safetensors(store, path, folder)
        case _:
            assert_never(format_)
