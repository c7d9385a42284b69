"""`cjepa embed`: embeddings of all images of a folder, list or shards, in a file; goes on where it was stopped."""

import errno
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from cjepa.build import When, Which, choose_device, load_encoder
from cjepa.data import MOST_SIDE, ImageSource, open_source
from cjepa.data.every_image import EveryImage, ImageBatch, iterate_every
from cjepa.data.source import Joined
from cjepa.embedding import Column, Features, Format, RowStore, format_of, others, refuse_others, write
from cjepa.embedding.store import JOB, rows_kept
from cjepa.errors import DivergedError, InputError, StoppedEarly, StorageError, enough_memory
from cjepa.models.pretrained import PretrainedEncoder
from cjepa.runs.sharding import data_of
from cjepa.training.durable import replace, require_locks
from cjepa.training.interruption import Interruption
from cjepa.training.progress import Progress
from cjepa.types import Precision

_log = logging.getLogger(__name__)

SYNC_SECONDS = 5.0
"""Seconds of work that a kill may cost."""
LOCK = ".lock"
_FAILED_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE)
_SMALLER = "lower --batch-size or --image-size"
_INPUTS = ("weights", "preparation", "images", "fingerprint")
"""What of a part's description is no option of the command."""


@dataclass(frozen=True)
class EmbeddingJob:
    """What to compute: everything that decides a number in the result, but for the images and the weights.

    image_size: height and width in pixels, None for that of the training. precision: of the forward pass.
    """

    features: Features = "pooled"
    image_size: tuple[int, int] | None = None
    batch_size: int = 64
    precision: Precision = "float32"


@dataclass(frozen=True)
class Embedded:
    """What came of it: files, images, those that could not be read (their rows are NaN), and seconds of this call."""

    files: list[Path]
    images: int
    unreadable: int
    computed: int
    seconds: float


def embed_images(
    path: Path,
    images: Path,
    out: Path,
    job: EmbeddingJob = EmbeddingJob(),
    *,
    which: Which = "target",
    checkpoint: When = "last",
    device: str = "auto",
    workers: int = 0,
    heads: int | None = None,
) -> Embedded:
    """Embed all images of `images` with the encoder of a run, or of weights that cjepa.load_encoder opens.

    Row i is image i in the order of the source; an unreadable image has NaN (null in .parquet) and a line in
    OUT.unreadable.jsonl. Rows are kept in .OUT.part beside OUT: after a kill or Ctrl-C the same command goes on there
    and ends with the same bytes; a part of other weights or images is begun anew. OUT appears when it is complete.
    Raises InputError for bad input, StoppedEarly after a signal, StorageError after a failed write and
    OutOfMemoryError where a batch is too large.
    """
    format_ = format_of(out)
    if out.exists():
        raise InputError(f"{out} exists already; move it away or name another file with --out")
    chosen = choose_device(device)
    encoder = load_encoder(path, encoder=which, checkpoint=checkpoint, heads=heads)
    source = _source(images)
    size = job.image_size or encoder.image_size
    columns = _columns(encoder, size, job.features)
    refuse_others(format_, out, columns, source.names)
    part = out.with_name(f".{out.name}.part")
    with _locked(part), enough_memory(_SMALLER):
        _claim(part, _description(encoder, source, size, job, chosen))
        store = RowStore(part, columns, source.names)
        batches = EveryImage(source, size, encoder.evaluation_crop, job.batch_size)
        before, started = store.done, time.monotonic()
        if before:
            _log.info("going on after image %d of %d", before, len(source))
        first = -(-before // job.batch_size)  # only the last batch may be short, and then every row is there
        ready = iterate_every(batches, first, workers, pinned=chosen.type == "cuda")
        _fill(store, encoder.to(chosen), ready, job, chosen)
        seconds = time.monotonic() - started
        files = _finish(store, format_, out)
        bad = len(store.unreadable())
    shutil.rmtree(part)
    return Embedded(files, len(source), bad, len(source) - before, seconds)


def _source(images: Path) -> ImageSource:
    """All images of a folder, list or shards: those of a training and a test split one after the other."""
    # A folder called demo or shards is that folder here, not the source of that name.
    place = images.absolute() if os.path.lexists(images) else images
    splits = open_source(data_of(str(place), ()), 0, at_least=1)
    for note in splits.notes:
        _log.info("%s", note)
    return splits.train if splits.test is None else Joined({"train": splits.train, "test": splits.test})


def _columns(encoder: PretrainedEncoder, size: tuple[int, int], features: Features) -> list[Column]:
    patch = encoder.patch_size
    if max(size) > MOST_SIDE:
        raise InputError(f"image size {size[0]} x {size[1]}: both sides must be at most {MOST_SIDE} px")
    if size[0] % patch or size[1] % patch:
        raise InputError(f"image size {size[0]} x {size[1]}: both sides must be multiples of the patches' {patch} px")
    pooled = Column("pooled", (encoder.width,))
    patches = Column("patches", ((size[0] // patch) * (size[1] // patch), encoder.width))
    return {"pooled": [pooled], "patches": [patches], "both": [pooled, patches]}[features]


def _description(
    encoder: PretrainedEncoder, source: ImageSource, size: tuple[int, int], job: EmbeddingJob, device: torch.device
) -> dict[str, Any]:
    """What a part of a result must have in common with the rest of it."""
    values = asdict(job) | {"image_size": list(size), "images": len(source), "fingerprint": source.fingerprint}
    prepared = asdict(encoder.preparation) | {"image_size": list(encoder.image_size)}
    prepared |= {"mean": list(encoder.mean), "std": list(encoder.std)}
    return values | {"weights": encoder.digest(), "preparation": prepared, "device": device.type}


@contextmanager
def _locked(part: Path) -> Iterator[None]:
    """The part folder, for one process at a time. A disk that fails inside is no bad input: StorageError."""
    try:
        part.mkdir(parents=True, exist_ok=True)
        require_locks(part)
        lock = FileLock(part / LOCK)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(f"another process writes into {part}; wait for it, or name another file with --out") from error
    except NotImplementedError as error:
        raise InputError(f"{part.parent}: {error}; name a file elsewhere with --out") from error
    except OSError as error:
        raise InputError(f"{part.parent} cannot be written: {error}; choose a folder that you may write to") from error
    try:
        yield
    except OSError as error:
        if error.errno not in _FAILED_DISK:
            raise InputError(f"{part.parent}: {error}; mend that, and the same command goes on") from error
        raise StorageError(
            f"{part.parent} cannot be written: {error}; when that is mended, the same command goes on"
        ) from error
    finally:
        lock.release()


def _claim(part: Path, description: dict[str, Any]) -> None:
    """Make the part folder one of these embeddings. What it holds of other weights or images is of no use and goes;
    rows of the same ones with other options are refused, since they may be hours of work and the options a slip."""
    path = part / JOB
    before = _read_job(path)
    changed = [key for key in description if before.get(key) != description[key]]
    if path.exists() and set(changed) & set(_INPUTS):
        _log.warning(
            "%s held a part of embeddings of other weights or images (they differ in: %s): beginning anew",
            part,
            ", ".join(changed),
        )
        for each in part.iterdir():
            if each.name != LOCK:
                each.unlink()
    elif changed and rows_kept(part):
        raise InputError(
            f"{part} holds a part of embeddings with other options (they differ in: {', '.join(changed)}); repeat that "
            "command to go on, or remove the folder to begin anew"
        )
    replace(path, json.dumps(description, indent=1).encode())


def _read_job(path: Path) -> dict[str, Any]:
    """What a part is of; nothing where that cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


@dataclass(frozen=True)
class _Pending:
    """A batch whose outputs are being computed and copied; `ready` is None where they are there already (a CPU)."""

    batch: ImageBatch
    outputs: dict[str, Tensor]
    ready: torch.cuda.Event | None


def _fill(
    store: RowStore, encoder: PretrainedEncoder, batches: Iterator[ImageBatch], job: EmbeddingJob, device: torch.device
) -> None:
    """Compute the missing rows. A GPU gets the next batch before the last one is waited for."""
    total, synced = len(store.names), time.monotonic()
    pending: _Pending | None = None
    try:
        with Interruption() as interruption, Progress("embed", total) as line, torch.inference_mode():
            for batch in batches:
                following = _begin(encoder, batch, job, device)
                _append(store, pending, line)
                pending = following
                if time.monotonic() - synced > SYNC_SECONDS:
                    store.sync()
                    synced = time.monotonic()
                if interruption.requested:
                    break
            _append(store, pending, line)
            store.sync()
            if store.done < total:
                raise StoppedEarly(
                    f"stopped by {interruption.requested} after image {store.done} of {total}; the same command goes on"
                )
    finally:
        store.close()


def _begin(encoder: PretrainedEncoder, batch: ImageBatch, job: EmbeddingJob, device: torch.device) -> _Pending:
    """Start the forward pass and the copy of its outputs; on a GPU neither is waited for."""
    images = batch.images.to(device, non_blocking=True)
    with torch.autocast(device.type, torch.bfloat16, enabled=job.precision == "bfloat16"):
        patches = encoder(images).float()
    outputs = {"patches": patches} if job.features != "pooled" else {}
    outputs |= {"pooled": patches.mean(dim=1)} if job.features != "patches" else {}
    on_gpu = device.type == "cuda"
    copied = {name: output.to("cpu", non_blocking=on_gpu) for name, output in outputs.items()}
    if not on_gpu:
        return _Pending(batch, copied, None)
    ready = torch.cuda.Event()
    ready.record()
    return _Pending(batch, copied, ready)


def _append(store: RowStore, pending: _Pending | None, line: Progress) -> None:
    """Wait for a batch and give its rows to the store."""
    if pending is None:
        return
    if pending.ready is not None:
        pending.ready.synchronize()
    batch = pending.batch
    bad = [image.index - batch.first for image in batch.unreadable]
    for output in pending.outputs.values():
        if not bool(output.isfinite().all()):
            raise DivergedError("the encoder's embeddings are not finite; use other weights, or --checkpoint best")
        output[bad] = float("nan")
    for image in batch.unreadable:
        _log.warning("unreadable image, its row is empty: %s (%s)", image.name, image.reason)
    store.append({name: output.numpy() for name, output in pending.outputs.items()}, batch.unreadable)
    line.update(store.done, {}, len(batch.images))


def _finish(store: RowStore, format_: Format, out: Path) -> list[Path]:
    """Give the files their places, OUT last: where it is, everything is."""
    placed = write(format_, store, out, store.folder)
    unreadable, beside = store.unreadable(), out.with_suffix(".unreadable.jsonl")
    if not unreadable and not others(out):
        beside.unlink(missing_ok=True)  # left by embeddings of this name that are gone
    if unreadable:
        replace(beside, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in unreadable).encode())
        placed[beside] = beside
    for target in sorted(placed, key=lambda each: each == out):
        if placed[target] != target:
            placed[target].replace(target)
    return sorted(placed, key=lambda each: each != out)
