"""Any nested folder of images."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from cjepa.data.files import EXTENSIONS, FileList, FileSource, is_hidden
from cjepa.data.labels import LabelColumn, ordered_classes
from cjepa.data.names import printable
from cjepa.data.source import Splits
from cjepa.errors import InputError
from cjepa.types import Part

TEST_NAMES = ("test", "val", "validation")
"""Names of a test folder beside `train`; the first that exists is used."""


_HINTS = {
    ".tar": "; tar shards need an index: cjepa shard --index-only FOLDER",
    ".parquet": "; Parquet files are read with data.source.name=parquet data.source.path=FOLDER",
}


_NOT_READ = (
    *(".heic", ".heif", ".jxl", ".jp2", ".j2k", ".tga", ".psd", ".exr", ".hdr", ".dcm"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
    *(".zip", ".tar", ".tgz", ".gz", ".7z", ".rar", ".parquet"),
)
"""Pictures of kinds that are not read, and archives: where they lie beside images, those may not be all there are."""


class FolderConfig(Part):
    """A folder of images, nested in any way; see open_folder for what its subfolders mean."""

    shorthand: ClassVar[str | None] = "path"

    name: Literal["folder"] = "folder"
    """The kind of source; data.source lists all."""
    path: Path
    """The folder. Subfolders name classes (used to evaluate only); train and test or val, if present, are splits."""


def open_folder(config: FolderConfig, max_pixels: int) -> Splits:
    """The images of a folder as splits.

    With a subfolder `train` and one of `test`, `val`, `validation` these two are the splits (test before val before
    validation; everything else in the folder is ignored, and the notes say so). Otherwise all images are training
    images. The first folder level below a split's root names the class; images directly in the root have none, and
    one class alone counts as none. Hidden files and folders are skipped, links followed, each folder read once.
    Raises InputError for a missing, unreadable or empty folder.
    """
    root = config.path.expanduser()
    _refuse_unless_folder(root)
    subfolders = split_folders(root)
    if subfolders is None:
        found = _found_images(root)
        return Splits(found.source(root, ordered_classes(found.classes), max_pixels), None, found.notes(root))
    train, test = _found_images(root / subfolders.train), _found_images(root / subfolders.test)
    classes = ordered_classes([*train.classes, *test.classes])
    return Splits(
        train.source(root / subfolders.train, classes, max_pixels),
        test.source(root / subfolders.test, classes, max_pixels),
        subfolders.notes(root) + train.notes(root / subfolders.train) + test.notes(root / subfolders.test),
    )


def lies_among_images(config: FolderConfig, place: Path) -> bool:
    """Whether pictures that are written into `place` would be images of the folder, which must exist."""
    root, place = config.path.expanduser(), place.expanduser().resolve()
    splits = split_folders(root)
    walked = [root] if splits is None else [root / splits.train, root / splits.test]
    return any(
        place.is_relative_to(folder) and not any(map(is_hidden, place.relative_to(folder).parts))
        for folder in (each.resolve() for each in walked)
    )


class SplitFolders(NamedTuple):
    """Names of the train and test folders and of what is ignored beside them."""

    train: str
    test: str
    ignored: tuple[str, ...]

    def notes(self, root: Path) -> tuple[str, ...]:
        """What the user should know."""
        notes = [f"{root}: training on {self.train}, testing on {self.test}"]
        if self.ignored:
            notes.append(f"{root}: ignored beside {self.train} and {self.test}: {shortened(self.ignored)}")
        return tuple(notes)


def split_folders(root: Path) -> SplitFolders | None:
    """The folders that are splits, or None if there are none."""
    names = [printable(name) for name in _listed(root)]
    folders = {name[:-1].lower(): name[:-1] for name in names if name.endswith("/")}
    tests = [folders[name] for name in TEST_NAMES if name in folders]
    if "train" not in folders or not tests:
        return None
    used = (folders["train"], tests[0])
    return SplitFolders(*used, tuple(sorted(name for each in names if (name := each.rstrip("/")) not in used)))


def shortened(names: Sequence[str], shown: int = 8) -> str:
    """The first names, and how many more there are."""
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest


def _refuse_unless_folder(root: Path) -> None:
    if root.is_dir():
        return
    if root.exists():
        raise InputError(f"data: {root} is a file; give the folder that holds the images")
    raise InputError(f"data: {root} does not exist (looked in {Path.cwd()}); check the path")


class _Found:
    """The images below a root and the class that the first folder level gives each."""

    def __init__(self) -> None:
        self.files = FileList()
        self.others = Counter[str]()
        """Files that are no images, by extension."""
        self._labels = LabelColumn()

    def add(self, path: str, size: int) -> None:
        self.files.add(os.fsencode(path), size)
        first, below, _ = path.partition("/")
        self._labels.add(printable(first) if below else None)

    @property
    def classes(self) -> list[str]:
        return self._labels.classes.met

    def notes(self, root: Path) -> tuple[str, ...]:
        """What the user should know of files that may have been meant."""
        kinds = [f"{count:,} {kind}" for kind, count in self.others.most_common() if kind in _NOT_READ]
        if not kinds:
            return ()
        return (f"{root}: left out, since such files are not read: {shortened(kinds)}; convert or unpack them first",)

    def source(self, root: Path, classes: tuple[str, ...], max_pixels: int) -> FileSource:
        return FileSource(root, self.files, self._labels.labels(classes), classes, max_pixels)


def _found_images(root: Path) -> _Found:
    """Image files below root, sorted by name whatever order the file system lists them in."""
    found = _Found()
    for path in _files(root):
        extension = os.path.splitext(path)[1].lower()  # noqa: PTH122  a Path for each of 10^6 names is slow
        if extension not in EXTENSIONS:
            found.others[extension or "no extension"] += 1
            continue
        try:
            found.add(path, os.stat(f"{root}/{path}").st_size)  # noqa: PTH116  the same
        except OSError:  # removed meanwhile
            continue
    if not len(found.files):
        raise InputError(
            f"data: {root} holds no images{_what_else(found.others)}; give a folder of {', '.join(EXTENSIONS)} files"
            + "".join(hint for extension, hint in _HINTS.items() if extension in found.others)
        )
    return found


def _what_else(others: Counter[str]) -> str:
    if not others:
        return " (it is empty)"
    kinds = " ".join(printable(extension) for extension, _ in others.most_common(8))
    return f" ({others.total()} file{'s' if others.total() > 1 else ''}: {kinds})"


def _files(root: Path) -> Iterator[str]:
    """Every regular file below root, sorted by its whole path. Each folder is entered once, so that loops end."""
    entered = set[tuple[int, int]]()
    opened = [iter([""])]  # of each folder on the way down, what is still to come
    while opened:
        path = next(opened[-1], None)
        if path is None:
            opened.pop()
        elif path.endswith("/") or not path:
            status = (root / path).stat()
            if (status.st_dev, status.st_ino) not in entered:
                entered.add((status.st_dev, status.st_ino))
                opened.append(_below(root, path))
        else:
            yield path


def _below(root: Path, folder: str) -> Iterator[str]:
    return (f"{folder}{name}" for name in _listed(root / folder))


def _listed(folder: Path) -> list[str]:
    """Names of regular files, and of folders with a slash at their end: sorted like this, paths come out sorted."""
    names = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not is_hidden(entry.name) and (kind := _kind(entry)) is not None:
                    names.append(entry.name + kind)
    except OSError as error:
        raise InputError(
            f"data: cannot list {printable(str(folder))}: {error.strerror}; make it readable or move it away"
        ) from error
    return sorted(names)


def _kind(entry: os.DirEntry[str]) -> str | None:
    """A slash for a folder, nothing for a file, None for a FIFO, a socket, a device or a link to nowhere."""
    try:
        return "/" if entry.is_dir() else "" if entry.is_file() else None
    except OSError:  # a link to itself
        return None
