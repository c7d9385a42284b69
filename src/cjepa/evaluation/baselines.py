"""Features that nobody had to learn: what an encoder must beat."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

_LARGEST_SIDE = 32
_CHUNK = 1024  # images converted to float at once


def raw_pixels(images: UInt8[Tensor, "n 3 H W"]) -> Float[Tensor, "n F"]:
    """The pixels in [0, 1], averaged down to at most 32 x 32 per channel: F = 3 * min(H, 32) * min(W, 32)."""
    size = (min(images.shape[2], _LARGEST_SIDE), min(images.shape[3], _LARGEST_SIDE))
    pooled = [adaptive_avg_pool2d(chunk.float() / 255, size).flatten(1) for chunk in torch.split(images, _CHUNK)]
    return torch.cat(pooled)


def mean_colour(images: UInt8[Tensor, "n 3 H W"]) -> Float[Tensor, "n 3"]:
    """Mean of each channel, pixels in [0, 1]."""
    return torch.cat([(chunk.float() / 255).mean((2, 3)) for chunk in torch.split(images, _CHUNK)])


def colour_statistics(images: UInt8[Tensor, "n 3 H W"]) -> Float[Tensor, "n 6"]:
    """Mean, then standard deviation, of each channel, pixels in [0, 1]."""
    deviations = [(chunk.float() / 255).std((2, 3), correction=0) for chunk in torch.split(images, _CHUNK)]
    return torch.cat([mean_colour(images), torch.cat(deviations)], dim=1)
