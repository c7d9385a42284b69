"""A text file that lists images: one path a line, and after a tab its label, if it has one."""

import codecs
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from cjepa.data.files import FileList, FileSource, fingerprint_of
from cjepa.data.labels import LabelColumn, ordered_classes
from cjepa.data.names import printable
from cjepa.data.source import NO_LABEL, Splits
from cjepa.errors import InputError
from cjepa.types import Part

LONGEST_LINE = 8192
"""Bytes; a path has at most 4096 on the systems that limit it."""


class ListConfig(Part):
    """A text file with one image a line; see open_list."""

    name: Literal["list"] = "list"
    """The kind of source; data.source lists all."""
    path: Path
    """The list: one path a line, optionally a tab and a label. In UTF-8, sorted or not; its order is kept."""
    test: Path | None = None
    """A second list, of images to evaluate on."""
    root: Path | None = None
    """The folder that the paths are relative to, and must not leave; the list's own if null."""


def open_list(config: ListConfig, max_pixels: int) -> Splits:
    """The images of one list, or of two as splits.

    Paths are relative to the root, or absolute and below it; `..` is refused, and a link that leads out of the root
    makes its image unreadable. Labels are text; whole numbers are ordered by value. Every file is looked for at once:
    InputError names the first that is missing. Also raised for a list that is missing, empty, or not such a list.
    """
    root = (config.root or config.path.parent).expanduser().absolute()
    train = _Listed(config.path.expanduser(), root)
    if config.test is None:
        return Splits(train.source(ordered_classes(train.classes), max_pixels), None)
    test = _Listed(config.test.expanduser(), root)
    classes = ordered_classes([*train.classes, *test.classes])
    return Splits(train.source(classes, max_pixels), test.source(classes, max_pixels))


class _Listed:
    """What one list names."""

    def __init__(self, path: Path, root: Path) -> None:
        self.root = root
        self.files = FileList()
        self._labels = LabelColumn()
        missing: list[str] = []
        found: os.stat_result | None
        for number, line in _lines(path):
            name, tab, label = line.partition(b"\t")
            relative = _relative(name, root, f"{path}, line {number}")
            try:
                found = os.stat(os.path.join(os.fsencode(root), relative))  # noqa: PTH116, PTH118  10^6 of them
            except (OSError, ValueError):  # ValueError: a zero byte
                found = None
            if found is None or not stat.S_ISREG(found.st_mode):
                missing.append(f"{printable(relative)} (line {number})")
                continue
            self.files.add(relative, found.st_size)
            self._labels.add(_label(label, f"{path}, line {number}") if tab else None)
        if missing:
            raise InputError(
                f"data: {len(missing)} of the files that {path} lists are not there in {root}, the first is "
                f"{missing[0]}; correct the list, or name the folder it belongs to with data.source.root"
            )
        if not len(self.files):
            raise InputError(f"data: {path} lists no images; write one path a line")

    @property
    def classes(self) -> list[str]:
        return self._labels.classes.met

    def source(self, classes: tuple[str, ...], max_pixels: int) -> FileSource:
        labels = self._labels.labels(classes)
        fingerprint = fingerprint_of(self.files)
        if np.any(labels != NO_LABEL):
            told = "\0".join(classes).encode() + labels.astype("<i8").tobytes()
            fingerprint = hashlib.sha256(fingerprint.encode() + told).hexdigest()
        return FileSource(self.root, self.files, labels, classes, max_pixels, fingerprint, confined=True)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not empty, with their numbers."""
    if not path.is_file():
        raise InputError(f"data: {path} is not a file; give a text file with the path of one image a line")
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                        raise InputError(f"data: {path} is written in UTF-16; save it in UTF-8")
                if len(line) > LONGEST_LINE:
                    raise InputError(
                        f"data: {path}, line {number} has more than {LONGEST_LINE} bytes: this is no list of images; "
                        "write one path a line"
                    )
                if line := line.rstrip(b"\r\n"):
                    yield number, line
    except OSError as error:
        raise InputError(f"data: {path} cannot be read: {error.strerror}; check the disk") from error


def _relative(name: bytes, root: Path, place: str) -> bytes:
    """The path relative to the root, which it must not leave."""
    path = PurePosixPath(os.fsdecode(name))
    if path.is_absolute():
        if not path.is_relative_to(root.as_posix()):
            raise InputError(
                f"data: {place}: {printable(name)} is not below {root}; set data.source.root to a folder that holds "
                "all listed images"
            )
        path = path.relative_to(root.as_posix())
    if ".." in path.parts or not path.parts:
        raise InputError(f"data: {place}: {printable(name)} is not a path below {root}; write paths without `..`")
    return os.fsencode(str(path))


def _label(text: bytes, place: str) -> str | None:
    try:
        return text.decode("utf-8").strip() or None
    except UnicodeDecodeError as error:
        raise InputError(f"data: {place}: the label is not UTF-8; write the list in UTF-8") from error
