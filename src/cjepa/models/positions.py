"""Fixed two-dimensional sin-cos position embeddings."""

import torch
from jaxtyping import Float
from torch import Tensor


def sincos_positions(height: int, width: int, features: int) -> Float[Tensor, "N features"]:
    """Embeddings of the patches of a grid, row by row: half the features for the column, half for the row.

    Each half holds sin and cos of the coordinate at frequencies 10000^(-i / (features / 4)), as in MAE.
    `features` must be divisible by 4. Computed in float64, returned in float32.
    """
    assert features % 4 == 0, "sin-cos positions need a width divisible by 4"
    rows = torch.arange(height, dtype=torch.float64).repeat_interleave(width)
    columns = torch.arange(width, dtype=torch.float64).repeat(height)
    quarter = features // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = [coordinate[:, None] * frequencies for coordinate in (columns, rows)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1).float()
