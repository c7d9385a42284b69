"""Any nested folder of images."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from cjepa.data.decoding import decode
from cjepa.data.source import NO_LABEL, Splits
from cjepa.errors import InputError
from cjepa.types import Part

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif"),
)
TEST_NAMES = ("test", "val", "validation")
"""Names of a test folder beside `train`; the first that exists is used."""


class FolderConfig(Part):
    """A folder of images, nested in any way; see open_folder for what its subfolders mean."""

    shorthand: ClassVar[str | None] = "path"

    name: Literal["folder"] = "folder"
    """The source: folder (your own images) or demo (crops of photographs that come with scikit-image)."""
    path: Path
    """The folder. Subfolders name classes (used to evaluate only); train and test or val, if present, are splits."""


class FolderSource:
    """The images of one split, sorted by name; labels are the first folder level below the split's root."""

    def __init__(self, root: Path, found: Sequence["_File"], classes: tuple[str, ...], max_pixels: int) -> None:
        self.root = root
        self.max_pixels = max_pixels
        self.classes = classes
        self.names = [_printable(file.path) for file in found]
        self.labels = _labels(found, classes)
        self.fingerprint = _fingerprint(found)
        self._unprintable = {index: file.path for index, file in enumerate(found) if file.path != self.names[index]}

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> Image.Image:
        """The image in mode RGB; raises UnreadableImageError."""
        return decode(self.root / self._unprintable.get(index, self.names[index]), self.max_pixels)


def open_folder(config: FolderConfig, max_pixels: int) -> Splits:
    """The images of a folder as splits.

    With a subfolder `train` and one of `test`, `val`, `validation` these two are the splits (test before val before
    validation; everything else in the folder is ignored, and the notes say so). Otherwise all images are training
    images. The first folder level below a split's root names the class; images directly in the root have none, and
    one class alone counts as none. Hidden files and folders are skipped, links followed, each folder read once.
    Raises InputError for a missing, unreadable or empty folder and for fewer than 2 training images.
    """
    root = config.path.expanduser()
    _refuse_unless_folder(root)
    subfolders = _split_folders(root)
    if subfolders is None:
        found = _found_images(root)
        return Splits(FolderSource(root, found, _classes(found), max_pixels), None)
    train, test, ignored = subfolders
    train_files, test_files = _found_images(root / train), _found_images(root / test, at_least=1)
    classes = _classes([*train_files, *test_files])
    notes = [f"{root}: training on {train}, testing on {test}"]
    if ignored:
        notes.append(f"{root}: ignored beside {train} and {test}: {_shortened(ignored)}")
    return Splits(
        FolderSource(root / train, train_files, classes, max_pixels),
        FolderSource(root / test, test_files, classes, max_pixels),
        tuple(notes),
    )


def _shortened(names: Sequence[str], shown: int = 8) -> str:
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest


class _File(NamedTuple):
    path: str  # relative to the split's root, as the file system spells it
    size: int  # bytes


def _refuse_unless_folder(root: Path) -> None:
    if root.is_dir():
        return
    if root.exists():
        raise InputError(f"data: {root} is a file; give the folder that holds the images")
    raise InputError(f"data: {root} does not exist (looked in {Path.cwd()}); check the path")


def _split_folders(root: Path) -> tuple[str, str, tuple[str, ...]] | None:
    """Names of the train and test folders and of what is ignored beside them, or None if there are no splits."""
    names = sorted(_printable(entry.name) for entry in _entries(root))
    folders = {name.lower(): name for name in names if (root / name).is_dir()}
    tests = [folders[name] for name in TEST_NAMES if name in folders]
    if "train" not in folders or not tests:
        return None
    used = (folders["train"], tests[0])
    return *used, tuple(name for name in names if name not in used)


def _found_images(root: Path, at_least: int = 2) -> list[_File]:
    """Image files below root, sorted by name whatever order the file system lists them in."""
    images, others = [], Counter[str]()
    for file in _files(root):
        extension = os.path.splitext(file.path)[1].lower()  # noqa: PTH122  a Path for each of 10^6 names is slow
        if extension in EXTENSIONS:
            images.append(file)
        else:
            others[extension or "no extension"] += 1
    if not images:
        raise InputError(
            f"data: {root} holds no images{_what_else(others)}; give a folder of {', '.join(EXTENSIONS)} files"
        )
    if len(images) < at_least:
        raise InputError(
            f"data: {root} holds only one image ({_printable(images[0].path)}); training needs at least "
            f"{at_least}, evaluation many more"
        )
    return sorted(images)


def _what_else(others: Counter[str]) -> str:
    if not others:
        return " (it is empty)"
    kinds = " ".join(_printable(extension) for extension, _ in others.most_common(8))
    return f" ({others.total()} file{'s' if others.total() > 1 else ''}: {kinds})"


def _files(root: Path) -> Iterator[_File]:
    """Every regular file below root. Each folder is entered once, so that loops of links end."""
    waiting, entered = [""], set[tuple[int, int]]()
    while waiting:
        folder = waiting.pop()
        status = (root / folder).stat()
        if (status.st_dev, status.st_ino) in entered:
            continue
        entered.add((status.st_dev, status.st_ino))
        folders = []
        for entry in _entries(root / folder):
            path = f"{folder}/{entry.name}" if folder else entry.name
            try:
                if entry.is_dir():
                    folders.append(path)
                elif entry.is_file():  # not a FIFO, socket or device
                    yield _File(path, entry.stat().st_size)
            except OSError:  # a link to itself, or a file removed meanwhile
                continue
        waiting += sorted(folders, reverse=True)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not _hidden(entry.name)]
    except OSError as error:
        raise InputError(
            f"data: cannot list {_printable(str(folder))}: {error.strerror}; make it readable or move it away"
        ) from error


def _hidden(name: str) -> bool:
    """Names of thumbnails and of the copies that macOS leaves in archives: they end like images and are none."""
    return name.startswith(".") or name == "__MACOSX"


def _classes(found: Iterable[_File]) -> tuple[str, ...]:
    names = {_printable(file.path).split("/", 1)[0] for file in found if "/" in file.path}
    return tuple(sorted(names)) if len(names) > 1 else ()


def _labels(found: Sequence[_File], classes: tuple[str, ...]) -> npt.NDArray[np.int64]:
    number = {name: index for index, name in enumerate(classes)}
    labels = [
        number.get(_printable(file.path).split("/", 1)[0], NO_LABEL) if "/" in file.path else NO_LABEL for file in found
    ]
    return np.array(labels, dtype=np.int64)


def _printable(name: str) -> str:
    """The name with bytes that are not UTF-8 spelt out, so that it can be logged and printed."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _fingerprint(found: Iterable[_File]) -> str:
    digest = hashlib.sha256()
    for file in found:
        digest.update(os.fsencode(file.path) + b"\0%d\n" % file.size)
    return digest.hexdigest()
