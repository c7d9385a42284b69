"""Random crops of a whole batch at once, on the device that holds the images; to the bit those of crops.py.

Pillow enlarges in two passes, along rows first. Of every pass each result is the sum of two neighbours with weights of
22 binary places, rounded to a byte: integers, so that any order and any device gives the same.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from cjepa.data.arrays import ArraySource
from cjepa.data.cache import CachedSource
from cjepa.data.config import DataConfig
from cjepa.data.crops import DRAWS, Box, is_mirrored, training_box
from cjepa.data.source import ImageSource
from cjepa.types import to_device

SHARE_OF_MEMORY = 0.1
"""Of a device's memory that the images of a run may take."""
_PLACES = 22


class DeviceImages:
    """All images of a source, of one size, on a device: uint8 [n, 3, H, W]."""

    def __init__(self, images: UInt8[Tensor, "n 3 H W"], device: torch.device) -> None:
        self.images = images.to(device)

    def crops(
        self, samples: Int[np.ndarray, "B"], draws: Sequence[Sequence[float]], config: DataConfig
    ) -> UInt8[Tensor, "B 3 h w"]:
        """Training crops of some images, as random_crop makes them one by one; draws: DRAWS numbers for each."""
        height, width = self.images.shape[2:]
        assert all(len(row) == DRAWS for row in draws)
        boxes = [training_box(row, (height, width), config.size, config.crop_scale, config.crop_ratio) for row in draws]
        chosen = self.images[to_device(torch.from_numpy(samples), self.images.device)]
        crops = resized_boxes(chosen, boxes, config.size)
        if not config.flip:
            return crops
        mirrored = to_device(torch.tensor([is_mirrored(row) for row in draws]), crops.device)
        return torch.where(mirrored[:, None, None, None], crops.flip(3), crops)


def device_images(source: ImageSource, config: DataConfig, device: torch.device, memory: float) -> DeviceImages | None:
    """The images of a source on a device; None unless they are decoded, of one size, and fit.

    None, too, where they are larger than the images of a run. memory: bytes of the device, of which they may take
    SHARE_OF_MEMORY.
    """
    images = _same_sized(source)
    if images is None or images.nbytes > SHARE_OF_MEMORY * memory:
        return None
    if any(side > out for side, out in zip(images.shape[2:], config.size, strict=True)):
        return None  # crops that are reduced: crops.py takes another way for them
    return DeviceImages(images, device)


def _same_sized(source: ImageSource) -> UInt8[Tensor, "n 3 H W"] | None:
    match source:
        case ArraySource():
            return torch.from_numpy(np.ascontiguousarray(source.images))
        case CachedSource():
            return None if (pixels := source.uniform) is None else torch.from_numpy(pixels).permute(0, 3, 1, 2)
        case _:
            return None


def resized_boxes(
    images: UInt8[Tensor, "B 3 H W"], boxes: Sequence[Box], size: tuple[int, int]
) -> UInt8[Tensor, "B 3 h w"]:
    """A box of each image brought to one size that is no smaller: as crops.resized does with each."""
    lefts, tops, widths, heights = to_device(torch.tensor(boxes), images.device).T
    across = _enlarged(images.permute(0, 3, 1, 2).contiguous(), lefts, widths, size[1])  # [B, w, 3, H]
    down = _enlarged(across.permute(0, 3, 2, 1).contiguous(), tops, heights, size[0])  # [B, h, 3, w]
    return down.permute(0, 2, 1, 3).contiguous()


def _enlarged(
    lines: UInt8[Tensor, "B n c m"], starts: Int[Tensor, "B"], counts: Int[Tensor, "B"], out: int
) -> UInt8[Tensor, "B out c m"]:
    """Of the lines of each image `counts` from `starts` on, brought to `out` of them by Pillow's triangle filter.

    The weights are computed in float64 and in the order of Pillow (Resample.c), since the last bit may decide how one
    is rounded.
    """
    scale = counts.double() / out
    centre = (torch.arange(out, device=lines.device) + 0.5) * scale[:, None]
    first = (centre - 0.5).floor()
    near = torch.stack([first, first + 1])  # [2, B, out]
    inside = (near >= 0) & (near < counts[:, None])
    weights = torch.where(inside, 1.0 - (near - centre + 0.5).abs(), 0.0)
    fixed = (0.5 + weights / (weights[0] + weights[1]) * (1 << _PLACES)).int()[..., None]
    number = torch.arange(len(lines), device=lines.device)[:, None] * lines.shape[1] + starts[:, None]
    places = number + near.long().clamp(min=0).minimum(counts[:, None] - 1)
    flat = lines.flatten(2).flatten(0, 1)
    total = flat[places[0]].int().mul_(fixed[0])
    total += flat[places[1]].int().mul_(fixed[1])
    total += 1 << (_PLACES - 1)
    return (total >> _PLACES).to(torch.uint8).unflatten(2, lines.shape[2:])
