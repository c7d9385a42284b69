"""The encoder as one graph for any batch, height and width: positions are computed inside, by tensor operations."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from cjepa.models.pretrained import PretrainedEncoder
from cjepa.models.vit import VisionTransformer, patchify

INPUT, OUTPUTS = "images", ("patches", "pooled")
MOST_IMAGES, MOST_PATCHES = 65_536, 4_096
"""Bounds that a traced graph is given: images of a batch, and patches along a side; at least 2 along each."""


class TraceableEncoder(nn.Module):
    """Normalised images [B, 3, H, W] -> (patch embeddings [B, N, D], their mean [B, D]).

    Positions are those of `models/positions.py`, computed in float64 for the grid of the images at hand; there is no
    cache of them, which a graph cannot have.
    """

    def __init__(self, encoder: VisionTransformer) -> None:
        super().__init__()
        self.encoder = encoder
        quarter = encoder.width // 4
        self.frequencies: Tensor
        waves = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
        self.register_buffer("frequencies", waves, persistent=False)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Tensor, Tensor]:
        """Patch embeddings, row by row, and their mean."""
        size = self.encoder.patch_size
        positions = self.positions(images.shape[2] // size, images.shape[3] // size)
        tokens = self.encoder.patch_projection(patchify(images, size)) + positions
        for block in self.encoder.blocks:
            tokens = block(tokens)
        patches = self.encoder.norm(tokens)
        return patches, patches.mean(dim=1)

    def positions(self, rows: int | torch.SymInt, columns: int | torch.SymInt) -> Float[Tensor, "N D"]:
        """Scaled sin-cos positions: half the features for the column, half for the row."""
        row, column = self._waves(rows), self._waves(columns)
        across = column[None].expand(rows, -1, -1)
        down = row[:, None].expand(-1, columns, -1)
        return (torch.cat([across, down], dim=2).flatten(0, 1) * self.encoder.config.position_scale).float()

    def _waves(self, count: int | torch.SymInt) -> Float[Tensor, "n half"]:
        steps = torch.arange(count, dtype=torch.float64, device=self.frequencies.device)
        angles = steps[:, None] * self.frequencies
        # The cosine as a sine: some versions of onnxruntime (1.22) have no cosine in double precision.
        return torch.cat([angles.sin(), (angles + math.pi / 2).sin()], dim=1)


def trace(encoder: PretrainedEncoder) -> ExportedProgram:
    """The graph of an encoder with batch, height and width left open."""
    patch = encoder.patch_size
    example = torch.zeros(2, 3, 3 * patch, 5 * patch)
    sides = (patch * Dim(name, min=2, max=MOST_PATCHES) for name in ("rows", "columns"))
    shapes = (dict(zip((0, 2, 3), (Dim("batch", max=MOST_IMAGES), *sides), strict=True)),)
    with torch.no_grad():
        return torch.export.export(
            TraceableEncoder(encoder.encoder).eval(), (example,), dynamic_shapes=shapes, strict=False
        )
