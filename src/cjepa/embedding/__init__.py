"""Embeddings of images as files: rows are kept on disk while they are computed, then written in one format."""

from pathlib import Path
from typing import Literal, assert_never, cast, get_args

from cjepa.embedding.npy import names_path, write_npy
from cjepa.embedding.parquet import write_parquet
from cjepa.embedding.safetensors_file import write_safetensors
from cjepa.embedding.store import Column, RowStore
from cjepa.errors import InputError

__all__ = ["Column", "Features", "Format", "RowStore", "format_of", "names_path", "write"]

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
