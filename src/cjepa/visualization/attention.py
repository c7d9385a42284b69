"""Attention maps: which patches the others look at in the last block, as in the paper's Figures 3 to 8."""

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from cjepa.visualization.style import (
    bare,
    footnote,
    patch_grid,
    picture_rows,
    pixels,
    plain,
    show_image,
    styled,
)

MOST_EXAMPLES = 8
COLOURS = "inferno"
"""A colour map whose lightness rises evenly: it reads the same without colours."""
OPACITY = 0.65
"""Of the map over the image."""


def attention_shares(received: Float[Tensor, "n N"], grid: tuple[int, int]) -> Float[np.ndarray, "n h w"]:
    """Attention received by each patch, from 0 for the least to 1 for the most of its image; 0 where all are equal."""
    assert grid[0] * grid[1] == received.shape[1], f"{received.shape[1]} patches are no grid of {grid[0]} x {grid[1]}"
    values = received.detach().cpu().double().numpy()
    low, high = values.min(axis=1, keepdims=True), values.max(axis=1, keepdims=True)
    shares = (values - low) / np.where(high > low, high - low, 1.0)
    return shares.reshape(-1, *grid)


def attention_colours(received: Float[Tensor, "n N"], grid: tuple[int, int]) -> UInt8[np.ndarray, "n h w 3"]:
    """The `attention_shares` as colours, dark for the least and bright for the most attended patch of an image."""
    coloured = mpl.colormaps[COLOURS](attention_shares(received, grid))
    return np.rint(255 * coloured[..., :3]).astype(np.uint8)


def peak(received: Float[Tensor, "n N"]) -> float:
    """Attention of the most attended patch over an even share, on average over the images: 1 is no preference."""
    return float(received.amax(dim=1).mean() * received.shape[1])


@styled
def attention_maps(
    images: UInt8[Tensor, "n 3 H W"], received: Mapping[str, Float[Tensor, "n N"]], patch_size: int
) -> Figure:
    """Images over the attention that their patches receive, one row for each encoder; at most the first 8 images.

    received: by name of the encoder, the mean of the attention weights over queries and heads in its last block
    (`cjepa.models.attention.attention_received`): there is no class token whose attention could be shown. Each map
    is scaled from its least to its most attended patch.
    """
    count = min(len(images), MOST_EXAMPLES)
    grid = patch_grid(images, patch_size)
    rows = [("image", f"{images.shape[2]} × {images.shape[3]} pixels")]
    rows += [(plain(name, 18), f"peak {peak(of_encoder):.2f} × even") for name, of_encoder in received.items()]
    title = "Attention that each patch receives in the last block"
    figure, axes = picture_rows(title, rows, count, (images.shape[2], images.shape[3]))
    shown = pixels(images[:count])
    for panel, image in zip(axes[0], shown, strict=True):
        show_image(panel, image)
    extent = (-0.5, images.shape[3] - 0.5, images.shape[2] - 0.5, -0.5)
    for line, of_encoder in zip(axes[1:], received.values(), strict=True):
        for panel, image, colours in zip(line, shown, attention_colours(of_encoder[:count], grid), strict=True):
            panel.imshow(image)
            panel.imshow(colours, extent=extent, alpha=OPACITY, interpolation="nearest")
            bare(panel)
    footnote(figure, "Mean over all queries and heads; each map is scaled from its least to its most attended patch.")
    return figure
