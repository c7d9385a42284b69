"""The predictor: from the context's embeddings to those of each target block, which does not see the others."""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from cjepa.models.blocks import INITIAL_STD, NORM_EPSILON, Block, cut_normal, initialise, rescale_by_depth
from cjepa.models.kernels import Linear
from cjepa.models.positions import sincos_positions
from cjepa.models.vit import SIZES
from cjepa.types import Masks, Part

DEPTH, LARGE_DEPTH = 6, 12
"""Blocks of the paper's predictors: up to ViT-B, and of ViT-L."""


class PredictorConfig(Part):
    """The narrow transformer that predicts target blocks from context."""

    width: int = Field(384, ge=4, multiple_of=4)
    """Features inside the predictor."""
    depth: int | None = Field(None, ge=1)
    """Number of transformer blocks; by default the paper's: 6, or 12 for encoders as wide as ViT-L or wider."""
    heads: int | None = Field(None, ge=1)
    """Attention heads; by default as many as the encoder has, or the next fewer that divide the width."""
    mlp_ratio: float = Field(4.0, ge=0.25)
    """Width of the hidden layer of a block over the width of the block."""
    attention: Literal["full", "one_way"] = "full"
    """full (the paper): the context and the mask tokens of a target block attend to each other, for each block anew.
    one_way: the context attends to itself alone, so that it is computed once for all blocks; faster, another method."""
    rescale_depth: bool = False
    """Divide the last layers of block l by sqrt(2 l) at initialisation."""

    def blocks(self, encoder_width: int) -> int:
        """Number of transformer blocks beside an encoder of this width."""
        if self.depth is not None:
            return self.depth
        return DEPTH if encoder_width < SIZES["large"][0] else LARGE_DEPTH


class Predictor(nn.Module):
    """Predicts every target block from the context's tokens and the mask tokens of that block."""

    def __init__(self, config: PredictorConfig, encoder_width: int, encoder_heads: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.config = config
        heads = config.heads or _dividing_heads(encoder_heads, config.width)
        if config.width % heads:
            raise ValueError(f"model.predictor: width ({config.width}) must be divisible by heads ({heads})")
        self.project_in = Linear(encoder_width, config.width)
        self.mask_token = nn.Parameter(torch.zeros(config.width))
        self.blocks = nn.ModuleList(
            Block(config.width, heads, config.mlp_ratio) for _ in range(config.blocks(encoder_width))
        )
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPSILON)
        self.project_out = Linear(config.width, encoder_width)
        self.positions: Tensor
        self.register_buffer("positions", sincos_positions(*grid, config.width), persistent=False)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Fill all weights from the generator."""
        initialise(self.modules(), generator)
        cut_normal(self.mask_token, INITIAL_STD, generator)
        if self.config.rescale_depth:
            rescale_by_depth(self.blocks)

    def forward(self, context: Float[Tensor, "B C D"], masks: Masks) -> Float[Tensor, "B M T D"]:
        """Predicted embeddings of the T patches of each of the M target blocks of each image."""
        images, blocks, length = masks.targets.shape
        known = self.project_in(context) + self.positions[masks.context]
        asked = (self.mask_token + self.positions[masks.targets]).to(known.dtype)
        if self.config.attention == "full":  # a sequence for each target block
            tokens = torch.cat([known.unsqueeze(1).expand(-1, blocks, -1, -1), asked], dim=2).flatten(0, 1)
            queries, targets = length, None
        else:  # one for all of them
            tokens = torch.cat([known, asked.flatten(1, 2)], dim=1)
            queries, targets = blocks * length, (blocks, length)
        for block in self.blocks[:-1]:
            tokens = block(tokens, targets=targets)
        # Nothing reads the last block's context rows, so they are not computed.
        answers = self.blocks[-1](tokens, queries=queries, targets=targets)
        predicted: Tensor = self.project_out(self.norm(answers))
        return predicted.reshape(images, blocks, length, -1)


def _dividing_heads(heads: int, width: int) -> int:
    return next(count for count in range(heads, 0, -1) if width % count == 0)
