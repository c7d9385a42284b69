"""Where the files lie in a tar archive that may come from anybody; nothing is ever extracted.

tarfile reads headers of any size into memory, keeps every member it has seen, and takes an archive that was cut off
between two members for a whole one. Its parser of single headers is used here; the walk is strict and bounded.
"""

import tarfile
from collections.abc import Iterator
from io import BufferedReader, BytesIO
from typing import NamedTuple

Readable = BufferedReader | BytesIO

BLOCK = 512
MOST_MEMBERS = 50_000_000
LONGEST_NAME = 4096
_LARGEST_EXTENSION = 1 << 20  # bytes of one extended header: names and times of one member
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_EXTENSIONS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE, *_PAX)
_WITHOUT_DATA = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)


class DamagedTarError(ValueError):
    """An archive is not a whole tar archive; the message says where and why."""


class Member(NamedTuple):
    """A regular file in an archive: its name, and where its `size` bytes begin."""

    name: str
    offset: int
    size: int


class _Extension(NamedTuple):
    """What an extended header says of the member after it."""

    name: bytes | None = None
    size: int | None = None


def tar_members(file: Readable, length: int) -> Iterator[Member]:
    """Every regular file of an uncompressed archive of `length` bytes; links and devices are passed over.

    Raises DamagedTarError for a header that fails its checksum, a member beyond the end, a missing end mark, data
    behind it, names that are absolute or climb out, and for sparse files.
    """
    position, extension, counted = 0, _Extension(), 0
    while True:
        header = _block(file, position, BLOCK, length)
        if not any(header):
            return _refuse_more(file, position)
        info = _parsed(header, position)
        counted += 1
        if counted > MOST_MEMBERS:
            raise DamagedTarError(f"it has more than {MOST_MEMBERS:,} members")
        size = info.size if extension.size is None else extension.size
        if size < 0:
            raise DamagedTarError(f"the member at byte {position} has a negative size")
        data = position + BLOCK
        stored = size if info.type not in _WITHOUT_DATA else 0
        position = data + -(-stored // BLOCK) * BLOCK
        if position > length:
            raise DamagedTarError(f"it ends within a member, at {length:,} of at least {position:,} bytes")
        if info.type in _EXTENSIONS:
            content = b"" if info.type == tarfile.XGLTYPE else _block(file, data, _bounded(size), length)
            extension = _extended(info.type, content, extension)
            continue
        if info.type == tarfile.GNUTYPE_SPARSE:
            raise DamagedTarError(f"{info.name} is a sparse file, which is not read; pack it without --sparse")
        if info.type in _REGULAR:
            name = info.name if extension.name is None else extension.name.decode("utf-8", "surrogateescape")
            yield Member(inside(name), data, size)
        extension = _Extension()


def inside(name: str) -> str:
    """A name below the archive's root, normalised; DamagedTarError for any that is not, on Windows or elsewhere."""
    if "\\" in name or name[1:2] == ":":
        raise _outside(name)
    return below(name)


def below(name: str) -> str:
    """A name below a folder, normalised, where `/` alone divides; DamagedTarError for any that is not."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or not parts or len(name) > LONGEST_NAME:
        raise _outside(name)
    return "/".join(parts)


def _outside(name: str) -> DamagedTarError:
    return DamagedTarError(f"it holds a file called {name[:80]!r}, which is no name below a folder")


def _block(file: Readable, position: int, size: int, length: int) -> bytes:
    if position + size > length:
        kind = next((kind for mark, kind in _COMPRESSED.items() if _start(file).startswith(mark)), None)
        raise DamagedTarError(_compressed(kind) if kind else f"it ends at byte {length:,} without an end mark")
    file.seek(position)
    content = file.read(size)
    if len(content) != size:
        raise DamagedTarError(f"it became shorter while it was read, at byte {position + len(content):,}")
    return content


def _parsed(header: bytes, position: int) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError, OverflowError) as error:
        kind = next((kind for mark, kind in _COMPRESSED.items() if not position and header.startswith(mark)), None)
        raise DamagedTarError(_compressed(kind) if kind else f"byte {position:,} begins no valid header") from error


def _compressed(kind: str) -> str:
    return f"it is compressed ({kind}), so that images cannot be read out of its middle; decompress it first"


def _start(file: Readable) -> bytes:
    file.seek(0)
    return file.read(2)


def _refuse_more(file: Readable, position: int) -> None:
    """Behind the end mark there are zeros; another archive there would be left out without a word."""
    file.seek(position)
    while content := file.read(1 << 16):
        if any(content):
            raise DamagedTarError(f"it goes on behind its end mark at byte {position:,}: unpack it and pack it as one")


def _bounded(size: int) -> int:
    if size > _LARGEST_EXTENSION:
        raise DamagedTarError(f"an extended header claims {size:,} bytes")
    return size


def _extended(kind: bytes, content: bytes, before: _Extension) -> _Extension:
    if kind == tarfile.GNUTYPE_LONGNAME:
        return before._replace(name=content.rstrip(b"\0"))
    if kind in _PAX:
        records = dict(_records(content))
        if any(key.startswith(b"GNU.sparse") for key in records):
            raise DamagedTarError("it holds a sparse file, which is not read; pack it without --sparse")
        return _Extension(records.get(b"path", before.name), _size(records.get(b"size")) or before.size)
    return before


def _size(text: bytes | None) -> int | None:
    if text is None:
        return None
    if not text.isdigit() or len(text) > 18:
        raise DamagedTarError(f"an extended header states the size {text[:40]!r}")
    return int(text)


def _records(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The "length key=value" lines of an extended header (POSIX.1-2001, pax)."""
    while content.rstrip(b"\0"):
        length, space, _ = content[:20].partition(b" ")
        if not space or not length.isdigit() or not len(length) + 3 < int(length) <= len(content):
            raise DamagedTarError("an extended header is damaged")
        key, equals, value = content[len(length) + 1 : int(length)].partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise DamagedTarError("an extended header is damaged")
        yield key, value[:-1]
        content = content[int(length) :]
