"""Tar shards in the WebDataset layout, read by offset through an index: order, resume and damage as for a folder."""

import hashlib
import os
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from io import BufferedReader
from pathlib import Path
from threading import Lock
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from cjepa.data.decoding import UnreadableImageError, decode
from cjepa.data.folder import split_folders
from cjepa.data.labels import ordered_classes
from cjepa.data.shard_index import INDEX, Manifest, Shard, first_images, has_index, open_index
from cjepa.data.source import NO_LABEL, Splits
from cjepa.data.tar_members import BLOCK
from cjepa.errors import InputError
from cjepa.types import Part

_MOST_OPEN = 64
"""Shards that a process holds open at a time."""


class ShardsConfig(Part):
    """Tar shards with an index; see open_shards."""

    name: Literal["shards"] = "shards"
    """The kind of source; data.source lists all."""
    path: Path
    """The folder of the tar files, or of `train` and `test` folders of them. Made or indexed by `cjepa shard`."""
    index: Path | None = None
    """Where `cjepa shard --index-only` put the index; beside the shards if null."""


def is_sharded(path: Path) -> bool:
    """Whether a folder, or the splits in it, has an index of shards."""
    if not path.is_dir():
        return False
    return has_index(path) or ((splits := split_folders(path)) is not None and has_index(path / splits.train))


def open_shards(config: ShardsConfig, max_pixels: int) -> Splits:
    """The images of a folder of shards, or of its `train` and `test` (`val`, `validation`) folders as splits.

    The index is verified to the byte, and every shard is looked for and its size compared. The first time that a
    process reads from a shard its first block is compared; every image that is read is held against its CRC-32.
    A damaged image is unreadable like any other; a shard that is missing or another one raises InputError, as does
    anything wrong with the index.
    """
    root = config.path.expanduser()
    index = root if config.index is None else config.index.expanduser()
    if not root.is_dir():
        raise InputError(f"data: {root} is not a folder; give the folder that holds the tar shards")
    splits = split_folders(root) if not has_index(index) else None
    if splits is None:
        source = _opened(root, index, max_pixels)
        return Splits(source.relabelled(ordered_classes(source.classes)), None)
    train = _opened(root / splits.train, index / splits.train, max_pixels)
    test = _opened(root / splits.test, index / splits.test, max_pixels)
    classes = ordered_classes([*train.classes, *test.classes])
    return Splits(train.relabelled(classes), test.relabelled(classes), splits.notes(root))


class ShardSource:
    """The images of one index, in its order; see ImageSource."""

    def __init__(self, shards: Path, index: Path, max_pixels: int) -> None:
        manifest, self._columns = open_index(index, shards)
        _refuse_missing(shards, index, manifest)
        self.classes = manifest.classes
        self.fingerprint = manifest.checksum
        self.max_pixels = max_pixels
        self._files = _Files(shards, index, manifest.shards)
        self._starts = first_images(manifest)
        self._changed_labels: npt.NDArray[np.int64] | None = None

    @property
    def names(self) -> Sequence[str]:
        """The names that the images had before they were packed, else those in the archive."""
        return self._columns.names

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """The class of each image, NO_LABEL where it has none."""
        return self._columns.labels if self._changed_labels is None else self._changed_labels

    def relabelled(self, classes: tuple[str, ...]) -> "ShardSource":
        """This source with labels that are indices into other classes."""
        if classes != self.classes:
            number = {name: index for index, name in enumerate(classes)}
            table = np.array([*(number.get(name, NO_LABEL) for name in self.classes), NO_LABEL], np.int64)
            self._changed_labels, self.classes = table[self._columns.labels], classes
        return self

    def __len__(self) -> int:
        return len(self._columns.offsets)

    def encoded(self, index: int) -> bytes:
        """The image as it is stored; UnreadableImageError if it is damaged, InputError if its shard is missing."""
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        columns = self._columns
        content = self._files.read(shard, int(columns.offsets[index]), int(columns.sizes[index]))
        if zlib.crc32(content) != int(columns.checksums[index]):
            raise UnreadableImageError("damaged: its checksum is not the one in the index")
        return content

    def load(self, index: int) -> Image.Image:
        """The image in mode RGB; raises UnreadableImageError, and InputError when its shard is missing."""
        return decode(self.encoded(index), self.max_pixels)


def _opened(shards: Path, index: Path, max_pixels: int) -> ShardSource:
    if not has_index(index):
        where = "" if index == shards else f" {index}"
        raise InputError(
            f"data: {index} has no index of shards ({INDEX}); make one with: cjepa shard --index-only {shards}{where}"
        )
    source = ShardSource(shards, index, max_pixels)
    if not len(source):
        raise InputError(f"data: the shards in {shards} hold no images; name others")
    return source


def _refuse_missing(folder: Path, index: Path, manifest: Manifest) -> None:
    problems = [problem for shard in manifest.shards if (problem := _missing(folder, shard)) is not None]
    if problems:
        raise _other_shards(folder, index, problems[0], len(problems), len(manifest.shards))


def _missing(folder: Path, shard: Shard) -> str | None:
    path = folder / shard.name
    try:
        size = path.stat().st_size
    except OSError:
        return f"{shard.name} is missing"
    if not path.is_file():
        return f"{shard.name} is not a file"
    return None if size == shard.size else f"{shard.name} has {size:,} bytes instead of {shard.size:,}"


def _other_shards(folder: Path, index: Path, problem: str, count: int = 1, of: int = 1) -> InputError:
    more = f" ({count} of {of} shards are not as indexed)" if count > 1 else ""
    beside = "" if index == folder else f" {index}"
    return InputError(
        f"data: {folder}: {problem}{more}; bring back what the index was made of, or, to go on with other images, make "
        f"a new index: cjepa shard --index-only {folder}{beside}"
    )


class _Files:
    """Shards opened when they are first read, in each process for itself: a forked one would share the position.

    The threads of a process take turns, since they share it too.
    """

    def __init__(self, folder: Path, index: Path, shards: tuple[Shard, ...]) -> None:
        self._origin = (folder, index, shards)
        self._open = OrderedDict[int, BufferedReader]()
        self._process = os.getpid()
        self._lock = Lock()

    def __reduce__(self) -> tuple[type["_Files"], tuple[Path, Path, tuple[Shard, ...]]]:
        return _Files, self._origin

    def __del__(self) -> None:
        for file in self._open.values():
            file.close()

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Some bytes of a shard, fewer at its end."""
        if self._process != os.getpid():
            self.__del__()
            self._open, self._process, self._lock = OrderedDict(), os.getpid(), Lock()
        with self._lock:
            file = self._open.get(shard)
            if file is None:
                file = self._opened(shard)
            self._open.move_to_end(shard)
            try:
                file.seek(offset)
                return file.read(size)
            except OSError as error:
                raise UnreadableImageError(error.strerror or str(error)) from error

    def _opened(self, number: int) -> BufferedReader:
        folder, index, shards = self._origin
        shard = shards[number]
        problem = _missing(folder, shard)
        if problem is None:
            try:
                file = (folder / shard.name).open("rb")
            except OSError as error:
                problem = f"{shard.name} cannot be opened: {error.strerror}"
            else:
                if hashlib.sha256(file.read(BLOCK)).hexdigest() == shard.head:
                    self._keep(number, file)
                    return file
                file.close()
                problem = f"{shard.name} is not the one that was indexed (it begins differently)"
        raise _other_shards(folder, index, problem)

    def _keep(self, number: int, file: BufferedReader) -> None:
        self._open[number] = file
        if len(self._open) > _MOST_OPEN:
            self._open.popitem(last=False)[1].close()
