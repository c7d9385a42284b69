"""Rectangles on the patch grid, vectorised over images and blocks, and the keys of their scales."""

from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from cjepa.types import Part

Share = Annotated[float, Field(gt=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


class BlocksConfig(Part):
    """Keys shared by the samplers that draw rectangular blocks."""

    targets: int = Field(4, ge=1, le=16)
    """Number M of target blocks per image; the VICReg term between blocks needs at least 2."""
    target_area: tuple[Share, Share] = (0.15, 0.2)
    """Area of a target block, as a share of the image: smallest and largest."""
    target_aspect: tuple[Positive, Positive] = (0.75, 1.5)
    """Height over width of a target block: smallest and largest."""
    context_area: tuple[Share, Share] = (0.85, 1.0)
    """Area of the context block before the targets are removed, as a share of the image: smallest and largest."""

    @model_validator(mode="after")
    def _ranges_ascend(self) -> "BlocksConfig":
        for key in ("target_area", "target_aspect", "context_area"):
            low, high = getattr(self, key)
            if low > high:
                raise ValueError(f"{key}: the first value ({low}) must not exceed the second ({high})")
        return self


class Size(NamedTuple):
    """Height and width of a grid or block, in patches."""

    height: int
    width: int

    @property
    def area(self) -> int:
        """Number of patches."""
        return self.height * self.width


def coverage(tops: IntArray, lefts: IntArray, block: Size, grid: Size) -> BoolArray:
    """Which patches each block covers: tops, lefts [...] -> bool [height * width of the grid, ...]."""
    rows, columns = (np.arange(side).reshape(side, *(1 for _ in tops.shape)) for side in grid)
    in_rows = (rows >= tops) & (rows < tops + block.height)
    in_columns = (columns >= lefts) & (columns < lefts + block.width)
    covered: BoolArray = in_rows[:, None] & in_columns[None]
    return covered.reshape(grid.area, *tops.shape)


def indices(tops: IntArray, lefts: IntArray, block: Size, grid: Size) -> IntArray:
    """Sorted patch indices of each block: tops, lefts [...] -> int [..., area of the block]."""
    rows = tops[..., None] + np.arange(block.height)
    columns = lefts[..., None] + np.arange(block.width)
    return (rows[..., :, None] * grid.width + columns[..., None, :]).reshape(*tops.shape, block.area)
