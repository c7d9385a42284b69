"""What the masks hide: the context and target blocks of single images, and how often each patch is either."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float64, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from cjepa.types import Masks
from cjepa.visualization.style import (
    COLOURS,
    INK,
    bare,
    counted,
    new_figure,
    patch_grid,
    picture_rows,
    picture_width,
    pixels,
    show_image,
    styled,
)

MOST_EXAMPLES = 6
DIMMED = 0.18
"""Share of an image that is left of its masked pixels, on light grey."""
_GREY = 235.0
_APART = 1.9 / 72
"""Inches that each block is outlined further inside than the one before: edges that blocks share stay visible."""
_INNERMOST = 0.9
"""No outline is further inside than this, in patches."""
_WRITTEN = 10
"""Up to so many patches a side the shares are written into the heat maps."""


@styled
def mask_examples(images: UInt8[Tensor, "n 3 H W"], masks: Masks, patch_size: int) -> Figure:
    """Images, what the context encoder sees of them, and the blocks that are predicted; at most the first 6.

    masks: of one step, for at least these images. patch_size: side of a patch in pixels, which divides H and W.
    """
    count = min(len(images), MOST_EXAMPLES)
    grid = patch_grid(images, patch_size)
    blocks, patches = masks.targets.shape[1:]
    context = patch_mask(masks.context[:count, None], grid)
    targets = patch_mask(masks.targets[:count], grid)
    rows = [
        ("image", f"{images.shape[2]} × {images.shape[3]} pixels"),
        ("context", f"{masks.context.shape[1]} of {grid[0] * grid[1]} patches"),
        (f"{blocks} targets", f"of {patches} patches each"),
    ]
    title = f"Masks on {grid[0]} × {grid[1]} patches: what is seen and what is predicted"
    figure, axes = picture_rows(title, rows, count, (images.shape[2], images.shape[3]))
    hidden = dim(images[:count], np.logical_not(targets.any(axis=1)), patch_size)
    seen = dim(images[:count], ~context[:, 0], patch_size)
    inset = min(_APART * grid[1] / picture_width(count), _INNERMOST / blocks)
    for index, whole in enumerate(pixels(images[:count])):
        show_image(axes[0, index], whole)
        show_image(axes[1, index], seen[index])
        _outline(axes[1, index], edges(context[index, 0]) * patch_size, INK, 0.8)
        show_image(axes[2, index], hidden[index])
        for number, block in enumerate(targets[index]):
            lines = edges(block, inset * (number + 0.5)) * patch_size
            _outline(axes[2, index], lines, COLOURS[number % len(COLOURS)], 1.8)
    return figure


@styled
def coverage(masks: Sequence[Masks], grid: tuple[int, int]) -> Figure:
    """Heat maps: how often each patch is context and how often it is in a target block, over all masks given.

    masks: of several steps. grid: height and width in patches. An even sampler favours no edge of the context; that
    targets lie more often in the middle follows from blocks that must fit into the image.
    """
    context, target = coverage_shares(masks, grid)
    images = sum(len(part.context) for part in masks)
    title = f"How often each patch is used, over {counted(images, 'image')} of {counted(len(masks), 'step')}"
    figure = new_figure(1.0 + 4.0 * min(grid[0] / grid[1], 2.0), title)
    axes = figure.subplots(1, 2)
    highest = max(context.max(), target.max())
    for panel, shares, name in zip(axes, (context, target), ("In the context", "In a target block"), strict=True):
        panel.set_title(f"{name}: {_percent(shares.mean())} on average, {_range(shares)}")
        picture = panel.imshow(100 * shares, cmap="cividis", vmin=0, vmax=100 * highest)
        bare(panel)
        if max(grid) <= _WRITTEN:
            _write_shares(panel, shares, highest)
    figure.colorbar(picture, ax=axes, label="% of images", shrink=0.9)
    return figure


def patch_mask(patches: Int[Tensor, "n M T"], grid: tuple[int, int]) -> Bool[np.ndarray, "n M h w"]:
    """Which patches of the grid each block of indices holds."""
    images, blocks, _ = patches.shape
    mask = np.zeros((images, blocks, grid[0] * grid[1]), dtype=np.bool_)
    np.put_along_axis(mask, patches.cpu().numpy().astype(np.int64), True, axis=2)
    return mask.reshape(images, blocks, *grid)


def dim(
    images: UInt8[Tensor, "n 3 H W"], hidden: Bool[np.ndarray, "n h w"], patch_size: int
) -> UInt8[np.ndarray, "n H W 3"]:
    """The images with their hidden patches faded into light grey, the others as they are."""
    whole = pixels(images)
    faded = np.rint(DIMMED * whole + (1 - DIMMED) * _GREY).astype(np.uint8)
    where = hidden.repeat(patch_size, axis=1).repeat(patch_size, axis=2)
    return np.where(where[..., None], faded, whole)


def coverage_shares(
    masks: Sequence[Masks], grid: tuple[int, int]
) -> tuple[Float64[np.ndarray, "h w"], Float64[np.ndarray, "h w"]]:
    """Shares of the images in which each patch is context, and is in at least one target block."""
    context = np.concatenate([patch_mask(part.context[:, None], grid)[:, 0] for part in masks])
    target = np.concatenate([patch_mask(part.targets, grid).any(axis=1) for part in masks])
    return context.mean(axis=0), target.mean(axis=0)


def edges(block: Bool[np.ndarray, "h w"], inset: float = 0.0) -> Float64[np.ndarray, "lines 2 2"]:
    """The outline of a set of patches as lines from (x, y) to (x, y) in patches, drawn `inset` < 1 inside of it."""
    return np.concatenate([_horizontal(block, inset), _horizontal(block.T, inset)[..., ::-1]])


def _horizontal(block: Bool[np.ndarray, "h w"], inset: float) -> Float64[np.ndarray, "lines 2 2"]:
    padded = np.pad(block, 1)
    lines = []
    for outwards, depth in ((-1, inset), (1, 1.0 - inset)):
        edge = padded & ~np.roll(padded, -outwards, axis=0)
        change = np.diff(edge.astype(np.int8), axis=1)
        rows, starts = np.nonzero(change == 1)
        _, ends = np.nonzero(change == -1)
        # A line ends before a corner that points outwards, and runs on to meet the other line of an inner corner.
        start = starts + np.where(padded[rows, starts], -inset, inset)
        end = ends - np.where(padded[rows, ends + 1], -inset, inset)
        height = rows - 1 + depth
        lines.append(np.stack([start, height, end, height], axis=1).reshape(-1, 2, 2))
    return np.concatenate(lines)


def _outline(axes: Axes, lines: Float64[np.ndarray, "lines 2 2"], colour: str, width: float) -> None:
    """Lines in pixels; the centre of the first pixel is at 0, so that the image begins at -0.5."""
    axes.add_collection(LineCollection(list(lines - 0.5), colors=colour, linewidths=width, capstyle="projecting"))


def _write_shares(axes: Axes, shares: npt.NDArray[np.float64], highest: float) -> None:
    for (row, column), share in np.ndenumerate(shares):
        colour = "white" if share < 0.55 * highest else "black"
        axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=9)


def _range(shares: npt.NDArray[np.float64]) -> str:
    return f"{_percent(shares.min())} to {_percent(shares.max())}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
