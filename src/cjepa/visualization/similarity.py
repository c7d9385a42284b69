"""How alike the patches of an image are for an encoder: cosine of their features, centred."""

import math

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

LARGEST_SIDE = 32
"""Finer grids are averaged down to this many patches a side: similarities grow with the fourth power of it."""


def patch_similarity(features: Float[Tensor, "n N D"]) -> Float[Tensor, "n N N"]:
    """Cosine similarity of every patch with every other of the same image, -1 to 1.

    The mean over all patches of all images is removed first: features share a large constant part, beside which all
    patches would look alike.
    """
    centred = features.float() - features.float().mean(dim=(0, 1))
    unit = F.normalize(centred, dim=-1)
    return unit @ unit.transpose(1, 2)


def as_bytes(similarity: Float[Tensor, "n N N"]) -> UInt8[Tensor, "n N N"]:
    """-1 as 0, 1 as 254, to the nearest: an error of at most 1 / 254."""
    return ((similarity.clamp(-1.0, 1.0) + 1.0) * 127.0).round().to(torch.uint8)


def coarser(features: Float[Tensor, "n N D"], grid: tuple[int, int]) -> tuple[Float[Tensor, "n M D"], tuple[int, int]]:
    """Features averaged to a grid of at most LARGEST_SIDE patches a side, and that grid."""
    size = (min(grid[0], LARGEST_SIDE), min(grid[1], LARGEST_SIDE))
    if size == grid:
        return features, grid
    planes = features.float().transpose(1, 2).unflatten(2, grid)
    return F.adaptive_avg_pool2d(planes, size).flatten(2).transpose(1, 2), size


def images_within(grid: tuple[int, int], budget: int) -> int:
    """How many images' similarities fit into so many bytes; at least one."""
    return max(budget // math.prod(grid) ** 2, 1)
