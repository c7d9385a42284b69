"""The distribution of the public I-JEPA sampler, kept for comparison: biased, see docs/method.md.

Written from a description of its behaviour. One random number draws both the area, rounded down to whole patches, and
the aspect of a block; a block never touches the last row and column; the context is what its block leaves of the
targets; context indices are sorted and cut to the shortest of the batch, so that the bottom of the image is almost
never context and the length depends on the batch.
"""

from typing import Literal

import numpy as np
import torch
from pydantic import Field

from cjepa.errors import InputError
from cjepa.masking.blocks import BlocksConfig, BoolArray, FloatArray, IntArray, Size, coverage, indices
from cjepa.randomness import Stream, uniform_rows
from cjepa.types import Masks

ATTEMPTS = 20
"""Context blocks drawn for an image before one target less counts, and then as many again; as in the public sampler."""


class ReferenceConfig(BlocksConfig):
    """The public I-JEPA mask distribution, with its biases; for comparison only."""

    name: Literal["reference"] = "reference"
    """The sampler: multiblock (ours, unbiased) or reference (the public I-JEPA distribution)."""
    min_keep: int = Field(10, ge=0)
    """A context must keep more patches than this, or its block is drawn again."""


class ReferenceSampler:
    """Masks of a whole global batch, cut to its shortest context; a slice of them on request."""

    def __init__(self, config: ReferenceConfig, grid: Size, seed: int, batch_size: int) -> None:
        self.config = config
        self.grid = grid
        self.seed = seed
        self.batch_size = batch_size
        self._refuse_impossible_scales()

    def __call__(self, step: int, first: int, count: int) -> Masks:
        """Masks of samples first .. first + count - 1; their lengths come from the whole global batch."""
        target, context = self.block_sizes(step)
        targets = self.config.targets
        blocks = targets + ATTEMPTS * (targets + 1)
        draws = uniform_rows(self.seed, Stream.MASK_POSITIONS, step, 0, self.batch_size, 2 * blocks)
        draws = draws.reshape(self.batch_size, blocks, 2)
        tops, lefts = self._positions(draws[:, :targets], target)
        free = self._contexts(draws[:, targets:], context, self._covered(tops, lefts, target))
        shortest = int(free.sum(axis=-1).min())
        first_free = np.argsort(~free, axis=-1, kind="stable")[:, :shortest]
        local = slice(first, first + count)
        return Masks(
            torch.from_numpy(first_free[local]),
            torch.from_numpy(indices(tops[local], lefts[local], target, self.grid)),
        )

    def block_sizes(self, step: int) -> tuple[Size, Size]:
        """The sizes of this step's target and context blocks."""
        for_target, for_context = uniform_rows(self.seed, Stream.MASK_SIZES, step, 0, 1, 2)[0]
        return self._target_size(for_target), self._size(self.config.context_area, (1.0, 1.0), for_context)

    def _target_size(self, draw: float) -> Size:
        return self._size(self.config.target_area, self.config.target_aspect, draw)

    def _size(self, areas: tuple[float, float], aspects: tuple[float, float], draw: float) -> Size:
        """One draw sets both area, rounded down to whole patches, and aspect; sides stay below those of the grid."""
        patches = int((areas[0] + draw * (areas[1] - areas[0])) * self.grid.area)
        aspect = aspects[0] + draw * (aspects[1] - aspects[0])
        height, width = round(float(np.sqrt(patches * aspect))), round(float(np.sqrt(patches / aspect)))
        return Size(min(height, self.grid.height - 1), min(width, self.grid.width - 1))

    def _positions(self, draws: FloatArray, block: Size) -> tuple[IntArray, IntArray]:
        """Corners with the upper bound left out, so that the last row and column are never covered."""
        choices = np.array([self.grid.height - block.height, self.grid.width - block.width])
        corners = (draws * choices).astype(np.int64)
        return corners[..., 0], corners[..., 1]

    def _covered(self, tops: IntArray, lefts: IntArray, block: Size) -> BoolArray:
        """Which patches each block covers, patches last: tops, lefts [B, M] -> bool [B, M, patches]."""
        return np.moveaxis(coverage(tops, lefts, block, self.grid), 0, -1)

    def _contexts(self, draws: FloatArray, block: Size, targets: BoolArray) -> BoolArray:
        """For each image the first context block that leaves more than min_keep patches: bool [B, patches].

        Where no attempt does, the last target no longer counts, then the one before, as in the public sampler.
        """
        free = np.zeros_like(targets[:, 0])
        missing: IntArray = np.arange(len(free))
        for given_up in range(self.config.targets + 1):
            attempts = draws[missing, given_up * ATTEMPTS : (given_up + 1) * ATTEMPTS]
            blocks = self._covered(*self._positions(attempts, block), block)
            taken: BoolArray = np.logical_or.reduce(targets[missing, : self.config.targets - given_up], axis=1)
            left = blocks & ~taken[:, None]
            enough: BoolArray = left.sum(axis=-1) > self.config.min_keep
            found = np.flatnonzero(enough.any(axis=-1))
            free[missing[found]] = left[found, enough[found].argmax(axis=-1)]
            missing = np.delete(missing, found)
        assert not len(missing), "a context block alone keeps enough patches; construction checked it"
        return free

    def _refuse_impossible_scales(self) -> None:
        sizes = [self._target_size(draw) for draw in np.linspace(0.0, 1.0, 1025)]
        smallest = min(*(size.area for size in sizes), self._size(self.config.context_area, (1.0, 1.0), 0.0).area)
        if smallest <= self.config.min_keep:
            raise InputError(
                f"masking: on a grid of {self.grid.height} x {self.grid.width} patches the reference sampler draws "
                f"blocks of {smallest} patches, not more than min_keep={self.config.min_keep}, and would search for "
                "ever; lower masking.min_keep, use smaller patches, or use masking=multiblock"
            )
