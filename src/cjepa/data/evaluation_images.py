"""Images for evaluation: one centre crop of each, or two training crops of each."""

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from cjepa.data.config import DataConfig
from cjepa.data.crops import DRAWS, centre_crop, random_crop
from cjepa.data.decoding import UnreadableImageError
from cjepa.data.source import ImageSource
from cjepa.errors import InputError
from cjepa.randomness import Stream, uniform_rows

_TWO_CROPS = 1 << 32
"""Key of TwoCrops within Stream.EVALUATION, away from those of the demo's tiles."""

_REPLACEMENTS = 256
"""Images tried in place of an unreadable one."""


class EvaluationImages(Dataset[Tensor]):
    """Centre crops of all images of a source, in its order, so that source.labels are theirs.

    In place of an unreadable image stands the next readable one of the same label: labels stay true, and one
    damaged file does not end a run.
    """

    def __init__(self, source: ImageSource, config: DataConfig) -> None:
        self.source = source
        self.config = config

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> UInt8[Tensor, "3 H W"]:
        image = load_readable(self.source, index)
        return torch.from_numpy(centre_crop(image, self.config.size, self.config.evaluation_crop))


class TwoCrops(Dataset[Tensor]):
    """Two independent training crops of each image of a source: can one be found by the other, without labels?"""

    def __init__(self, source: ImageSource, config: DataConfig, seed: int) -> None:
        self.source = source
        self.config = config
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> UInt8[Tensor, "2 3 H W"]:
        image = load_readable(self.source, index)
        draws = uniform_rows(self.seed, Stream.EVALUATION, _TWO_CROPS, 2 * index, 2, DRAWS).tolist()
        config = self.config
        crops = [
            random_crop(image, row, config.size, config.crop_scale, config.crop_ratio, config.flip) for row in draws
        ]
        return torch.from_numpy(np.stack(crops))


def load_readable(source: ImageSource, index: int) -> Image.Image:
    """The image, or the next readable one of the same label, continued at the start."""
    if not 0 <= index < len(source):
        raise IndexError(index)  # ends iteration over a Dataset
    try:
        return source.load(index)
    except UnreadableImageError as error:
        reason = str(error)
    for candidate in _others_of_its_label(source, index):
        try:
            return source.load(candidate)
        except UnreadableImageError:
            continue
    raise InputError(
        f"data: {source.names[index]} could not be read ({reason}), nor could others of its class; replace or remove it"
    )


def _others_of_its_label(source: ImageSource, index: int) -> list[int]:
    """The first ones after it, continued at the start."""
    same = np.flatnonzero(source.labels == source.labels[index])
    return np.concatenate([same[same > index], same[same < index]])[:_REPLACEMENTS].tolist()
