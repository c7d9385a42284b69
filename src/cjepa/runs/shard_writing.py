"""Images of any source as they are stored in a tar shard, and the writing of one shard."""

import io
import os
import secrets
import tarfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from PIL import Image

from cjepa.data import NO_LABEL, ArraySource, FileSource, ImageSource, ParquetSource, ShardSource, UnreadableImageError
from cjepa.data.decoding import FORMATS, decode
from cjepa.data.files import EXTENSIONS
from cjepa.data.shard_contents import LARGEST_IMAGE, ShardContents, note, read_shard
from cjepa.errors import InputError
from cjepa.training.durable import sync_folder

TEMPORARY = ".tmp-cjepa-shard-"
_AT_ONCE = 16  # images in memory for each worker
_GAP = 3.0  # shrink by a whole factor first where it cannot be seen
_QUALITY = 95
_LONGEST_JPEG = 65_500  # pixels of a side that the encoder takes

Format = Literal["jpeg", "png"]


@dataclass(frozen=True)
class Packing:
    """How images are stored.

    size: pixels that the shorter side is reduced to, None to keep every file as it is. format: of images that were
    reduced. images_per_shard: None for about SHARD_BYTES in a shard.
    """

    size: int | None = None
    format: Format = "jpeg"
    images_per_shard: int | None = None


@dataclass(frozen=True)
class Sample:
    """One image as it is stored: its name and label in the source, its bytes and their extension."""

    name: str
    number: int
    label: str | None
    content: bytes
    suffix: str
    undecodable: bool


def in_order(pool: ThreadPoolExecutor, prepare: partial[Sample], indices: range, workers: int) -> Iterator[Sample]:
    """The samples of some images, prepared by threads, with a bounded number of them in memory."""
    for first in range(0, len(indices), _AT_ONCE * workers):
        yield from pool.map(prepare, indices[first : first + _AT_ONCE * workers])


def prepared(source: ImageSource, packing: Packing, max_pixels: int, index: int) -> Sample:
    """An image of a source as it is stored; one that cannot be decoded is kept as it is. InputError without bytes."""
    content, undecodable = encoded(source, index), False
    name, number = source.names[index], int(source.labels[index])
    suffix = _suffix(name, content)
    if packing.size is not None:
        try:
            reduced = _reduced(content, packing.size, packing.format, max_pixels)
        except UnreadableImageError:
            undecodable = True
        else:
            content, suffix = (content, suffix) if reduced is None else (reduced, f".{packing.format}")
    label = source.classes[number] if number != NO_LABEL else None
    return Sample(name, number, label, content, suffix, undecodable)


def encoded(source: ImageSource, index: int) -> bytes:
    """The bytes of an image as the source stores them; InputError if they cannot be had."""
    name = source.names[index]
    try:
        match source:
            case FileSource():
                path = source.path(index)
                if path.stat().st_size > LARGEST_IMAGE:
                    raise InputError(f"{name} has more than {LARGEST_IMAGE:,} bytes; remove it from the images")
                return path.read_bytes()
            case ShardSource() | ParquetSource():
                return source.encoded(index)
            case ArraySource():
                return _bytes_of(source.load(index), "png")
            case _:
                raise AssertionError(type(source))
    except (OSError, UnreadableImageError) as error:
        raise InputError(f"{name} cannot be read ({error}); mend or remove it, then run the same command") from error


def _reduced(content: bytes, size: int, kind: Format, max_pixels: int) -> bytes | None:
    """The image with a shorter side of `size` pixels; None if it is no larger, or too long a strip for the format."""
    image = decode(content, max_pixels)
    shorter = min(image.size)
    if shorter <= size:
        return None
    width, height = (max(1, round(side * size / shorter)) for side in image.size)
    if kind == "jpeg" and max(width, height) > _LONGEST_JPEG:
        return None
    return _bytes_of(image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=_GAP), kind)


def _bytes_of(image: Image.Image, kind: Format) -> bytes:
    file = io.BytesIO()
    if kind == "png":
        image.save(file, "PNG")
    else:
        image.save(file, "JPEG", quality=_QUALITY, subsampling=0)
    return file.getvalue()


def _suffix(name: str, content: bytes) -> str:
    """The extension that says in a shard that this is an image."""
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122  a name, not a path
    if suffix in EXTENSIONS:
        return suffix
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            suffix = f".{(image.format or '').lower()}"
            return suffix if suffix in EXTENSIONS else ".jpg"  # MPO: a JPEG with more pictures behind it
    except Exception:  # Pillow's readers of damaged files raise nearly anything
        return ".jpg"


def write_shard(path: Path, samples: Iterator[Sample], indices: range) -> ShardContents:
    """Write a shard, read it back from the disk, and only then give it its name."""
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(4)}-{path.name}")
    checksums, undecodable = [], 0
    try:
        with temporary.open("xb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for index, sample in zip(indices, samples, strict=True):
                    _add(tar, f"{index:09d}{sample.suffix}", sample.content)
                    if sample.label is not None:
                        _add(tar, f"{index:09d}.cls", b"%d" % sample.number)
                    _add(tar, f"{index:09d}.json", note(sample.name, sample.label))
                    checksums.append(zlib.crc32(sample.content))
                    undecodable += sample.undecodable
            file.flush()
            os.fsync(file.fileno())
        contents = read_shard(temporary)
        if contents.checksums.tolist() != checksums:
            raise OSError(f"{temporary} does not hold what was written to it")
        contents.others["undecodable"] = undecodable
        temporary.rename(path)
        sync_folder(path.parent)
        return contents
    finally:
        temporary.unlink(missing_ok=True)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o644
    tar.addfile(member, io.BytesIO(content))
