"""Random crops of a whole batch at once, on the device that holds the images; to the bit those of crops.py.

Pillow enlarges in two passes, along rows first, whose weights are numbers of 22 binary places and whose results are
rounded to bytes. Both passes are products with a matrix for each image here. A float32 product of such numbers is not
exact, so each weight is divided into 11 high and 11 low bits, for which it is, in TF32 too; the parts are added up as
integers.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from cjepa.data.arrays import ArraySource
from cjepa.data.cache import CachedSource
from cjepa.data.config import DataConfig
from cjepa.data.crops import DRAWS, Box, is_mirrored, training_box
from cjepa.data.source import ImageSource

SHARE_OF_MEMORY = 0.1
"""Of a device's memory that the images of a run may take."""
_PLACES, _LOW = 22, 11


class DeviceImages:
    """All images of a source, of one size, on a device: uint8 [n, 3, H, W]."""

    def __init__(self, images: npt.NDArray[np.uint8], device: torch.device) -> None:
        """images: [n, 3, H, W]."""
        self.images = torch.from_numpy(np.ascontiguousarray(images)).to(device)

    def crops(
        self, samples: Int[np.ndarray, "B"], draws: Sequence[Sequence[float]], config: DataConfig
    ) -> UInt8[Tensor, "B 3 h w"]:
        """Training crops of some images, as random_crop makes them one by one; draws: DRAWS numbers for each."""
        height, width = self.images.shape[2:]
        assert all(len(row) == DRAWS for row in draws)
        boxes = [training_box(row, (height, width), config.size, config.crop_scale, config.crop_ratio) for row in draws]
        chosen = self.images[torch.from_numpy(samples).to(self.images.device)]
        crops = resized_boxes(chosen, boxes, config.size)
        if not config.flip:
            return crops
        mirrored = torch.tensor([is_mirrored(row) for row in draws], device=crops.device)
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
        return None  # crops that are shrunk: which pass Pillow takes first then differs from version to version
    return DeviceImages(images, device)


def _same_sized(source: ImageSource) -> npt.NDArray[np.uint8] | None:
    match source:
        case ArraySource():
            return source.images
        case CachedSource():
            return None if (pixels := source.uniform) is None else pixels.transpose(0, 3, 1, 2)
        case _:
            return None


def resized_boxes(
    images: UInt8[Tensor, "B 3 H W"], boxes: Sequence[Box], size: tuple[int, int]
) -> UInt8[Tensor, "B 3 h w"]:
    """A box of each image brought to one size that is no smaller: as crops.resized does with each."""
    height, width = images.shape[2:]
    lefts, tops, widths, heights = torch.tensor(boxes, device=images.device).T.double()
    rows, columns = _weights(tops, heights, height, size[0]), _weights(lefts, widths, width, size[1])
    across = _rounded(images.flatten(1, 2).float() @ columns.mT).unflatten(1, (3, height))
    return _rounded(rows[:, :, None] @ across.float()).to(torch.uint8)


def _rounded(parts: Float[Tensor, "2 ..."]) -> Int[Tensor, "..."]:
    """High and low parts of sums with _PLACES binary places, as bytes: rounded and cut to 0 .. 255."""
    high, low = parts.to(torch.int32)
    return ((high << _LOW) + low + (1 << (_PLACES - 1)) >> _PLACES).clamp(0, 255)


def _weights(
    starts: Float[Tensor, "B"], sides: Float[Tensor, "B"], full: int, out: int
) -> Float[Tensor, "2 B out full"]:
    """The matrices that bring the part `starts` .. + `sides` of `full` pixels to `out`: high and low parts.

    Pillow's triangle filter in float64 and in the same order of operations, since the last bit may decide how a weight
    is rounded. Where nothing is shrunk at most two taps are not 0, whose sum is the same in any order.
    """
    scale = (sides / out)[:, None]
    centre = (torch.arange(out, device=starts.device) + 0.5) * scale
    places = torch.arange(full, device=starts.device) - starts[:, None, None]
    distances = (places - centre[..., None] + 0.5).abs()
    inside = (places >= 0) & (places < sides[:, None, None])
    weights = torch.where(inside & (distances < 1.0), 1.0 - distances, 0.0)
    fixed = (0.5 + weights / weights.cumsum(-1)[..., -1:] * (1 << _PLACES)).long()
    return torch.stack([fixed >> _LOW, fixed & ((1 << _LOW) - 1)]).float()
