"""The default sampler: four target blocks, and what a large block leaves of them as context, without bias.

Against the public reference sampler (reference.py, docs/method.md): area and log-aspect are independent, every
position of a block is possible, the context is cut to its length by a random subset instead of the first indices,
and lengths depend on the step alone, never on the batch.
"""

from typing import Literal

import numpy as np
import torch
from pydantic import Field

from cjepa.errors import InputError
from cjepa.masking.blocks import BlocksConfig, BoolArray, FloatArray, IntArray, Size, coverage, indices
from cjepa.randomness import Stream, uniform_rows
from cjepa.types import Masks

ATTEMPTS = 16
"""Layouts drawn per image. Each succeeds with probability 0.9 or more, so that all fail in one of 10^16 images."""
SHORT_SHARE = 0.1
"""Share of layouts that may leave fewer context patches than the step's length; they are drawn again."""
PROBES = 1024
"""Layouts from which a step's context length is computed; a constant set, so the length is a pure function."""


class MultiblockConfig(BlocksConfig):
    """Unbiased multi-block masks (I-JEPA's scales): area and log-aspect are drawn independently. The default."""

    name: Literal["multiblock"] = "multiblock"
    """The sampler: multiblock (ours, unbiased) or reference (the public I-JEPA distribution)."""
    min_context: int = Field(4, ge=1)
    """Fewest context patches that count as a usable mask; scales that cannot give them are refused."""


class MultiblockSampler:
    """Masks of the images of a step as a pure function of (seed, step, sample)."""

    def __init__(self, config: MultiblockConfig, grid: Size, seed: int) -> None:
        self.config = config
        self.grid = grid
        self.seed = seed
        self._context_lengths: dict[tuple[Size, Size], int] = {}
        self._refuse_impossible_scales()

    def __call__(self, step: int, first: int, count: int) -> Masks:
        """Masks of samples first .. first + count - 1 of this step's global batch."""
        target, context = self.block_sizes(step)
        length = self._context_length(target, context)
        layouts = self._long_enough(step, first, count, target, context, length)
        kept = self._random_subset(layouts.free, step, first, length)
        blocks = indices(layouts.tops, layouts.lefts, target, self.grid)
        return Masks(torch.from_numpy(kept), torch.from_numpy(blocks))

    def block_sizes(self, step: int) -> tuple[Size, Size]:
        """The sizes of this step's target and context blocks, shared by all ranks and images."""
        area, aspect, context_area = uniform_rows(self.seed, Stream.MASK_SIZES, step, 0, 1, 3)[0]
        low, high = np.log(self.config.target_aspect)
        return (
            self._target_size(_between(self.config.target_area, area), float(np.exp(low + aspect * (high - low)))),
            self._context_size(_between(self.config.context_area, context_area)),
        )

    def _target_size(self, area: float, aspect: float) -> Size:
        patches = area * self.grid.area
        return self._clipped(np.sqrt(patches * aspect), np.sqrt(patches / aspect))

    def _context_size(self, area: float) -> Size:
        side = np.sqrt(area)
        return self._clipped(side * self.grid.height, side * self.grid.width)

    def _clipped(self, height: float, width: float) -> Size:
        return Size(
            min(max(round(float(height)), 1), self.grid.height),
            min(max(round(float(width)), 1), self.grid.width),
        )

    def _long_enough(self, step: int, first: int, count: int, target: Size, context: Size, length: int) -> "_Layouts":
        """For each image the first of its layouts that leaves enough context; further ones only where that is not the
        first, so that the cost is that of little more than one."""
        blocks = self.config.targets + 1
        draws = uniform_rows(self.seed, Stream.MASK_POSITIONS, step, first, count, ATTEMPTS * blocks * 2)
        draws = draws.reshape(count, ATTEMPTS, blocks, 2)
        chosen = _Layouts(draws[:, 0], target, context, self.grid)
        short = np.flatnonzero(chosen.lengths < length)
        for attempt in range(1, ATTEMPTS):
            if not len(short):
                break
            chosen.replace(short, _Layouts(draws[short, attempt], target, context, self.grid))
            short = short[chosen.lengths[short] < length]
        assert not len(short), "no layout leaves enough context; the probes promised one"
        return chosen

    def _random_subset(self, free: BoolArray, step: int, first: int, length: int) -> IntArray:
        """The `length` free patches with the lowest scores, in ascending order; free: [patches, B]."""
        scores = uniform_rows(self.seed, Stream.MASK_SUBSETS, step, first, free.shape[1], self.grid.area)
        scores[~free.T] = np.inf
        highest = np.partition(scores, length - 1, axis=-1)[:, length - 1 : length]
        patches = np.flatnonzero(scores <= highest) % self.grid.area
        if len(patches) != length * len(scores):  # two equal scores of 53 bits: keep one
            patches = np.sort(np.argpartition(scores, length - 1, axis=-1)[:, :length], axis=-1)
        return patches.reshape(len(scores), length)

    def _context_length(self, target: Size, context: Size) -> int:
        """The length that all but SHORT_SHARE of the layouts of these blocks leave."""
        if (target, context) not in self._context_lengths:
            blocks = self.config.targets + 1
            draws = uniform_rows(0, Stream.MASK_PROBES, 0, 0, PROBES, blocks * 2).reshape(PROBES, blocks, 2)
            lengths = np.sort(_Layouts(draws, target, context, self.grid).lengths)
            self._context_lengths[target, context] = int(lengths[int(PROBES * SHORT_SHARE)])
        return self._context_lengths[target, context]

    def _largest_targets(self) -> set[Size]:
        """For each height that a target can have the widest such target; every other one fits into one of them."""
        area = self.config.target_area[1]
        low, high = self.config.target_aspect
        heights = np.arange(1, self.grid.height + 1)
        taller = (heights - 0.5) ** 2 / (area * self.grid.area) * (1 + 1e-9)  # the aspects at which they round up
        aspects = [low, *taller[(taller > low) & (taller < high)]]
        return {self._target_size(area, float(aspect)) for aspect in aspects}

    def _refuse_impossible_scales(self) -> None:
        # The same positions leave less to a smaller context and to larger targets: only these sizes can be shortest.
        context, targets = self._context_size(self.config.context_area[0]), self._largest_targets()
        if context.area - self.config.targets * max(target.area for target in targets) >= self.config.min_context:
            return  # enough even where no two targets overlap: no need to probe
        shortest = min(self._context_length(target, context) for target in targets)
        if shortest < self.config.min_context:
            raise InputError(
                f"masking: on a grid of {self.grid.height} x {self.grid.width} patches these scales leave "
                f"{shortest} context patches, fewer than min_context={self.config.min_context}; use smaller "
                "patches or a larger image, fewer or smaller targets (masking.targets, masking.target_area), "
                "or a larger masking.context_area"
            )


class _Layouts:
    """Block positions of B images and the context patches they leave: tops, lefts [B, M]; free [patches, B].

    Images come last in `free`, so that every operation on it is one over thousands of neighbouring bytes: several times
    faster than over the few columns of a grid.
    """

    def __init__(self, draws: FloatArray, target: Size, context: Size, grid: Size) -> None:
        """draws: [B, M + 1, 2], the last of each image for the context block."""
        self.tops, self.lefts = _positions(draws[:, :-1], target, grid)
        context_tops, context_lefts = _positions(draws[:, -1], context, grid)
        free = coverage(context_tops, context_lefts, context, grid)
        for block in range(self.tops.shape[1]):
            free &= ~coverage(self.tops[:, block], self.lefts[:, block], target, grid)
        self.free: BoolArray = free
        self.lengths: IntArray = self.free.sum(axis=0, dtype=np.int64)

    def replace(self, images: IntArray, others: "_Layouts") -> None:
        """Take the layouts of these images from others."""
        self.tops[images], self.lefts[images] = others.tops, others.lefts
        self.free[:, images], self.lengths[images] = others.free, others.lengths


def _positions(draws: FloatArray, block: Size, grid: Size) -> tuple[IntArray, IntArray]:
    """Corners, uniform over all positions at which the block fits, the last row and column included."""
    choices = np.array([grid.height - block.height + 1, grid.width - block.width + 1])
    corners = (draws * choices).astype(np.int64)
    return corners[..., 0], corners[..., 1]


def _between(limits: tuple[float, float], share: float) -> float:
    return limits[0] + share * (limits[1] - limits[0])
