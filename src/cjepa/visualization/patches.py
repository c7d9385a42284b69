"""Patch features as colours: which patches an encoder takes to be alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float64, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from cjepa.visualization.components import principal_components, turn_onto
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


Places = Sequence[tuple[int, int]]
"""Images of the first encoder, and those of another that show the same."""


@dataclass(frozen=True)
class Colours:
    """Pictures of one encoder's patches, and how far their colours mean what those of the first encoder mean: the
    correlation of both on the same patches, 0 to 1."""

    pictures: UInt8[np.ndarray, "n h w 3"]
    agreement: float


def pca_colours(features: Float[Tensor, "n N D"], grid: tuple[int, int]) -> UInt8[np.ndarray, "n h w 3"]:
    """The first three principal components of patch features as red, green and blue.

    One basis and one range (1st to 99th percentile of each component) for all patches of all images, so that equal
    colours mean equal features. grid: height and width in patches, h * w = N. A component that does not vary is grey.
    """
    return common_colours([features], grid)[0].pictures


def common_colours(
    features: Sequence[Float[Tensor, "_ N _"]], grid: tuple[int, int], same: Sequence[Places] | None = None
) -> list[Colours]:
    """`pca_colours` of several encoders in one frame, so that the same content has the same colour where it can.

    Encoders have unrelated feature spaces. So the three components of each, scaled to unit variance, are turned onto
    those of the first encoder by the rotation that fits best on the patches of the same images (`turn_onto`), and all
    encoders share one range. Turning changes no distance: what is shown are still each encoder's own components.
    same: for each encoder which images of the first and of itself are the same; by default they are in equal order.
    """
    for each in features:
        assert grid[0] * grid[1] == each.shape[1], f"{each.shape[1]} patches are no grid of {grid[0]} x {grid[1]}"
    scores = [_white_scores(each) for each in features]
    agreements = []
    for place, own in enumerate(scores):
        pairs = same[place] if same is not None else [(image, image) for image in range(len(own))]
        first, second = (np.array(images, dtype=np.int64) for images in zip(*pairs, strict=True))
        rotation, agreement = turn_onto(own[second].reshape(-1, COMPONENTS), scores[0][first].reshape(-1, COMPONENTS))
        scores[place] = own @ rotation if place else own
        agreements.append(agreement)
    together = np.concatenate([each.reshape(-1, COMPONENTS) for each in scores])
    low, high = np.percentile(together, ROBUST, axis=0)
    return [
        Colours(_as_bytes(own, low, high).reshape(len(own), *grid, COMPONENTS), agreement)
        for own, agreement in zip(scores, agreements, strict=True)
    ]


def _white_scores(features: Float[Tensor, "n N _"]) -> Float64[np.ndarray, "n N 3"]:
    """Principal components of all patches with unit variance; of a component that does not vary zeros."""
    scores, _ = principal_components(features.flatten(0, 1), COMPONENTS)
    low, high = np.percentile(scores, ROBUST, axis=0)
    varies = high - low > RESOLUTION * np.sqrt(features.double().square().sum(-1).mean().item())
    white = np.where(varies, scores, 0.0) / np.where(varies, scores.std(axis=0), 1.0)
    return white.reshape(*features.shape[:2], COMPONENTS)


def _as_bytes(
    scores: Float64[np.ndarray, "n N 3"], low: Float64[np.ndarray, "3"], high: Float64[np.ndarray, "3"]
) -> UInt8[np.ndarray, "n N 3"]:
    varies = (high > low) & (np.ptp(scores, axis=(0, 1)) > 0)
    shares = ((scores - low) / np.where(high > low, high - low, 1.0)).clip(0.0, 1.0)
    return np.where(varies, np.rint(255 * shares), _GREY).astype(np.uint8)


@styled
def patch_colours(
    images: UInt8[Tensor, "n 3 H W"],
    features: Mapping[str, Float[Tensor, "n N _"]],
    patch_size: int,
    upsampling: Literal["nearest", "bilinear"] = "nearest",
) -> Figure:
    """Images over the `common_colours` of their patches, one row for each encoder; at most the first 8 images.

    features: patch features of these images by name of the encoder, in the order of the rows. The frame comes from
    all n images, also those that are not shown.
    """
    count = min(len(images), MOST_EXAMPLES)
    grid = patch_grid(images, patch_size)
    rows = [("image", f"{images.shape[2]} × {images.shape[3]} pixels")]
    colours = common_colours(list(features.values()), grid)
    for place, (name, of_encoder) in enumerate(features.items()):
        _, shares = principal_components(of_encoder.flatten(0, 1), COMPONENTS)
        alike = f", r {colours[place].agreement:.2f}" if place else ""
        rows.append((plain(name, 18), f"{100 * shares.sum():.0f} % of variance{alike}"))
    title = f"First three principal components of the {grid[0]} × {grid[1]} patch features as red, green and blue"
    figure, axes = picture_rows(title, rows, count, (images.shape[2], images.shape[3]))
    for panel, image in zip(axes[0], pixels(images[:count]), strict=True):
        show_image(panel, image)
    for line, coloured in zip(axes[1:], colours, strict=True):
        for panel, picture in zip(line, coloured.pictures, strict=False):
            panel.imshow(picture, interpolation=upsampling)
            bare(panel)
    frame = f"One basis for a whole row of {counted(len(images), 'image')}"
    if len(features) > 1:
        frame += f"; rows are turned onto that of {plain(next(iter(features)), 18)}, r: how well that fits"
    footnote(figure, f"{frame}; {upsampling} upsampling.")
    return figure
