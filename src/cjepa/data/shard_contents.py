"""What one tar shard in the WebDataset layout holds: its images, their checksums, names and labels."""

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cjepa.data.files import EXTENSIONS, is_hidden
from cjepa.data.names import NameList
from cjepa.data.tar_members import BLOCK, DamagedTarError, Member, Readable, below, tar_members
from cjepa.errors import InputError

LARGEST_IMAGE = 1 << 30
"""Bytes of one image file that is kept in a shard."""
_LARGEST_NOTE = 1 << 16  # bytes of a label or of the description of an image


@dataclass
class ShardContents:
    """The images of one shard in its order.

    Arrays [n]: offsets in bytes, sizes in bytes, CRC-32 checksums. labels: the names of the classes, None where an
    image has none. head: sha256 of the first block, which tells shards apart. others: files that are no images, by
    extension.
    """

    size: int
    head: str
    offsets: npt.NDArray[np.uint64]
    sizes: npt.NDArray[np.uint32]
    checksums: npt.NDArray[np.uint32]
    names: NameList
    labels: list[str | None]
    others: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.offsets)

    def digest(self) -> str:
        """A sha256 of all that is known of the images."""
        digest = hashlib.sha256()
        for column in (self.offsets, self.sizes, self.checksums, *self.names.columns()):
            digest.update(column.astype(column.dtype.newbyteorder("<")).tobytes())
        digest.update(json.dumps(self.labels).encode())
        return digest.hexdigest()


def read_shard(path: Path) -> ShardContents:
    """Read a whole shard once; InputError if it is not a whole, uncompressed tar archive.

    Files whose names agree up to the first dot behind the last slash, one after the other, belong together
    (WebDataset). Every image among them counts; the label is in `.cls`, as a number or a name. `.json` is looked into
    for what `cjepa shard` writes there. No other file is opened. Hidden files are passed over, as in a folder: those
    that macOS puts into archives lie between the files of a sample.
    """
    try:
        with path.open("rb") as file:
            length = path.stat().st_size
            head = hashlib.sha256(file.read(BLOCK)).hexdigest()
            return _contents(file, length, head)
    except DamagedTarError as error:
        raise InputError(f"data: {path} cannot be used: {error}; copy or pack it again") from error
    except OSError as error:
        raise InputError(f"data: {path} cannot be read: {error.strerror}; check the disk") from error


def _contents(file: Readable, length: int, head: str) -> ShardContents:
    images, others = list[Member](), Counter[str]()
    names, labels, checksums = NameList(), list[str | None](), list[int]()
    shown = (member for member in tar_members(file, length) if not any(map(is_hidden, member.name.split("/"))))
    for _, group in groupby(shown, key=lambda member: _key(member.name)):
        members = list(_not_too_many(group))
        found = [member for member in members if _extension(member.name) in EXTENSIONS]
        others.update(_kind(member.name) for member in members if member not in found)
        if not found:
            continue
        name, label = _described(file, members)
        for image in found:
            if image.size > LARGEST_IMAGE:
                raise DamagedTarError(f"{image.name} has {image.size:,} bytes, more than {LARGEST_IMAGE:,}")
            images.append(image)
            names.add((name if name is not None and len(found) == 1 else image.name).encode("utf-8", "surrogateescape"))
            labels.append(label)
            checksums.append(zlib.crc32(_content(file, image)))
    return ShardContents(
        length,
        head,
        np.array([image.offset for image in images], np.uint64),
        np.array([image.size for image in images], np.uint32),
        np.array(checksums, np.uint32),
        names,
        labels,
        others,
    )


def _not_too_many(group: Iterable[Member], most: int = 10_000) -> Iterator[Member]:
    for number, member in enumerate(group):
        if number >= most:
            raise DamagedTarError(f"more than {most:,} files belong to {_key(member.name)}")
        yield member


def _key(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _extension(name: str) -> str:
    base = name.rpartition("/")[2]
    return f".{base.rpartition('.')[2].lower()}" if "." in base else ""


def _kind(name: str) -> str:
    """An extension to be counted by; there are not many of these."""
    extension = _extension(name)
    return extension if extension in (".cls", ".json", ".txt", ".npy", ".pyd", ".pickle", ".mp4") else "other"


def _described(file: Readable, members: list[Member]) -> tuple[str | None, str | None]:
    """The name and the label that the files beside an image give it."""
    name, label = None, None
    for member in members:
        extension = _extension(member.name)
        if extension == ".cls":
            label = label or _text(file, member)
        elif extension == ".json" and member.size <= _LARGEST_NOTE:
            name, stated = _our_note(_content(file, member))
            label = stated or label
    return name, label


def _text(file: Readable, member: Member) -> str | None:
    if member.size > _LARGEST_NOTE:
        raise DamagedTarError(f"{member.name} has {member.size:,} bytes and is no label")
    try:
        return _content(file, member).decode("utf-8").strip() or None
    except UnicodeDecodeError as error:
        raise DamagedTarError(f"{member.name} is no label in UTF-8") from error


def note(name: str, label: str | None) -> bytes:
    """The `.json` beside an image of ours: where it came from."""
    described = {"name": name} | ({} if label is None else {"class": label})
    return json.dumps({"cjepa": described}, ensure_ascii=True).encode()


def _our_note(content: bytes) -> tuple[str | None, str | None]:
    """The name and class of a note of ours; (None, None) for the JSON of anybody else."""
    try:
        described = json.loads(content)["cjepa"]
        name, label = described["name"], described.get("class")
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None, None
    if not isinstance(name, str) or not (label is None or isinstance(label, str)):
        return None, None
    # A name for people, which no file is opened by: those that are not UTF-8 are spelt with backslashes.
    return below(_encodable(name)), None if label is None else _encodable(label)


def _encodable(text: str) -> str:
    """JSON may hold halves of characters, which no file can be called."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _content(file: Readable, member: Member) -> bytes:
    file.seek(member.offset)
    content = file.read(member.size)
    if len(content) != member.size:
        raise DamagedTarError(f"it became shorter while {member.name} was read")
    return content
