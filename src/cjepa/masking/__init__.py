"""Which patches are context and which are predicted: a closed list of samplers."""

from typing import Annotated, assert_never

import torch
from pydantic import Field

from cjepa.masking.blocks import Size
from cjepa.masking.multiblock import MultiblockConfig, MultiblockSampler
from cjepa.masking.reference import ReferenceConfig, ReferenceSampler
from cjepa.types import Masks, MaskSampler

__all__ = ["MaskingConfig", "MultiblockConfig", "ReferenceConfig", "build_sampler", "no_masks"]

MaskingConfig = Annotated[MultiblockConfig | ReferenceConfig, Field(discriminator="name")]


def build_sampler(
    config: MultiblockConfig | ReferenceConfig, grid: tuple[int, int], seed: int, batch_size: int
) -> MaskSampler:
    """The sampler of a config for a grid of (height, width) patches and a global batch size.

    Raises InputError where the grid and the scales can never give a valid mask.
    """
    match config:
        case MultiblockConfig():
            return MultiblockSampler(config, Size(*grid), seed)
        case ReferenceConfig():
            return ReferenceSampler(config, Size(*grid), seed, batch_size)
        case _:
            assert_never(config)


def no_masks(step: int, first: int, count: int) -> Masks:  # noqa: ARG001
    """A sampler for objectives without masks: no patch is context, no block is predicted."""
    return Masks(torch.empty(count, 0, dtype=torch.int64), torch.empty(count, 0, 0, dtype=torch.int64))
