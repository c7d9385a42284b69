"""Random resized crops for training and centre crops for evaluation; sizes are (height, width) in pixels."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn.functional import interpolate

_ATTEMPTS = 10  # as in torchvision; then the largest central crop within the ratios is taken
DRAWS = 2 * _ATTEMPTS + 3
"""Uniform numbers that one training crop consumes."""

_REDUCING_GAP = 3.0  # shrink by a whole factor first where it cannot be seen: several times faster on photographs


class Box(NamedTuple):
    """A rectangle of an image, in whole pixels."""

    left: int
    top: int
    width: int
    height: int


def random_box(
    draws: Sequence[float], size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """The crop that DRAWS uniform numbers select from an image of this size (RandomResizedCrop of torchvision).

    Its area, as a share of the image, is uniform in `scale`; its width over height log-uniform in `ratio`; its
    position uniform over all at which it fits, the last row and column included. A box that does not fit is drawn
    again, at last replaced by the largest central one whose ratio is allowed.
    """
    height, width = size
    for attempt in range(_ATTEMPTS):
        area = height * width * (scale[0] + draws[2 * attempt] * (scale[1] - scale[0]))
        aspect = math.exp(math.log(ratio[0]) + draws[2 * attempt + 1] * (math.log(ratio[1]) - math.log(ratio[0])))
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(draws[2 * _ATTEMPTS] * (height - box_height + 1))
            left = int(draws[2 * _ATTEMPTS + 1] * (width - box_width + 1))
            return Box(left, top, box_width, box_height)
    return _largest_central_box(size, ratio)


def _largest_central_box(size: tuple[int, int], ratio: tuple[float, float]) -> Box:
    height, width = size
    box_width = min(width, max(1, round(height * ratio[1])))
    box_height = min(height, max(1, round(width / ratio[0])))
    return Box((width - box_width) // 2, (height - box_height) // 2, box_width, box_height)


def random_crop(
    image: Image.Image,
    draws: Sequence[float],
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    flip: bool,
) -> npt.NDArray[np.uint8]:
    """A training crop of an RGB image, resized to `size`: uint8 [3, H, W].

    Ratios are relative to that of `size`, so that a square and an oblong image size distort equally little.
    With `flip`, half of the crops are mirrored.
    """
    box = training_box(draws, (image.height, image.width), size, scale, ratio)
    pixels = _enlarged_or_reduced(image, box, size)
    return np.ascontiguousarray(pixels[:, :, ::-1]) if flip and is_mirrored(draws) else pixels


def training_box(
    draws: Sequence[float],
    image: tuple[int, int],
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Box:
    """The box of random_crop in an image of this height and width."""
    aspect = size[1] / size[0]
    return random_box(draws, image, scale, (ratio[0] * aspect, ratio[1] * aspect))


def is_mirrored(draws: Sequence[float]) -> bool:
    """Whether random_crop mirrors, where it may."""
    return draws[2 * _ATTEMPTS + 2] < 0.5


def _enlarged_or_reduced(image: Image.Image, box: Box, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """A box of an RGB image brought to `size`: by Pillow where it is enlarged, else by torch.

    The filter is the same, and for bytes torch is four to six times as fast; each pass of both rounds, so that values
    may differ by one. What is enlarged is small, and device_crops.py has Pillow's bits for it.
    """
    if box.height <= size[0] and box.width <= size[1]:
        return resized(image, box, size)
    part = np.array(image.crop((box.left, box.top, box.left + box.width, box.top + box.height)))
    pixels = torch.from_numpy(part).permute(2, 0, 1)[None]
    return interpolate(pixels, size, mode="bilinear", antialias=True)[0].contiguous().numpy()


def resized(image: Image.Image, box: Box, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """A box of an RGB image brought to `size`: uint8 [3, H, W]; nothing outside the box shows in it."""
    part = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    return _resampled(part, (0.0, 0.0, float(box.width), float(box.height)), size)


def centre_crop(image: Image.Image, size: tuple[int, int], share: float) -> npt.NDArray[np.uint8]:
    """The middle of an RGB image as uint8 [3, H, W]: resized until it just covers size / share, then cut to size."""
    height, width = size
    unit = min(image.width / width, image.height / height) * share
    left, top = max(image.width - width * unit, 0) / 2, max(image.height - height * unit, 0) / 2
    return _resampled(image, (left, top, image.width - left, image.height - top), size)


def _resampled(
    image: Image.Image, edges: tuple[float, float, float, float], size: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    """The part between these edges (left, top, right, bottom), bilinear and antialiased as in torchvision."""
    crop = image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=edges, reducing_gap=_REDUCING_GAP)
    return np.ascontiguousarray(np.asarray(crop).transpose(2, 0, 1))
