"""Every image of a source once, in its order, in whole batches; unreadable ones are reported, not replaced."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from cjepa.data.crops import centre_crop
from cjepa.data.decoding import UnreadableImageError
from cjepa.data.loader import PATIENCE, Notes, image_of, load
from cjepa.data.source import ImageSource
from cjepa.types import Unreadable


@dataclass(frozen=True)
class ImageBatch:
    """Centre crops of images first .. first + B - 1; those of `unreadable` are black."""

    first: int
    images: UInt8[Tensor, "B 3 H W"]
    unreadable: tuple[Unreadable, ...]

    def pin_memory(self) -> "ImageBatch":
        """The same batch in memory that a GPU copies from while it computes; the loader calls this."""
        return ImageBatch(self.first, self.images.pin_memory(), self.unreadable)


class EveryImage(Dataset[ImageBatch]):
    """Batch k holds images k * batch_size and those after it. size: height and width; share: of the shorter side."""

    def __init__(self, source: ImageSource, size: tuple[int, int], share: float, batch_size: int) -> None:
        self.source = source
        self.size = size
        self.share = share
        self.batch_size = batch_size
        self.notes = Notes(0)

    def __len__(self) -> int:
        return -(-len(self.source) // self.batch_size)

    def __getitem__(self, batch: int) -> ImageBatch:
        first = batch * self.batch_size
        indices = range(first, min(first + self.batch_size, len(self.source)))
        # numpy copies a crop at once; torch would wake its threads for every image, which fight with the encoder's.
        images = np.zeros((len(indices), 3, *self.size), dtype=np.uint8)
        unreadable = []
        for row, index in enumerate(indices):
            try:
                with self.notes.reading(index):
                    image = self.source.load(index)
            except UnreadableImageError as error:
                unreadable.append(Unreadable(index, self.source.names[index], str(error)))
                continue
            images[row] = centre_crop(image, self.size, self.share)
        return ImageBatch(first, torch.from_numpy(images), tuple(unreadable))


def iterate_every(
    images: EveryImage, first_batch: int, workers: int, patience: float = PATIENCE, pinned: bool = False
) -> Iterator[ImageBatch]:
    """The batches from first_batch on, decoded by this many processes, 0 for this one.

    pinned: in memory that a GPU copies from while it computes. Raises WorkerError when a worker dies or hangs for
    `patience` seconds.
    """
    images.notes = Notes(workers)
    return load(
        images,
        range(first_batch, len(images)),
        images.notes,
        image_of(images.source.names),
        workers=workers,
        patience=patience,
        pinned=pinned,
    )
