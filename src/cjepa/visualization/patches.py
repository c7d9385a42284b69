"""Patch features as colours: which patches an encoder takes to be alike."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from cjepa.visualization.components import principal_components
from cjepa.visualization.style import (
    bare,
    counted,
    footnote,
    patch_grid,
    picture_rows,
    pixels,
    plain,
    show_image,
    styled,
)

MOST_EXAMPLES = 8
COMPONENTS = 3
ROBUST = (1.0, 99.0)
"""Percentiles of a component that become the darkest and the brightest colour."""
RESOLUTION = 1e-6
"""Components that vary by less than this share of the features' size are rounding errors and stay grey."""
_GREY = 128


def pca_colours(features: Float[Tensor, "n N D"], grid: tuple[int, int]) -> UInt8[np.ndarray, "n h w 3"]:
    """The first three principal components of patch features as red, green and blue.

    One basis and one range (1st to 99th percentile of each component) for all patches of all images, so that equal
    colours mean equal features. grid: height and width in patches, h * w = N. A component that does not vary is grey.
    """
    images, patches, _ = features.shape
    assert grid[0] * grid[1] == patches, f"{patches} patches are no grid of {grid[0]} x {grid[1]}"
    scores, _ = principal_components(features.flatten(0, 1), COMPONENTS)
    low, high = np.percentile(scores, ROBUST, axis=0)
    varies = high - low > RESOLUTION * np.sqrt(features.double().square().sum(-1).mean().item())
    shares = ((scores - low) / np.where(varies, high - low, 1.0)).clip(0.0, 1.0)
    colours = np.where(varies, np.rint(255 * shares), _GREY).astype(np.uint8)
    return colours.reshape(images, *grid, COMPONENTS)


@styled
def patch_colours(
    images: UInt8[Tensor, "n 3 H W"],
    features: Mapping[str, Float[Tensor, "n N _"]],
    patch_size: int,
    upsampling: Literal["nearest", "bilinear"] = "nearest",
) -> Figure:
    """Images over the `pca_colours` of their patches, one row for each encoder; at most the first 8 images.

    features: patch features of these images by name of the encoder, in the order of the rows. The basis comes from
    all n images, also those that are not shown.
    """
    count = min(len(images), MOST_EXAMPLES)
    grid = patch_grid(images, patch_size)
    rows = [("image", f"{images.shape[2]} × {images.shape[3]} pixels")]
    for name, of_encoder in features.items():
        _, shares = principal_components(of_encoder.flatten(0, 1), COMPONENTS)
        rows.append((plain(name, 18), f"{100 * shares.sum():.0f} % of variance"))
    title = f"First three principal components of the {grid[0]} × {grid[1]} patch features as red, green and blue"
    figure, axes = picture_rows(title, rows, count, (images.shape[2], images.shape[3]))
    for panel, image in zip(axes[0], pixels(images[:count]), strict=True):
        show_image(panel, image)
    for line, of_encoder in zip(axes[1:], features.values(), strict=True):
        for panel, picture in zip(line, pca_colours(of_encoder, grid), strict=False):
            panel.imshow(picture, interpolation=upsampling)
            bare(panel)
    footnote(figure, f"One basis for a whole row of {counted(len(images), 'image')}; {upsampling} upsampling.")
    return figure
