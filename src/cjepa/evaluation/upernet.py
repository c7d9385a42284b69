"""UPerNet (Xiao et al., 2018) on a plain transformer, as BEiT and MAE put it there: four blocks, four scales.

Their head has batch norm and an auxiliary loss on one of the blocks; this one has LayerNorm over the channels, since
few windows make a step and a bin may be a single pixel, and no auxiliary loss.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from cjepa.evaluation.pyramid import SCALES, ChannelNorm, SimplePyramid

BINS = (1, 2, 3, 6)
"""Sides of the pooled maps from which the coarsest scale learns what the whole image shows."""
_DROPOUT = 0.1


def tapped_blocks(depth: int) -> tuple[int, ...]:
    """The blocks, from 0, whose patches become the four scales: of 12 the 3rd, 6th, 9th and 12th."""
    return tuple(max(round(depth * part / len(SCALES)), 1) - 1 for part in range(1, len(SCALES) + 1))


class PooledContext(nn.Module):
    """Pyramid pooling (Zhao et al., 2017): the map beside its means over coarser and coarser bins, fused."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.ModuleList(_convolution(channels, channels, 1) for _ in BINS)
        self.fuse = _convolution(channels * (1 + len(BINS)), channels, 3)

    def forward(self, maps: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        """As large as it came."""
        size = maps.shape[2:]
        parts = [maps]
        for side, reduce in zip(BINS, self.reduce, strict=True):
            parts.append(interpolate(reduce(adaptive_avg_pool2d(maps, side)), size, mode="bilinear"))
        fused: Tensor = self.fuse(torch.cat(parts, 1))
        return fused


class UperNet(nn.Module):
    """Maps of four blocks brought to four scales, pooled context at the coarsest, top-down sums, all scales fused."""

    def __init__(self, width: int, classes: int, channels: int) -> None:
        super().__init__()
        self.pyramid = SimplePyramid(width, channels)
        self.context = PooledContext(channels)
        self.smooth = nn.ModuleList(_convolution(channels, channels, 3) for _ in SCALES[1:])
        self.fuse = _convolution(channels * len(SCALES), channels, 3)
        self.classify = nn.Sequential(nn.Dropout2d(_DROPOUT), nn.Conv2d(channels, classes, 1))

    def forward(self, patches: Float[Tensor, "B F h w"]) -> Float[Tensor, "B C H W"]:
        """Logits at four times the grid of patches. patches: those of the four blocks behind each other, F = 4 D."""
        maps = self.pyramid.scaled(patches.chunk(len(SCALES), dim=1))
        maps[-1] = self.context(maps[-1])
        for finer in range(len(maps) - 2, -1, -1):
            maps[finer] = maps[finer] + interpolate(maps[finer + 1], maps[finer].shape[2:], mode="bilinear")
        finest = maps[0].shape[2:]
        smoothed = [smooth(each) for smooth, each in zip(self.smooth, maps[:-1], strict=True)] + maps[-1:]
        fused = self.fuse(torch.cat([interpolate(each, finest, mode="bilinear") for each in smoothed], 1))
        logits: Tensor = self.classify(fused)
        return logits


def _convolution(features: int, channels: int, side: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(features, channels, side, padding=side // 2, bias=False), ChannelNorm(channels), nn.ReLU()
    )
