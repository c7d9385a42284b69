"""The index of a folder of tar shards: for each image where it lies, how long it is, its checksum, name and label.

An index is a folder of columns, one number for each image, that are memory-mapped: 10^8 images cost no memory and no
time but that of hashing the columns once. index.json states counts, sizes and a sha256 of everything, itself included.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from cjepa.data.names import Names
from cjepa.data.source import NO_LABEL
from cjepa.data.tar_members import BLOCK, LONGEST_NAME
from cjepa.errors import InputError

FORMAT_VERSION = 1
INDEX, MANIFEST = "cjepa-index", "index.json"
ROWS = 1 << 20
"""Images whose rows are in memory at a time while an index is verified or written."""
_LARGEST_MANIFEST = 256 << 20  # 10^6 shards

Column = Literal["offsets", "sizes", "checksums", "name_ends", "labels", "names"]
TYPES: dict[Column, str] = {"offsets": "<u8", "sizes": "<u4", "checksums": "<u4", "name_ends": "<u8", "labels": "<i8"}
"""Little-endian numbers, one for each image; `names` is the text that name_ends divides. labels may be absent."""
NEEDED: tuple[Column, ...] = ("offsets", "sizes", "checksums", "name_ends", "names")

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
ShardName = Annotated[str, StringConstraints(pattern=r"^[^./\\:\x00-\x1f][^/\\:\x00-\x1f]*\.tar$", max_length=255)]
"""Plain names only: no folder, no drive, no leading dot."""
_SHARD_NAMES = TypeAdapter[str](ShardName)


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Shard(_Strict):
    """A tar file: its size in bytes, number of images, and the sha256 of its first block and of its images' rows."""

    name: ShardName
    size: int = Field(ge=2 * BLOCK, lt=2**62)
    images: int = Field(ge=0)
    head: Sha256
    contents: Sha256


class ColumnFile(_Strict):
    """Size in bytes and sha256 of a column."""

    size: int = Field(ge=0)
    sha256: Sha256


class Manifest(_Strict):
    """Everything that index.json states. checksum: the sha256 of the manifest that has "" in its place."""

    format_version: int
    images: int = Field(ge=1, lt=2**48)
    classes: tuple[str, ...]
    shards: tuple[Shard, ...]
    columns: dict[Column, ColumnFile]
    checksum: Literal[""] | Sha256 = ""

    def encode(self) -> bytes:
        """The one spelling of this manifest."""
        return (json.dumps(self.model_dump(), indent=0, sort_keys=True) + "\n").encode()

    def signed(self) -> "Manifest":
        """The manifest with its checksum."""
        plain = self.model_copy(update={"checksum": ""})
        return plain.model_copy(update={"checksum": hashlib.sha256(plain.encode()).hexdigest()})


class Columns:
    """The memory-mapped columns of a verified index. A copy in another process maps them anew."""

    def __init__(self, folder: Path, images: int, labelled: bool) -> None:
        self._origin = (folder, images, labelled)
        self.offsets, self.sizes, self.checksums = (
            self._mapped(name) for name in ("offsets", "sizes", "checksums")
        )  # fmt: skip
        self.names = Names(np.memmap(folder / "names", np.uint8, "r"), self._mapped("name_ends"))
        unlabelled = np.broadcast_to(np.int64(NO_LABEL), (images,))
        self.labels: npt.NDArray[np.int64] = self._mapped("labels") if labelled else unlabelled

    def __reduce__(self) -> tuple[type["Columns"], tuple[Path, int, bool]]:
        return Columns, self._origin

    def _mapped(self, name: Column) -> npt.NDArray[Any]:
        folder, images, _ = self._origin
        return np.memmap(folder / name, np.dtype(TYPES[name]), "r", shape=(images,))


def is_shard_name(name: str) -> bool:
    """Whether an index can name a tar file that is called so."""
    try:
        _SHARD_NAMES.validate_python(name, strict=True)
    except ValidationError:
        return False
    return True


def has_index(folder: Path) -> bool:
    """Whether there is an index of shards in the folder."""
    return (folder / INDEX / MANIFEST).is_file()


class _UnusableError(Exception):
    """What is wrong with an index."""


def open_index(folder: Path, shards: Path | None = None) -> tuple[Manifest, Columns]:
    """The index in a folder once every byte of it is verified; InputError if one is not as it was written.

    shards: the folder that they lie in, where it may be another.
    """
    index, shards = folder / INDEX, shards or folder
    try:
        manifest = _read_manifest(index)
        _verify(index, manifest)
        return manifest, Columns(index, manifest.images, "labels" in manifest.columns)
    except (OSError, _UnusableError) as error:
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error
        apart = "" if shards == folder else f" {folder}"
        raise InputError(
            f"data: the index {index} cannot be used: {reason}; make it again from the shards with "
            f"cjepa shard --index-only {shards}{apart}"
        ) from error


def _read_manifest(index: Path) -> Manifest:
    path = index / MANIFEST
    if not path.is_file():
        raise _UnusableError(f"{MANIFEST} is missing")
    with path.open("rb") as file:
        content = file.read(_LARGEST_MANIFEST + 1)
    if len(content) > _LARGEST_MANIFEST:
        raise _UnusableError(f"{MANIFEST} is larger than {_LARGEST_MANIFEST:,} bytes")
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise _UnusableError(f"{MANIFEST}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if manifest.format_version != FORMAT_VERSION:
        raise _UnusableError(f"format {manifest.format_version} is unknown to this version of cjepa")
    if manifest.encode() != content or manifest.signed() != manifest:
        raise _UnusableError(f"{MANIFEST} was changed since it was written")
    names = [shard.name for shard in manifest.shards]
    if len(set(names)) != len(names) or sum(shard.images for shard in manifest.shards) != manifest.images:
        raise _UnusableError(f"{MANIFEST} contradicts itself")
    return manifest


def _verify(index: Path, manifest: Manifest) -> None:
    """Hash all columns and hold their numbers against each other, in one pass and a bounded memory."""
    for name in NEEDED:
        if name not in manifest.columns:
            raise _UnusableError(f"it has no {name}")
    for name, column in manifest.columns.items():
        wanted = manifest.images * np.dtype(TYPES[name]).itemsize if name in TYPES else column.size
        found = (index / name).stat().st_size
        if not found == column.size == wanted:
            raise _UnusableError(f"{name} has {found:,} bytes, {wanted:,} are needed")
    digests = {name: hashlib.sha256() for name in manifest.columns}
    problems = _Consistency(manifest)
    with ExitStack() as stack:
        files = {name: stack.enter_context((index / name).open("rb")) for name in manifest.columns}
        for chunk in _chunks(files["names"]):
            digests["names"].update(chunk)
        for first in range(0, manifest.images, ROWS):
            rows = min(ROWS, manifest.images - first)
            numbers = {}
            for name in files.keys() - {"names"}:
                content = files[name].read(rows * np.dtype(TYPES[name]).itemsize)
                digests[name].update(content)
                numbers[name] = np.frombuffer(content, TYPES[name])
            if (problem := problems.of(first, numbers)) is not None:
                raise _UnusableError(problem)
    for name, column in manifest.columns.items():
        if digests[name].hexdigest() != column.sha256:
            raise _UnusableError(f"{name} is damaged: its sha256 is not the one in {MANIFEST}")
    if problems.names_end != manifest.columns["names"].size:
        raise _UnusableError("names and name_ends contradict each other")


def _chunks(file: BufferedReader) -> Iterator[bytes]:
    while content := file.read(1 << 22):
        yield content


class _Consistency:
    """Whether rows point into their shards; the hashes of a stranger's index are right by construction."""

    def __init__(self, manifest: Manifest) -> None:
        self._starts = first_images(manifest)
        self._sizes = np.array([shard.size for shard in manifest.shards], np.uint64)
        self._classes = len(manifest.classes)
        self.names_end = 0

    def of(self, first: int, rows: dict[Column, npt.NDArray[Any]]) -> str | None:
        """What is wrong with some consecutive rows; None if nothing is."""
        offsets, sizes, ends = rows["offsets"], rows["sizes"], rows["name_ends"]
        shards = np.searchsorted(self._starts, np.arange(first, first + len(offsets)), side="right") - 1
        limits = self._sizes[shards]
        if np.any(offsets < BLOCK) or np.any(offsets > limits) or np.any(sizes > limits - offsets):
            return "offsets lie outside of the shards"
        lengths = np.diff(ends.astype(np.int64), prepend=self.names_end)
        if np.any(lengths <= 0) or np.any(lengths > 4 * LONGEST_NAME):
            return "name_ends do not ascend"
        self.names_end = int(ends[-1])
        labels = rows.get("labels")
        if labels is not None and (labels.min() < NO_LABEL or labels.max() >= self._classes):
            return "labels name classes that do not exist"
        return None


def first_images(manifest: Manifest) -> npt.NDArray[np.int64]:
    """The index of the first image of every shard."""
    counts = np.array([shard.images for shard in manifest.shards], np.int64)
    return np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64) if len(counts) else counts
