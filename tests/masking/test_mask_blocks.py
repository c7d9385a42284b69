"""Rectangles on the patch grid, against loops."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cjepa.masking.blocks import Size, coverage, indices


@st.composite
def rectangles(draw: st.DrawFn) -> tuple[Size, Size, list[tuple[int, int]]]:
    """A grid, a block that fits into it, and corners of a few such blocks."""
    grid = Size(draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    block = Size(draw(st.integers(1, grid.height)), draw(st.integers(1, grid.width)))
    corner = st.tuples(st.integers(0, grid.height - block.height), st.integers(0, grid.width - block.width))
    return grid, block, draw(st.lists(corner, min_size=1, max_size=4))


@given(rectangles())
def test_indices_and_coverage_equal_the_loops(case: tuple[Size, Size, list[tuple[int, int]]]) -> None:
    grid, block, corners = case
    tops, lefts = np.array(corners).T
    found, covered = indices(tops, lefts, block, grid), coverage(tops, lefts, block, grid)
    assert covered.shape == (grid.area, len(corners))
    for number, (top, left) in enumerate(corners):
        expected = [
            row * grid.width + column
            for row in range(top, top + block.height)
            for column in range(left, left + block.width)
        ]
        assert found[number].tolist() == expected == sorted(expected)
        assert np.flatnonzero(covered[:, number]).tolist() == expected
