"""Training batches as a pure function of (seed, step, slot): any worker, rank or restart gives the same ones."""

import copy
from collections.abc import Generator

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.data import Dataset

from cjepa.data.config import DataConfig
from cjepa.data.crops import DRAWS, random_crop
from cjepa.data.decoding import UnreadableImageError
from cjepa.data.device_crops import DeviceImages
from cjepa.data.loader import PATIENCE, Notes, image_of, load
from cjepa.data.order import sample_at
from cjepa.data.source import ImageSource
from cjepa.errors import InputError
from cjepa.randomness import Stream, uniform_rows
from cjepa.types import Batch, MaskSampler, Unreadable

_REPLACEMENTS = 256
"""Images tried for one slot. Where one in two is unreadable, all fail in one of 10^77 slots."""


class TrainingStream(Dataset[Batch]):
    """The batch of every step, or the part of it that one rank trains on: slots first_slot .. + slots - 1.

    Slot s of step t holds the sample at position t * batch_size + s of the endless order of epochs (order.py). If it
    is unreadable it is replaced by the next of the same epoch that is not, and reported in Batch.unreadable.
    """

    def __init__(
        self,
        source: ImageSource,
        config: DataConfig,
        sampler: MaskSampler,
        batch_size: int,
        seed: int,
        first_slot: int = 0,
        slots: int | None = None,
    ) -> None:
        if batch_size < 2:
            raise InputError(
                f"batch size {batch_size}: VICReg compares the images of a batch; use training.batch_size=2 or more"
            )
        if batch_size > len(source):
            raise InputError(
                f"batch size {batch_size} exceeds the {len(source)} training images; use "
                f"training.batch_size={len(source)} or fewer"
            )
        self.source = source
        self.config = config
        self.sampler = sampler
        self.batch_size = batch_size
        self.seed = seed
        self.first_slot = first_slot
        self.slots = batch_size - first_slot if slots is None else slots
        self.on_device: DeviceImages | None = None
        """Where set, it makes the crops of whole batches, with the same bits, on its device; not for workers."""
        assert 0 <= first_slot < first_slot + self.slots <= batch_size, (first_slot, self.slots, batch_size)

    def __getitem__(self, step: int) -> Batch:
        positions = step * self.batch_size + self.first_slot + np.arange(self.slots, dtype=np.int64)
        samples = sample_at(self.seed, positions, len(self.source))
        draws = uniform_rows(self.seed, Stream.CROPS, step, self.first_slot, self.slots, DRAWS).tolist()
        if self.on_device is not None:
            images = self.on_device.crops(samples, draws, self.config)
            return Batch(images, self.sampler(step, self.first_slot, self.slots), torch.from_numpy(samples))
        unreadable: list[Unreadable] = []
        images = torch.from_numpy(self._crops(positions, samples, draws, unreadable))
        masks = self.sampler(step, self.first_slot, self.slots)
        return Batch(images, masks, torch.from_numpy(samples), tuple(unreadable))

    def _crops(
        self,
        positions: npt.NDArray[np.int64],
        samples: npt.NDArray[np.int64],
        draws: list[list[float]],
        unreadable: list[Unreadable],
    ) -> npt.NDArray[np.uint8]:
        """The images of all slots [slots, 3, H, W]; replaced ones are put into `samples` and listed."""
        images = np.empty((self.slots, 3, *self.config.size), dtype=np.uint8)
        for slot in range(self.slots):
            image, samples[slot] = self._load(int(positions[slot]), int(samples[slot]), unreadable)
            images[slot] = random_crop(
                image,
                draws[slot],
                self.config.size,
                self.config.crop_scale,
                self.config.crop_ratio,
                self.config.flip,
            )
        return images

    def _load(self, position: int, sample: int, unreadable: list[Unreadable]) -> tuple[Image.Image, int]:
        """The image of a sample, or of the first readable one after it, and that one's index."""
        tries = min(_REPLACEMENTS, len(self.source))
        for attempt in range(tries):
            if attempt:
                sample = self._sample_after(position, attempt)
            try:
                return self.source.load(sample), sample
            except UnreadableImageError as error:
                unreadable.append(Unreadable(sample, self.source.names[sample], str(error)))
        last = unreadable[-1]
        raise InputError(
            f"data: {tries} images in a row could not be read, the last one {last.name}: {last.reason}; "
            "check the folder and the disk"
        )

    def _sample_after(self, position: int, distance: int) -> int:
        """The sample `distance` places further on in the same epoch, continued at its start."""
        epoch, offset = divmod(position, len(self.source))
        moved = epoch * len(self.source) + (offset + distance) % len(self.source)
        return int(sample_at(self.seed, np.array([moved]), len(self.source))[0])


class _Noted:
    """A source that notes which image is being read."""

    def __init__(self, source: ImageSource, notes: Notes) -> None:
        self.source = source
        self.notes = notes
        self.names, self.labels, self.classes = source.names, source.labels, source.classes
        self.fingerprint = source.fingerprint

    def __len__(self) -> int:
        return len(self.source)

    def load(self, index: int) -> Image.Image:
        with self.notes.reading(index):
            return self.source.load(index)


def iterate(
    stream: TrainingStream, start: int, stop: int, workers: int, patience: float = PATIENCE, pinned: bool = False
) -> Generator[Batch, None, None]:
    """The batches of steps start .. stop - 1, decoded by this many processes that live as long as the iterator.

    pinned: in memory that a GPU copies from while it computes; with it a process takes some of that GPU's memory.
    Raises WorkerError when a worker dies or gives no batch for `patience` seconds.
    """
    if start >= stop:
        return
    notes = Notes(workers)
    noted = copy.copy(stream)
    noted.source = _Noted(stream.source, notes)
    name = image_of(stream.source.names)
    pinned = pinned and stream.on_device is None  # what lies on a device cannot be
    yield from load(noted, range(start, stop), notes, name, workers=workers, patience=patience, pinned=pinned)
