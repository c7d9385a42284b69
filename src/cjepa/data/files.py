"""Images that are files below one folder, whoever named them: a walk, a list or a data set of torchvision."""

import hashlib
import os
from array import array
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from cjepa.data.decoding import UnreadableImageError, decode
from cjepa.data.names import NameList, Names

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif"),
)

_OF_SYSTEMS = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found")
"""What macOS, Synology, Windows and Linux leave beside the files of a user: copies, thumbnails, what was deleted."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder is passed over: some of these end like images and are none, or thumbnails of them."""
    return name.startswith(".") or name in _OF_SYSTEMS


class FileList:
    """Files while they are found: their paths relative to a root as the file system spells them, and their sizes."""

    def __init__(self) -> None:
        self._names = NameList()
        self._sizes = array("q")

    def __len__(self) -> int:
        return len(self._names)

    def add(self, path: bytes, size: int) -> None:
        """Append a file of `size` bytes."""
        self._names.add(path)
        self._sizes.append(size)

    def names(self) -> Names:
        """The paths; nothing can be added any more."""
        return self._names.names()

    def sizes(self) -> npt.NDArray[np.int64]:
        """In bytes."""
        return np.frombuffer(self._sizes, np.int64)


class FileSource:
    """Image files below a root, in the order of the list; see ImageSource."""

    def __init__(
        self,
        root: Path,
        files: FileList,
        labels: npt.NDArray[np.int64],
        classes: tuple[str, ...],
        max_pixels: int,
        fingerprint: str | None = None,
        confined: bool = False,
    ) -> None:
        """fingerprint: that of names and sizes, unless given. confined: links must not lead out of the root."""
        self.root = root
        self.max_pixels = max_pixels
        self.classes = classes
        self.names = files.names()
        self.labels = labels
        self.fingerprint = fingerprint or fingerprint_of(files)
        self._confined = confined

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        """Where an image lies; UnreadableImageError if that is not below the root and should be."""
        path = self.root / os.fsdecode(self.names.raw(index))
        if self._confined and not path.resolve().is_relative_to(self.root.resolve()):
            raise UnreadableImageError("a link leads out of the root; set data.source.root to a folder that holds both")
        return path

    def load(self, index: int) -> Image.Image:
        """The image in mode RGB; raises UnreadableImageError."""
        return decode(self.path(index), self.max_pixels)


def fingerprint_of(files: FileList) -> str:
    """The sha256 of all names and sizes in order."""
    digest, names, sizes = hashlib.sha256(), files.names(), files.sizes()
    for index in range(len(names)):
        digest.update(names.raw(index) + b"\0%d\n" % sizes[index])
    return digest.hexdigest()
