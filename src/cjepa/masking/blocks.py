"""Rectangles on the patch grid, vectorised over images and blocks."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


class Size(NamedTuple):
    """Height and width of a grid or block, in patches."""

    height: int
    width: int

    @property
    def area(self) -> int:
        """Number of patches."""
        return self.height * self.width


def coverage(tops: IntArray, lefts: IntArray, block: Size, grid: Size) -> BoolArray:
    """Which patches each block covers: tops, lefts [...] -> bool [..., height * width of the grid]."""
    rows = np.arange(grid.height)
    columns = np.arange(grid.width)
    in_rows = (rows >= tops[..., None]) & (rows < tops[..., None] + block.height)
    in_columns = (columns >= lefts[..., None]) & (columns < lefts[..., None] + block.width)
    covered = in_rows[..., :, None] & in_columns[..., None, :]
    return covered.reshape(*tops.shape, grid.area)


def indices(tops: IntArray, lefts: IntArray, block: Size, grid: Size) -> IntArray:
    """Sorted patch indices of each block: tops, lefts [...] -> int [..., area of the block]."""
    rows = tops[..., None] + np.arange(block.height)
    columns = lefts[..., None] + np.arange(block.width)
    return (rows[..., :, None] * grid.width + columns[..., None, :]).reshape(*tops.shape, block.area)
