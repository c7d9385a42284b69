"""The encoder: a vision transformer without class token, on all patches or only on those it is given."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from cjepa.models.blocks import NORM_EPSILON, Block, cut_normal, initialise, rescale_by_depth
from cjepa.models.kernels import Linear
from cjepa.models.positions import sincos_positions
from cjepa.types import Part

CHANNELS = 3
SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
    "giant": (1408, 40, 16),
}
"""Width, depth and heads of the named sizes."""
MOST_GRIDS = 64
"""Grids whose positions are kept; images of ever other sizes must not fill the memory."""


class EncoderConfig(Part):
    """The vision transformer; `model.encoder=small` sets width, depth and heads at once."""

    width: int = Field(192, ge=4, multiple_of=4)
    """Features of an embedding."""
    depth: int = Field(12, ge=1)
    """Number of transformer blocks."""
    heads: int = Field(3, ge=1)
    """Attention heads; must divide the width."""
    patch_size: int = Field(16, ge=1)
    """Side of a square patch, in pixels; must divide the image size."""
    mlp_ratio: float = Field(4.0, ge=0.25)
    """Width of the hidden layer of a block over the width of the block."""
    patch_projection: Literal["reference", "unit_variance"] = "reference"
    """Initial std of the patch projection: 0.02, or 1 / sqrt(inputs) so that positions do not drown content."""
    position_scale: float = Field(1.0, ge=0)
    """Factor on the fixed sin-cos positions that are added to the patches."""
    rescale_depth: bool = False
    """Divide the last layers of block l by sqrt(2 l) at initialisation."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "EncoderConfig":
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be divisible by heads ({self.heads})")
        return self

    @classmethod
    def named(cls, name: str) -> dict[str, int]:
        """Width, depth and heads of a named size: tiny, small, base, large, huge, giant. KeyError otherwise."""
        if name not in SIZES:
            raise KeyError(f"there is no size {name}; choose one of {', '.join(SIZES)}")
        return dict(zip(("width", "depth", "heads"), SIZES[name], strict=True))


class VisionTransformer(nn.Module):
    """Pre-norm ViT with fixed sin-cos positions; maps images to one embedding per patch."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_projection = Linear(CHANNELS * config.patch_size**2, config.width)
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.mlp_ratio) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPSILON)
        self._positions: dict[tuple[int, int, torch.device, torch.dtype], Tensor] = {}

    @property
    def width(self) -> int:
        """Features D of an embedding."""
        return self.config.width

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.config.patch_size

    def initialise(self, generator: torch.Generator) -> None:
        """Fill all weights from the generator."""
        initialise(self.modules(), generator)
        if self.config.patch_projection == "unit_variance":
            cut_normal(self.patch_projection.weight, self.patch_projection.in_features**-0.5, generator)
        if self.config.rescale_depth:
            rescale_by_depth(self.blocks)

    def forward(
        self, images: Float[Tensor, "B 3 H W"], keep: Int[Tensor, "B K"] | None = None
    ) -> Float[Tensor, "B N D"]:
        """Embeddings of all patches, row by row, or of the patches `keep` (indices into the grid) alone.

        Images are normalised; H and W are multiples of the patch size, otherwise ValueError.
        """
        tokens = self.embed_patches(images, keep)
        for block in self.blocks:
            tokens = block(tokens)
        normed: Tensor = self.norm(tokens)
        return normed

    def with_attention(
        self, images: Float[Tensor, "B 3 H W"]
    ) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B heads N N"]]:
        """The embeddings of all patches, and the attention weights of the last block; B N^2 numbers for each head."""
        tokens = self.embed_patches(images)
        for block in self.blocks[:-1]:
            tokens = block(tokens)
        last = self.blocks[-1]
        assert isinstance(last, Block)
        weights = last.attn.weights(last.norm1(tokens))
        normed: Tensor = self.norm(last(tokens))
        return normed, weights

    def last_layers(
        self, images: Float[Tensor, "B 3 H W"], count: int, norm: bool = True
    ) -> tuple[Float[Tensor, "B N D"], ...]:
        """Outputs of the last `count` blocks, the last one last, each after the final LayerNorm or, without, before.

        With count = 1 and norm that is what `forward` gives. ValueError for more blocks than there are.
        """
        if not 1 <= count <= len(self.blocks):
            raise ValueError(f"the encoder has {len(self.blocks)} blocks, so its last {count} cannot be taken")
        tokens, outputs = self.embed_patches(images), []
        for number, block in enumerate(self.blocks):
            tokens = block(tokens)
            if number >= len(self.blocks) - count:
                outputs.append(self.norm(tokens) if norm else tokens)
        return tuple(outputs)

    def embed(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """One embedding per image: the mean over its patches."""
        return self(images).mean(dim=1)

    def embed_patches(
        self, images: Float[Tensor, "B 3 H W"], keep: Int[Tensor, "B K"] | None = None
    ) -> Float[Tensor, "B N D"]:
        """Projected patches plus positions; patches that are not kept are never projected."""
        patches = patchify(images, self.patch_size)
        grid = (images.shape[2] // self.patch_size, images.shape[3] // self.patch_size)
        positions = self.positions(grid, images.device)
        if keep is None:
            return self.patch_projection(patches) + positions
        return self.patch_projection(gather_patches(patches, keep)) + positions[keep]

    def positions(self, grid: tuple[int, int], device: torch.device) -> Float[Tensor, "N D"]:
        """Scaled sin-cos positions of a grid in the weights' precision, computed once per grid and device."""
        key = (*grid, device, self.patch_projection.weight.dtype)
        if key not in self._positions:
            if len(self._positions) >= MOST_GRIDS:
                self._positions.clear()
            scaled = sincos_positions(*grid, self.width) * self.config.position_scale
            self._positions[key] = scaled.to(device, key[-1])
        return self._positions[key]


def patchify(images: Float[Tensor, "B C H W"], size: int) -> Float[Tensor, "B N P"]:
    """Cut images into patches of size x size, row by row; each is flattened channel first, as by a convolution."""
    batch, channels, height, width = images.shape
    if height % size or width % size:
        raise ValueError(f"{height} x {width} pixels cannot be cut into patches of {size}; resize or crop the images")
    cut = images.reshape(batch, channels, height // size, size, width // size, size)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, (height // size) * (width // size), channels * size * size)


def gather_patches(patches: Float[Tensor, "B N D"], indices: Int[Tensor, "B K"]) -> Float[Tensor, "B K D"]:
    """The patches of each image at its own indices."""
    return patches.gather(1, indices.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
