"""Write the index of a folder of shards (data/shard_index.py): column by column, shard by shard, at once in the end."""

import hashlib
import os
import secrets
import shutil
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from cjepa.data.labels import ClassNames, ordered_names
from cjepa.data.shard_contents import ShardContents
from cjepa.data.shard_index import (
    FORMAT_VERSION,
    INDEX,
    MANIFEST,
    NEEDED,
    ROWS,
    TYPES,
    Column,
    ColumnFile,
    Manifest,
    Shard,
)
from cjepa.training.durable import sync_folder, write_new


class IndexWriter:
    """Collects what the shards of a folder hold and gives the folder its index when left without an error.

    Rows go to the disk as they come, so memory holds those of one shard.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._temporary = folder / f".tmp-{INDEX}-{secrets.token_hex(4)}"
        self._shards: list[Shard] = []
        self._classes = ClassNames()
        self._names_end = 0

    def __enter__(self) -> "IndexWriter":
        self._temporary.mkdir(parents=True)
        self._files: dict[Column, BinaryIO] = {
            name: (self._temporary / name).open("xb") for name in (*NEEDED, "labels")
        }
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        try:
            for file in self._files.values():
                file.close()
            if kind is None:
                self._finish()
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)

    @property
    def images(self) -> int:
        """The number of images so far."""
        return sum(shard.images for shard in self._shards)

    def add(self, name: str, shard: ShardContents) -> None:
        """Append the images of a shard; the order of the calls is that of the images."""
        text, ends = shard.names.columns()
        numbers = np.array([self._classes.number(label) for label in shard.labels], TYPES["labels"])
        self._files["offsets"].write(shard.offsets.astype(TYPES["offsets"]).tobytes())
        self._files["sizes"].write(shard.sizes.astype(TYPES["sizes"]).tobytes())
        self._files["checksums"].write(shard.checksums.astype(TYPES["checksums"]).tobytes())
        self._files["names"].write(text.tobytes())
        self._files["name_ends"].write((ends + self._names_end).astype(TYPES["name_ends"]).tobytes())
        self._files["labels"].write(numbers.tobytes())
        self._names_end += len(text)
        self._shards.append(
            Shard(name=name, size=shard.size, images=len(shard), head=shard.head, contents=shard.digest())
        )

    def _finish(self) -> None:
        classes = ordered_names(self._classes.met)
        if classes:
            self._number_labels(classes)
        else:
            (self._temporary / "labels").unlink()
        columns = {name: _column(self._temporary / name) for name in self._files if name != "labels" or classes}
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            images=self.images,
            classes=classes,
            shards=tuple(self._shards),
            columns=columns,
        )
        write_new(self._temporary / MANIFEST, manifest.signed().encode())
        sync_folder(self._temporary)
        self._replace()

    def _number_labels(self, classes: tuple[str, ...]) -> None:
        """Provisional numbers become indices into the classes, which are known only now."""
        final = self._classes.final(classes).astype(TYPES["labels"])
        labels = np.memmap(self._temporary / "labels", TYPES["labels"], "r+")
        for first in range(0, len(labels), ROWS):
            labels[first : first + ROWS] = final[labels[first : first + ROWS]]
        labels.flush()

    def _replace(self) -> None:
        """An older index goes when the new one is whole on the disk."""
        place, old = self._folder / INDEX, self._temporary.with_name(f"{self._temporary.name}-old")
        if place.exists():
            place.rename(old)
        self._temporary.rename(place)
        sync_folder(self._folder)
        shutil.rmtree(old, ignore_errors=True)


def _column(path: Path) -> ColumnFile:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ColumnFile(size=path.stat().st_size, sha256=digest)
