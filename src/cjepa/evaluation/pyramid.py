"""From the patches of a plain transformer to maps of several scales (Li et al., 2022: the simple feature pyramid)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from cjepa.evaluation.whitening import Whitening

SCALES = (4.0, 2.0, 1.0, 0.5)
"""Sides of the maps, relative to the grid of patches: for patches of 16 pixels, strides 4, 8, 16, 32."""


def as_map(patches: Float[Tensor, "B N D"], grid: tuple[int, int]) -> Float[Tensor, "B D h w"]:
    """Patches in rows and columns."""
    return patches.transpose(1, 2).unflatten(2, grid)


class SimplePyramid(nn.Module):
    """Maps of four scales, all from the last patches: up by transposed convolutions, down by pooling."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        half, quarter = max(width // 2, 1), max(width // 4, 1)
        up = nn.Sequential(
            nn.ConvTranspose2d(width, half, 2, 2), ChannelNorm(half), nn.GELU(), nn.ConvTranspose2d(half, quarter, 2, 2)
        )
        resize = (up, nn.ConvTranspose2d(width, half, 2, 2), nn.Identity(), nn.MaxPool2d(2, 2))
        widths = (quarter, half, width, width)
        self.levels = nn.ModuleList(
            nn.Sequential(
                each,
                nn.Conv2d(features, channels, 1, bias=False),
                ChannelNorm(channels),
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                ChannelNorm(channels),
            )
            for each, features in zip(resize, widths, strict=True)
        )

    def forward(self, patches: Float[Tensor, "B D h w"]) -> list[Tensor]:
        """Maps [B, channels, scale * h, scale * w] for each of SCALES."""
        return self.scaled([patches] * len(SCALES))

    def scaled(self, patches: Sequence[Float[Tensor, "B D h w"]]) -> list[Tensor]:
        """The same, each scale from patches of its own."""
        if min(patches[0].shape[2:]) < 2:  # the coarsest map needs a pixel of its own
            patches = [interpolate(each, scale_factor=2.0, mode="nearest") for each in patches]
        return [level(each) for level, each in zip(self.levels, patches, strict=True)]


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of a map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, maps: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        """Position by position."""
        normed: Tensor = self.norm(maps.permute(0, 2, 3, 1))
        return normed.permute(0, 3, 1, 2)


class LinearHead(nn.Module):
    """A linear layer on every patch, after whitening, or after batch norm as in DINOv2's linear head."""

    def __init__(self, features: int, classes: int, whiten: bool) -> None:
        super().__init__()
        self.norm = Whitening(features) if whiten else nn.BatchNorm2d(features)
        self.classify = nn.Conv2d(features, classes, 1)
        nn.init.normal_(self.classify.weight, std=0.01)
        assert self.classify.bias is not None
        nn.init.zeros_(self.classify.bias)

    def forward(self, patches: Float[Tensor, "B F h w"]) -> Float[Tensor, "B C h w"]:
        """Logits of every patch."""
        logits: Tensor = self.classify(self.norm(patches))
        return logits


class SemanticFpn(nn.Module):
    """Semantic FPN (Kirillov et al., 2019) on the simple pyramid: top-down sums, then all scales brought together."""

    def __init__(self, width: int, classes: int, channels: int) -> None:
        super().__init__()
        self.pyramid = SimplePyramid(width, channels)
        # From scale 4, 2, 1, 0.5 to scale 4: one stage without doubling, then one doubling for each step.
        self.branches = nn.ModuleList(
            nn.ModuleList(_stage(channels) for _ in range(max(number, 1))) for number in range(len(SCALES))
        )
        self.classify = nn.Conv2d(channels, classes, 1)

    def forward(self, patches: Float[Tensor, "B D h w"]) -> Float[Tensor, "B C H W"]:
        """Logits at four times the grid of patches."""
        maps = self.pyramid(patches)
        for finer in range(len(maps) - 2, -1, -1):
            maps[finer] = maps[finer] + interpolate(maps[finer + 1], maps[finer].shape[2:], mode="nearest")
        finest = maps[0].shape[2:]
        total = torch.zeros_like(maps[0])
        for level, branch in zip(maps, self.branches, strict=True):
            assert isinstance(branch, nn.ModuleList)
            for stage in branch:
                level = stage(level)
                if level.shape[2:] != finest:
                    size = [min(2 * side, most) for side, most in zip(level.shape[2:], finest, strict=True)]
                    level = interpolate(level, size, mode="bilinear")
            total = total + interpolate(level, finest, mode="bilinear")
        logits: Tensor = self.classify(total)
        return logits


def _stage(channels: int) -> nn.Module:
    groups = next(count for count in (32, 16, 8, 4, 2, 1) if channels % count == 0)
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.GroupNorm(groups, channels), nn.ReLU()
    )
