"""`cjepa shard`: pack the images of any source into tar shards (WebDataset layout), or index shards made by others."""

import json
import logging
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from cjepa.config import apply_overrides, parse
from cjepa.data import DataConfig, ImageSource, open_source
from cjepa.data.folder import split_folders
from cjepa.data.names import printable
from cjepa.data.shard_contents import read_shard
from cjepa.data.shard_index import INDEX, has_index, is_shard_name, open_index
from cjepa.errors import InputError, StoppedEarly
from cjepa.runs.index_writing import IndexWriter
from cjepa.runs.shard_parts import Parts
from cjepa.runs.shard_writing import TEMPORARY, Packing, Sample, encoded, in_order, prepared, write_shard
from cjepa.training.durable import replace, require_locks
from cjepa.training.progress import Progress
from cjepa.types import Part

_log = logging.getLogger(__name__)

PLAN = ".cjepa-shard.json"
SHARD_BYTES = 256 << 20
"""Bytes that a shard has about, unless the number of its images is given."""
_MOST_IMAGES = 100_000  # in one shard, unless its number of images is given
_SAMPLED = 1000  # images whose sizes tell how many make a shard


@dataclass(frozen=True)
class Sharded:
    """What a folder of shards holds now. undecodable: images that were kept as they are. others: files left out."""

    folder: Path
    images: int
    shards: int
    size: int
    undecodable: int = 0
    others: Counter[str] | None = None


class _Images(Part):
    """The keys that `cjepa shard` takes: those of a run's images."""

    data: DataConfig
    """The images to pack."""


def data_of(images: str, changes: Sequence[str]) -> DataConfig:
    """The images that a path names, after each "data.KEY=VALUE"; InputError names whatever is wrong."""
    return parse(_Images, apply_overrides(_Images, {}, [f"data={images}", *changes])).data


def shard_images(data: DataConfig, out: Path, packing: Packing, workers: int = 1) -> list[Sharded]:
    """Pack the images of a source, in its order, into `out`, or those of its splits into `out/train` and `out/test`.

    Every image becomes one sample, also one that cannot be decoded: it is kept as it is, so that names, order and
    number are those of the source. Finished shards stay when this is interrupted; the same call goes on behind them.
    Raises InputError for other settings than those that `out` was begun with, StoppedEarly if it cannot be written.
    """
    splits = open_source(data, 0, at_least=1)
    for text in splits.notes:
        _log.info("%s", text)
    if splits.test is None:
        return [_shard_split(splits.train, out, packing, data.max_pixels, workers)]
    return [
        _shard_split(source, out / name, packing, data.max_pixels, workers)
        for name, source in (("train", splits.train), ("test", splits.test))
    ]


def index_shards(folder: Path, out: Path) -> list[Sharded]:
    """Index the tar files in a folder, or in its train and test folders, and put the index into `out`.

    Nothing else is written. Shards that were read before an interruption are not read again. InputError names a shard
    that is damaged, compressed or not a tar archive.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the folder that holds the tar shards")
    splits = split_folders(folder)
    if splits is None:
        return [_index_split(folder, out)]
    for text in splits.notes(folder):
        _log.info("%s", text)
    return [_index_split(folder / name, out / name) for name in (splits.train, splits.test)]


def _index_split(folder: Path, out: Path) -> Sharded:
    shards = sorted(path for path in folder.iterdir() if path.name.endswith(".tar") and not path.name.startswith("."))
    if not shards:
        raise InputError(f"{folder} holds no .tar files; give the folder that holds the tar shards")
    for path in shards:
        if not is_shard_name(path.name):
            raise InputError(
                f"{printable(str(path))}: an index cannot name a shard with a colon, a backslash, control characters "
                "or bytes that are not UTF-8 in its name; rename it"
            )
    with _held(out):
        parts, others = Parts(out), Counter[str]()
        with IndexWriter(out) as index, Progress(f"index {folder.name}", len(shards)) as line:
            for number, path in enumerate(shards, 1):
                contents = parts.load(path)
                if contents is None:
                    contents = read_shard(path)
                    parts.save(path, contents)
                others.update(contents.others)
                index.add(path.name, contents)
                line.update(number, {"shards": number}, images=len(contents))
            if not index.images:
                raise InputError(f"the tar files in {folder} hold no images; give a folder of image shards")
        parts.remove()
    return _found(out, 0, others)


def _shard_split(source: ImageSource, out: Path, packing: Packing, max_pixels: int, workers: int) -> Sharded:
    with _held(out):
        count = _begin(source, out, packing)
        if has_index(out):  # begun in the same way and whole
            return _found(out)
        parts, done, undecodable = Parts(out), 0, 0
        prepare = partial(prepared, source, packing, max_pixels)
        with (
            IndexWriter(out) as index,
            ThreadPoolExecutor(workers) as pool,
            Progress(f"shard {out.name}", len(source)) as line,
        ):
            for number, first in enumerate(range(0, len(source), count)):
                path = out / f"shard-{number:06d}.tar"
                indices = range(first, min(first + count, len(source)))
                contents = parts.load(path)
                if contents is None:
                    samples = in_order(pool, prepare, indices, workers)
                    contents = write_shard(path, _shown(samples, line, done), indices)
                    parts.save(path, contents)
                assert len(contents) == len(indices), path
                undecodable += contents.others["undecodable"]
                done += len(contents)
                index.add(path.name, contents)
                line.update(done, {})
        parts.remove()
        return _found(out, undecodable)


def _found(out: Path, undecodable: int = 0, others: Counter[str] | None = None) -> Sharded:
    """The shards of a finished folder by its index."""
    manifest, _ = open_index(out)
    size = sum(shard.size for shard in manifest.shards)
    return Sharded(out, manifest.images, len(manifest.shards), size, undecodable, others)


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """The folder, for one process at a time; what a killed one left half written is removed."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        require_locks(out)
        lock = FileLock(out / ".lock")
        lock.acquire(timeout=1)
    except Timeout as error:
        raise InputError(f"{out} is in use by another cjepa shard; wait for it, or choose another folder") from error
    except NotImplementedError as error:
        raise InputError(f"{out}: {error}; choose a folder elsewhere") from error
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error}; choose a folder that you may write to") from error
    try:
        for leftover in (*out.glob(f".tmp-{INDEX}-*"), *out.glob(f"{TEMPORARY}*")):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        yield
    except OSError as error:
        raise StoppedEarly(
            f"{out} cannot be written: {error}; when that is mended, the same command goes on where it stopped"
        ) from error
    finally:
        lock.release()


def _begin(source: ImageSource, out: Path, packing: Packing) -> int:
    """The number of images in a shard, once the folder is known to be empty or begun in the same way."""
    count = packing.images_per_shard or _images_per_shard(source)
    plan = {"fingerprint": source.fingerprint, "images": len(source)} | asdict(packing) | {"images_per_shard": count}
    path = out / PLAN
    if not path.exists():
        names = sorted(entry.name for entry in out.iterdir() if not entry.name.startswith("."))
        if names:
            raise InputError(f"{out} is not empty (it has {names[0]!r}); choose a new or empty folder")
        replace(path, json.dumps(plan).encode())
        return count
    try:
        begun = dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged; remove {out} and begin again") from error
    changed = [f"{key}: {begun.get(key)} -> {value}" for key, value in plan.items() if begun.get(key) != value]
    if changed:
        raise InputError(
            f"{out} was begun with other settings or images:\n  "
            + "\n  ".join(changed)
            + "\ngo on with the same, or choose another folder"
        )
    return count


def _images_per_shard(source: ImageSource) -> int:
    """About SHARD_BYTES of images as they are, by the sizes of some of them."""
    sampled = range(0, len(source), -(-len(source) // _SAMPLED))
    mean = sum(len(encoded(source, index)) for index in sampled) / len(sampled)
    return max(1, min(_MOST_IMAGES, round(SHARD_BYTES / max(mean + 3 * tarfile.BLOCKSIZE, 1))))


def _shown(samples: Iterator[Sample], line: Progress, done: int) -> Iterator[Sample]:
    for number, sample in enumerate(samples, done + 1):
        yield sample
        line.update(number, {}, images=1)
