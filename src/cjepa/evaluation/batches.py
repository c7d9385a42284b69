"""Random crops of labelled images for evaluations that train: a batch is a function of (seed, step)."""

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from cjepa.data import ImageSource
from cjepa.data.crops import DRAWS, random_crop
from cjepa.data.evaluation_images import load_readable
from cjepa.data.order import sample_at
from cjepa.randomness import Stream, uniform_rows

CROP_RATIO = (3 / 4, 4 / 3)


class LabelledBatches(Dataset[tuple[Tensor, Tensor]]):
    """Batches of random resized crops, half of them mirrored, with the labels of their images."""

    def __init__(
        self, source: ImageSource, size: tuple[int, int], batch_size: int, seed: int, scale: tuple[float, float]
    ) -> None:
        self.source = source
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.scale = scale

    def __getitem__(self, step: int) -> tuple[UInt8[Tensor, "B 3 H W"], Int[Tensor, "B"]]:
        positions = step * self.batch_size + np.arange(self.batch_size, dtype=np.int64)
        samples = sample_at(self.seed, positions, len(self.source))
        draws = uniform_rows(self.seed, Stream.FITTING, step, 0, self.batch_size, DRAWS).tolist()
        crops = [
            random_crop(load_readable(self.source, int(sample)), row, self.size, self.scale, CROP_RATIO, flip=True)
            for sample, row in zip(samples, draws, strict=True)
        ]
        return torch.from_numpy(np.stack(crops)), torch.from_numpy(self.source.labels[samples])


def steps_of(epochs: float, images: int, batch_size: int) -> int:
    """Steps in which every image is seen `epochs` times; at least one."""
    return max(1, round(epochs * images / batch_size))
