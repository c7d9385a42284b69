"""Images that could not be read: each is listed when it is met, and too many of them end a run."""

from cjepa.errors import InputError
from cjepa.ranks import collect, largest
from cjepa.training.records import Records
from cjepa.training.state import Progressed
from cjepa.types import Batch

FEW_IMAGES = 100
"""The share of unreadable images is judged once this many were seen."""


def record_unreadable(
    batch: Batch, progress: Progressed, records: Records, seen: int, images: int, most: float
) -> None:
    """List newly met unreadable images; InputError when they are more than the share `most` of those seen.

    seen: how many of the run's `images` the steps so far have taken. Images that could be read again count no more.
    """
    _forget_mended(batch, progress)
    if not batch.unreadable:
        return
    known = set(progress.unreadable)
    for image in batch.unreadable:
        if image.index not in known:
            known.add(image.index)
            progress.unreadable.append(image.index)
            records.bad_image(progress.step, image)
    bad = len(progress.unreadable)
    if seen >= min(FEW_IMAGES, images) and bad > most * seen:
        raise InputError(
            f"data: {bad} of the first {seen} images could not be read, more than data.max_unreadable_share={most}; "
            "they are listed in unreadable.jsonl. Repair or remove them and continue with --allow-change images, or "
            "raise the share with --allow-change data.max_unreadable_share"
        )


def _forget_mended(batch: Batch, progress: Progressed) -> None:
    """Take out what this batch has read; all ranks take out the same, though each has read its own images."""
    if not progress.unreadable:
        return
    mended = set(progress.unreadable).intersection(batch.samples.tolist())
    if any(largest([len(mended)])):
        everywhere = set().union(*collect(mended))
        progress.unreadable = [index for index in progress.unreadable if index not in everywhere]
