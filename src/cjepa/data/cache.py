"""Decoded images in one memory-mapped file: the same pixels as those of the source, without decoding them again."""

import hashlib
import logging
import os
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image

from cjepa.data.arrays import ArraySource
from cjepa.data.decoding import UnreadableImageError
from cjepa.data.files import FileSource
from cjepa.data.parquet import ParquetSource
from cjepa.data.shards import ShardSource
from cjepa.data.source import ImageSource

_log = logging.getLogger(__name__)

PIXELS, TABLE = "pixels", "table.npy"
COLUMNS = 4
"""Of the table, int64: where an image begins in the file of pixels, height, width (0 if unreadable) and CRC-32."""
_FORMAT = 1
_LOOKED_AT = 64
"""Images that are decoded to estimate the size of all."""


def signature(source: ImageSource) -> str:
    """A sha256 that changes when the decoded images may: for files also when one of them was only written again."""
    digest = hashlib.sha256(f"cjepa {_FORMAT}, Pillow {PIL.__version__}, {source.fingerprint}\n".encode())
    if isinstance(source, FileSource | ShardSource | ParquetSource):
        digest.update(b"at most %d pixels\n" % source.max_pixels)
    if isinstance(source, FileSource):
        for index in range(len(source)):
            digest.update(b"%d %d\n" % _written(partial(source.path, index)))
    if isinstance(source, ParquetSource):
        for path in source.files_beside():
            digest.update(b"%d %d\n" % _written(path.resolve))
    return digest.hexdigest()


def _written(path: Callable[[], Path]) -> tuple[int, int]:
    try:
        status = path().stat()
    except (OSError, ValueError):  # UnreadableImageError among them, and a zero byte in a name
        return (0, 0)
    return (status.st_size, status.st_mtime_ns)


def decoded_bytes(source: ImageSource) -> float:
    """About how many bytes all images have decoded, from some that lie evenly in the source."""
    indices = np.linspace(0, len(source) - 1, min(_LOOKED_AT, len(source))).round().astype(int)
    sizes = []
    for index in indices.tolist():
        try:
            image = source.load(index)
        except UnreadableImageError:
            continue
        sizes.append(3 * image.width * image.height)
    return len(source) * float(np.mean(sizes)) if sizes else 0.0


def in_memory(source: ImageSource) -> bool:
    """Whether there is nothing to decode."""
    return isinstance(source, ArraySource)


class CachedSource:
    """The images of a source, read from decoded pixels; see ImageSource.

    An image that is unreadable, or whose pixels are not those that were written (a flipped bit, a power cut), is read
    from the source itself. The file is mapped anew in every process.
    """

    def __init__(self, source: ImageSource, folder: Path) -> None:
        """Raises OSError or ValueError when the folder does not hold the images of such a source."""
        self.source = source
        self.folder = folder
        self.names, self.labels, self.classes = source.names, source.labels, source.classes
        self.fingerprint = source.fingerprint
        with (folder / TABLE).open("rb") as file:  # np.load has errors of its own for what a power cut left empty
            self.table: npt.NDArray[np.int64] = np.lib.format.read_array(file, allow_pickle=False)
        if self.table.shape != (len(source), COLUMNS) or self.table.dtype != np.int64:
            raise ValueError(f"{folder / TABLE} is the table of other images")
        if os.path.getsize(folder / PIXELS) != 3 * int((self.table[:, 1] * self.table[:, 2]).sum()):  # noqa: PTH202
            raise ValueError(f"{folder / PIXELS} has not the size that its table states")
        self._pixels: npt.NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.source)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": None}  # a mapped file would be pickled as a whole

    def load(self, index: int) -> Image.Image:
        """The image in mode RGB; raises UnreadableImageError."""
        start, height, width, checksum = self.table[index].tolist()
        pixels = self.pixels[start : start + 3 * height * width]
        if not len(pixels) or zlib.crc32(pixels.data) != checksum:
            return self.source.load(index)
        return Image.frombuffer("RGB", (width, height), pixels, "raw", "RGB", 0, 1)

    @property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """All of them, end to end, each image row by row: [bytes]."""
        if self._pixels is None:
            self._pixels = np.memmap(self.folder / PIXELS, np.uint8, "c")  # torch warns of arrays that are not writable
        return self._pixels

    @property
    def uniform(self) -> npt.NDArray[np.uint8] | None:
        """The pixels as [n, H, W, 3], unless sizes differ, an image is unreadable or its pixels are damaged.

        Reads all of them: whoever takes this array does not look at the checksums any more.
        """
        height, width = self.table[0, 1:3].tolist()
        if not height or (self.table[:, 1:3] != (height, width)).any():
            return None
        images = self.pixels.reshape(len(self), height, width, 3)
        checksums = self.table[:, 3].tolist()
        damaged = sum(zlib.crc32(image.data) != checksum for image, checksum in zip(images, checksums, strict=True))
        if damaged:
            _log.warning(
                "data: %d decoded images in %s are damaged and read from their files; remove that folder to have all "
                "of them decoded again",
                damaged,
                self.folder,
            )
        return None if damaged else images
