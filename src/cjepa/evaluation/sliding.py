"""Class probabilities of a whole image from an encoder that sees windows of it."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad

from cjepa.data.decoding import PILLOW_LIMIT
from cjepa.errors import InputError

Predict = Callable[[UInt8[Tensor, "B 3 h w"]], Float[Tensor, "B C h w"]]


def starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin that cover `length` with steps of at most `stride`; the last one ends at its end."""
    if length <= window:
        return [0]
    steps = -(-(length - window) // stride)
    return [round(step * (length - window) / steps) for step in range(steps + 1)]


def sliding(
    image: UInt8[Tensor, "3 H W"], predict: Predict, window: tuple[int, int], stride_share: float, batch_size: int
) -> Float[Tensor, "C H W"]:
    """Mean of the predictions of all windows that cover a pixel; an image smaller than a window is padded."""
    height, width = image.shape[1:]
    short = [max(side - length, 0) for side, length in zip(window, (height, width), strict=True)]
    padded = pad(image, (0, short[1], 0, short[0]))
    strides = [max(1, int(side * stride_share)) for side in window]
    places = [
        (top, left)
        for top in starts(padded.shape[1], window[0], strides[0])
        for left in starts(padded.shape[2], window[1], strides[1])
    ]
    total: Tensor | None = None
    counts = torch.zeros(padded.shape[1:], device=image.device)
    for first in range(0, len(places), batch_size):
        chosen = places[first : first + batch_size]
        crops = torch.stack([padded[:, top : top + window[0], left : left + window[1]] for top, left in chosen])
        for (top, left), prediction in zip(chosen, predict(crops), strict=True):
            if total is None:
                total = torch.zeros((len(prediction), *padded.shape[1:]), device=image.device)
            total[:, top : top + window[0], left : left + window[1]] += prediction
            counts[top : top + window[0], left : left + window[1]] += 1
    assert total is not None
    return (total / counts)[:, :height, :width]


def multi_scale(
    image: Image.Image,
    predict: Predict,
    window: tuple[int, int],
    shorter_side: int | None,
    scales: tuple[float, ...],
    mirror: bool,
    stride_share: float,
    batch_size: int,
    device: torch.device,
) -> Float[Tensor, "C H W"]:
    """Mean over scales, and mirror images, of the sliding predictions, brought to the size of the image."""
    total: Tensor | None = None  # one map for all, since a map of many classes and pixels is large
    for scale in scales:
        pixels = torch.from_numpy(np.array(resized_image(image, shorter_side, scale))).permute(2, 0, 1).to(device)
        for mirrored in (False, True) if mirror else (False,):
            given = pixels.flip(2) if mirrored else pixels
            prediction = sliding(given, predict, window, stride_share, batch_size)
            prediction = prediction.flip(2) if mirrored else prediction
            size = (image.height, image.width)
            prediction = interpolate(prediction[None], size, mode="bilinear", antialias=False)[0]
            total = prediction if total is None else total + prediction
    assert total is not None, "there is a scale"
    return total / (len(scales) * (1 + mirror))


def refuse_large(sizes: Iterable[tuple[int, int]], shorter_side: int | None, scale: float, key: str) -> None:
    """InputError if an image of one of these widths and heights would get more pixels than one that is read."""
    for size in sizes:
        width, height = (side * _factor(size, shorter_side, scale) for side in size)
        if width * height > PILLOW_LIMIT:
            raise InputError(
                f"{key}: an image of {size[0]} x {size[1]} pixels would become one of {width:.6g} x {height:.6g}, and "
                f"{PILLOW_LIMIT} pixels are the most; choose a smaller size to look at (scales, shorter_side)"
            )


def resized_image(image: Image.Image, shorter_side: int | None, scale: float) -> Image.Image:
    """The image at `scale` times its size, or times the size at which its shorter side has so many pixels."""
    unit = _factor(image.size, shorter_side, scale)
    size = (max(1, round(image.width * unit)), max(1, round(image.height * unit)))
    return image if size == image.size else image.resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0)


def _factor(size: tuple[int, int], shorter_side: int | None, scale: float) -> float:
    return scale if shorter_side is None else scale * shorter_side / min(size)
