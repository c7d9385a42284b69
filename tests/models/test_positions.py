"""Sin-cos positions against their formula."""

import math

import pytest
import torch

from cjepa.models.positions import sincos_positions


@pytest.mark.parametrize(("height", "width", "features"), [(1, 1, 4), (3, 5, 8), (5, 3, 24), (8, 8, 192)])
def test_positions_equal_the_formula(height: int, width: int, features: int) -> None:
    positions = sincos_positions(height, width, features)
    assert positions.shape == (height * width, features)
    assert positions.dtype == torch.float32
    quarter = features // 4
    for row in range(height):
        for column in range(width):
            expected = [
                wave(coordinate / 10000 ** (i / quarter))
                for coordinate in (column, row)
                for wave in (math.sin, math.cos)
                for i in range(quarter)
            ]
            torch.testing.assert_close(positions[row * width + column], torch.tensor(expected))


def test_every_patch_has_its_own_position() -> None:
    positions = sincos_positions(14, 14, 192)
    distances = torch.cdist(positions, positions) + 10 * torch.eye(196)
    assert distances.min() > 0.5


def test_a_width_not_divisible_by_4_is_a_programmers_error() -> None:
    with pytest.raises(AssertionError, match="divisible by 4"):
        sincos_positions(2, 2, 6)
