"""Decode the images of a run once, into a file that all its ranks and workers map; never more than a stated size."""

import logging
import secrets
import shutil
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from cjepa.data import CachedSource, ImageSource, UnreadableImageError
from cjepa.data.cache import COLUMNS, PIXELS, TABLE, decoded_bytes, in_memory, signature
from cjepa.training.durable import require_locks, sync_folder
from cjepa.training.progress import Progress

_log = logging.getLogger(__name__)

CACHE = ".cache"
"""Where the decoded images of a run lie in its folder, unless data.cache names another."""
_LOCK, _TEMPORARY = ".decoded.lock", ".tmp-decoded-"
_SPARE = 1.5
"""Times the size of the images that must be free on the disk: a run needs room for its checkpoints too."""


class _TooLargeError(Exception):
    """The images are larger than those that were looked at."""


def cached(source: ImageSource, folder: Path, limit: int) -> ImageSource:
    """The same images without decoding them again, from a file in `folder` that is made unless it is there.

    The source itself, and one line in the log, where they would need more than `limit` bytes or cannot be written.
    Several processes may ask for the same at once: one decodes, the others wait for it. A folder appears under its name
    when it is whole; what an interrupted process left is removed by the next one.
    """
    if not limit or in_memory(source):
        return source
    size = decoded_bytes(source)
    if not _fits(size, limit):
        return source
    try:
        folder.mkdir(parents=True, exist_ok=True)
        require_locks(folder)
        place = folder / signature(source)[:32]
        with FileLock(folder / _LOCK):
            found = _opened(source, place)
            if found is None:
                _make_room(folder, place, size)
                _write(source, place, limit)
                found = _opened(source, place)
    except (OSError, NotImplementedError) as error:
        _log.warning("data: images are decoded anew each time, since %s cannot be used: %s", folder, error)
        return source
    except _TooLargeError:
        _fits(float("inf"), limit)
        return source
    return found or source


def remove_cache(run: Path) -> None:
    """Remove the decoded images that lie in the folder of a run, which is done."""
    shutil.rmtree(run / CACHE, ignore_errors=True)


def _fits(size: float, limit: int) -> bool:
    if size <= limit:
        return True
    about = f"about {size / 1e6:,.0f} MB" if size < float("inf") else "more"
    _log.info(
        "data: images are decoded anew each time; all of them would take %s, and data.cache_bytes is %s MB",
        about,
        f"{limit / 1e6:,.0f}",
    )
    return False


def _opened(source: ImageSource, place: Path) -> CachedSource | None:
    try:
        return CachedSource(source, place)
    except (OSError, ValueError):
        return None


def _make_room(folder: Path, place: Path, size: float) -> None:
    """Remove what is of no use; OSError where the disk has no room."""
    for leftover in (*folder.glob(f"{_TEMPORARY}*"), place):
        shutil.rmtree(leftover, ignore_errors=True)
    free = shutil.disk_usage(folder).free
    if free < _SPARE * size:
        raise OSError(f"{free / 1e6:,.0f} MB are free, and {_SPARE} times {size / 1e6:,.0f} MB are asked for")


def _write(source: ImageSource, place: Path, limit: int) -> None:
    temporary = place.with_name(f"{_TEMPORARY}{secrets.token_hex(8)}")
    temporary.mkdir()
    try:
        with (temporary / PIXELS).open("xb") as file:
            table = _decoded(source, file, limit)
        np.save(temporary / TABLE, table, allow_pickle=False)
        temporary.rename(place)
        sync_folder(place.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _decoded(source: ImageSource, file: BinaryIO, limit: int) -> npt.NDArray[np.int64]:
    """Write the pixels of all images; the table that says where they are."""
    table, position = np.zeros((len(source), COLUMNS), np.int64), 0
    with Progress("decode", len(source)) as line:
        for index in range(len(source)):
            try:
                image = source.load(index)
            except UnreadableImageError:
                table[index, 0] = position
                continue
            pixels = image.tobytes()
            if position + len(pixels) > limit:
                raise _TooLargeError
            file.write(pixels)
            table[index] = position, image.height, image.width, zlib.crc32(pixels)
            position += len(pixels)
            line.update(index + 1, {}, 1)
    return table
