"""Parquet files with a column of images, in particular those of data sets of the Hugging Face hub."""

import hashlib
import re
from collections import Counter, OrderedDict
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from cjepa.data.decoding import UnreadableImageError, decode
from cjepa.data.folder import TEST_NAMES, shortened
from cjepa.data.labels import ordered_classes
from cjepa.data.names import LazyNames
from cjepa.data.parquet_columns import (
    choose_image_column,
    damaged_file,
    first_line,
    parquet_file,
    pyarrow_module,
    read_labels,
    read_schema,
)
from cjepa.data.source import NO_LABEL, Splits
from cjepa.errors import InputError
from cjepa.types import Part

LARGEST_GROUP = 1 << 30
"""Bytes of images that one row group may hold: it is read as a whole for any image in it."""
CACHE_BYTES = 256 << 20
"""Bytes of images that a process keeps of the row groups it has read, at least one group."""
_ROWS_AT_ONCE = 64
_MOST_FILES = 100_000
_NUMBERED = re.compile(r"(?P<before>.*)-[0-9]+-of-(?P<total>[0-9]{1,9})\b")
"""How the hub names the files of one split; those that a broken download left out are not there to be missed."""


class ParquetConfig(Part):
    """Parquet files with images in a column; see open_parquet."""

    name: Literal["parquet"] = "parquet"
    """The kind of source; data.source lists all."""
    path: Path
    """A .parquet file, or a folder of them. Files called train* and test* (val*, validation*) are splits."""
    image_column: str | None = None
    """The column of the images: encoded bytes, or bytes and path as in Hugging Face data sets; found if null."""
    label_column: str | None = None
    """The column of the labels, numbers or text; `label` if there is one and this is null."""


class _File(NamedTuple):
    path: Path
    rows: tuple[int, ...]  # of each row group
    whole: tuple[bool, ...]  # of each row group: whether no row names a file in place of its bytes
    footer: str  # a sha256 of what states schema, places and statistics of all columns


class _Group(NamedTuple):
    file: int
    number: int


def open_parquet(config: ParquetConfig, max_pixels: int, folder: Path | None = None) -> Splits:
    """The images of Parquet files, in the order of the files' paths and of the rows in them.

    Of all columns only those of images and labels are read. An image is its encoded bytes, or a path below the
    folder of its file. Row groups are read whole and kept up to CACHE_BYTES: for images in random order Parquet is a
    slow format, and `cjepa shard` makes a fast one of it. Files carry no checksums; the fingerprint is that of their
    footers and paths. folder: which the paths in names and fingerprint begin below, if not the config's path or the
    folder of its file. Raises InputError for files or columns that are missing or not as described.
    """
    root = config.path.expanduser()
    train, test = _split_files(root)
    folder = folder or (root.parent if root.is_file() else root)
    sources = [ParquetSource(folder, files, config, max_pixels) for files in (train, test) if files]
    for source in sources:
        if not len(source):
            raise InputError(f"data: {root} holds no images, only files without rows; name others")
    if len({source.classes for source in sources}) > 1 or len(sources[0].classes) == 1:
        classes = ordered_classes([name for source in sources for name in source.classes])
        for source in sources:
            source.relabel(classes)
    return Splits(sources[0], sources[1] if test else None, _notes(root, folder, train, test))


def _notes(root: Path, folder: Path, train: list[Path], test: list[Path]) -> tuple[str, ...]:
    """What the user should know: which files are the splits, what is ignored beside them, and what is missing."""
    if root.is_file():
        return ()
    notes = [] if not test else [f"{root}: training on {len(train)} files, testing on {test[0].name}..."]
    others = sorted(set(_parquet_files(root)).difference(train, test)) if test else []
    if others:
        names = shortened([path.relative_to(folder).as_posix() for path in others])
        notes.append(f"{root}: ignored beside {train[0].name} and {test[0].name}: {names}")
    found = Counter[tuple[Path, str, str]]()
    for path in (*train, *test):
        if (numbered := _NUMBERED.match(path.name)) is not None:
            found[path.parent, numbered["before"], numbered["total"]] += 1
    notes += [
        f"{where}: only {count} of the {int(total)} files {before}-NNNNN-of-{total} are here; the images of the others "
        "are missing"
        for (where, before, total), count in found.items()
        if count < int(total)
    ]
    return tuple(notes)


def _split_files(root: Path) -> tuple[list[Path], list[Path]]:
    if root.is_file():
        return [root], []
    if not root.is_dir():
        raise InputError(f"data: {root} does not exist; give a .parquet file or a folder of them")
    files = _parquet_files(root)
    if not files:
        raise InputError(f"data: {root} holds no .parquet files; give a .parquet file or a folder of them")
    if len(files) > _MOST_FILES:
        raise InputError(f"data: {root} holds more than {_MOST_FILES:,} .parquet files; name a folder below it")
    kinds = {name: [path for path in files if _split_of(path, root) == name] for name in ("train", *TEST_NAMES)}
    tests = [name for name in TEST_NAMES if kinds[name]]
    return (kinds["train"], kinds[tests[0]]) if kinds["train"] and tests else (files, [])


def _parquet_files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*.parquet") if path.is_file() and not _hidden(path, root))


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _split_of(path: Path, root: Path) -> str | None:
    """The split in the name of a file, as in train-00000-of-00002.parquet, or of its folder, as in test/0.parquet."""
    for part in reversed(path.relative_to(root).parts):
        word = part.lower().replace("_", "-").replace(".", "-").partition("-")[0]
        if word in ("train", *TEST_NAMES):
            return word
    return None


class RowNames(LazyNames):
    """FILE:ROW for every row; FILE is a path below the folder of all files."""

    def __init__(self, files: list[str], rows: npt.NDArray[np.int64]) -> None:
        self._files = files
        self._ends = np.cumsum(rows)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def name(self, index: int) -> str:
        """The file and the row in it, from 0."""
        file = int(np.searchsorted(self._ends, index, side="right"))
        return f"{self._files[file]}:{index - (int(self._ends[file - 1]) if file else 0)}"


class ParquetSource:
    """The images of some Parquet files below a folder, for any number of threads; see ImageSource."""

    def __init__(self, folder: Path, paths: list[Path], config: ParquetConfig, max_pixels: int) -> None:
        self.max_pixels = max_pixels
        schema = read_schema(paths[0])
        self._column = choose_image_column(schema, config.image_column, paths[0])
        self._files = [_opened(path, self._column, schema) for path in paths]
        self._groups = [_Group(f, g) for f, file in enumerate(self._files) for g in range(len(file.rows))]
        counts = [self._files[group.file].rows[group.number] for group in self._groups]
        self._ends = np.cumsum(np.array(counts, np.int64)) if counts else np.zeros(1, np.int64)
        names = [path.relative_to(folder).as_posix() for path in paths]
        self.names = RowNames(names, np.array([sum(file.rows) for file in self._files], np.int64))
        facts = "".join(f"{name}\0{file.footer}" for name, file in zip(names, self._files, strict=True))
        self.fingerprint = hashlib.sha256(facts.encode()).hexdigest()
        self.labels, self.classes = read_labels(paths, schema, config.label_column, int(self._ends[-1]))
        self._cache = OrderedDict[int, Any]()
        self._lock = Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_cache", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _cache=OrderedDict(), _lock=Lock())  # groups are read again where they are needed

    def __len__(self) -> int:
        return int(self._ends[-1])

    def relabel(self, classes: tuple[str, ...]) -> None:
        """Number the labels by other classes."""
        number = {name: index for index, name in enumerate(classes)}
        table = np.array([*(number.get(name, NO_LABEL) for name in self.classes), NO_LABEL], np.int64)
        self.labels, self.classes = table[self.labels], classes

    def encoded(self, index: int) -> bytes:
        """The image as it is stored; UnreadableImageError if it is missing or its row group is damaged."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        row = index - (int(self._ends[number - 1]) if number else 0)
        value = self._group(number)[row].as_py()
        if isinstance(value, dict):
            if value.get("bytes") is None and value.get("path"):
                return self._beside(self._files[self._groups[number].file].path.parent, value["path"])
            value = value.get("bytes")
        if not value:
            raise UnreadableImageError("the row has no image")
        return bytes(value)

    def load(self, index: int) -> Image.Image:
        """The image in mode RGB; raises UnreadableImageError, and InputError when its file is missing."""
        return decode(self.encoded(index), self.max_pixels)

    def files_beside(self) -> Iterator[Path]:
        """The files that rows without bytes name, wherever they lie; groups without such rows are not read."""
        for number, group in enumerate(self._groups):
            file = self._files[group.file]
            if file.whole[group.number]:
                continue
            try:
                rows = self._group(number)
            except UnreadableImageError:
                continue
            for row in rows:
                if row.is_valid and not row["bytes"].is_valid and (name := row.as_py().get("path")):
                    yield file.path.parent / name

    def _beside(self, folder: Path, name: str) -> bytes:
        """The file that a row names; it must lie below the folder, links followed."""
        try:
            path = (folder / name).resolve()
            if not path.is_relative_to(folder.resolve()):
                raise UnreadableImageError(f"the row names a file outside of {folder}")
            if not path.is_file():
                raise UnreadableImageError("the row names a file that does not exist")
            return path.read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
            raise UnreadableImageError(str(error)) from error

    def _group(self, number: int) -> Any:
        with self._lock:  # also while it is read: others most likely want the same one
            if number not in self._cache:
                self._cache[number] = self._read(self._groups[number])
                while len(self._cache) > 1 and sum(kept.nbytes for kept in self._cache.values()) > CACHE_BYTES:
                    self._cache.popitem(last=False)
            self._cache.move_to_end(number)
            return self._cache[number]

    def _read(self, group: _Group) -> Any:
        """One row group of the image column, some rows at a time so that a small file cannot fill the memory."""
        arrow, file = pyarrow_module(), self._files[group.file]
        if _footer(file.path) != file.footer:
            raise InputError(f"data: {file.path} has changed since the run began; bring it back, or begin another run")
        chunks, size = [], 0
        try:
            with parquet_file(file.path) as opened:
                for batch in opened.iter_batches(
                    _ROWS_AT_ONCE, row_groups=[group.number], columns=[self._column], use_threads=False
                ):
                    size += batch.nbytes
                    if size > LARGEST_GROUP:
                        raise UnreadableImageError(f"its row group has more than {LARGEST_GROUP:,} bytes")
                    chunks.append(batch.column(0))
        except (arrow.ArrowException, OSError, MemoryError) as error:
            raise UnreadableImageError(f"its row group is damaged: {first_line(error)}") from error
        if sum(map(len, chunks)) != file.rows[group.number]:
            raise UnreadableImageError("its row group is damaged: rows are missing")
        return arrow.chunked_array(chunks)


def _opened(path: Path, column: str, schema: Any) -> _File:
    arrow = pyarrow_module()
    try:
        with parquet_file(path) as file:
            mine, metadata = file.schema_arrow, file.metadata
            if column not in mine.names or mine.field(column).type != schema.field(column).type:
                raise InputError(f"data: {path}: its column {column} is not like that of the first file; separate them")
            groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
            rows = tuple(group.num_rows for group in groups)
            plain = not arrow.types.is_struct(schema.field(column).type)
            whole = tuple(plain or _has_all_bytes(group, column) for group in groups)
    except (arrow.ArrowException, OSError, MemoryError) as error:
        raise damaged_file(path, error) from error
    if any(count < 0 for count in rows) or sum(rows) > 2**48:
        raise InputError(f"data: {path} states an impossible number of rows; get it again")
    return _File(path, rows, whole, _footer(path))


def _has_all_bytes(group: Any, column: str) -> bool:
    """Whether the statistics of a row group say that every row has its bytes."""
    chunks = [group.column(index) for index in range(group.num_columns)]
    found = [chunk.statistics for chunk in chunks if chunk.path_in_schema == f"{column}.bytes"]
    return any(each is not None and each.has_null_count and each.null_count == 0 for each in found)


def _footer(path: Path) -> str:
    """The sha256 of the file's size and of the footer, whose length stands before the last four bytes."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            file.seek(max(size - 8, 0))
            length = int.from_bytes(file.read(4), "little")
            file.seek(max(size - 8 - length, 0))
            return hashlib.sha256(b"%d\n" % size + file.read(min(length + 8, size))).hexdigest()
    except OSError as error:
        raise damaged_file(path, error) from error
