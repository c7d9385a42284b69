"""A map of pooled embeddings in two dimensions: which images lie near each other, and what separates them."""

import math
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from torch import Tensor

from cjepa.data.source import NO_LABEL
from cjepa.visualization.components import principal_components
from cjepa.visualization.neighbours import Pool
from cjepa.visualization.style import (
    COLOURS,
    FAINT,
    MARKERS,
    WIDTH,
    bare,
    counted,
    footnote,
    new_figure,
    pixels,
    plain,
    styled,
)

Method = Literal["pca", "tsne"]

MOST_CELLS = 15
"""Thumbnails along the longer side of a map; fewer where there are few images."""
MOST_MAPS = 3
TALLEST, LOWEST = 8.0, 0.3
"""Inches of a map at most; its height over its width at least."""
MOST_NAMES = 30
"""More classes than this are not named."""


@styled
def embedding_map(
    pool: Pool, classes: tuple[str, ...] = (), method: Method = "pca", show: Literal["images", "classes"] = "images"
) -> Figure:
    """Pooled embeddings of images in the plane, one map for each of the first three encoders, side by side.

    show: thumbnails, of which each stands where the embeddings near it lie, or a coloured mark for each image by its
    class. method: the first two principal components, or t-SNE of scikit-learn with a fixed seed (4 images or more).
    """
    names = list(pool.features)[:MOST_MAPS]
    placed = [_positions(pool.features[name], method) for name in names]
    tallest = max(np.ptp(positions[:, 1]) / (np.ptp(positions[:, 0]) or 1.0) for positions, _ in placed)
    how = "first two principal components" if method == "pca" else "t-SNE"
    title = f"Map of the pooled embeddings of {counted(len(pool.images), 'image')}: {how}"
    figure = new_figure(1.25 + min(WIDTH / len(names) * max(tallest, LOWEST), TALLEST), title)
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name, (positions, detail) in zip(panels, names, placed, strict=True):
        axes.set_title(f"{plain(name, 25)}\n{detail}")
        if show == "images":
            _thumbnails(axes, positions, pool)
        else:
            _marks(axes, positions, pool, classes)
        bare(axes)
        axes.set_aspect("equal", adjustable="box", anchor="NW")
    if show == "images":
        footnote(figure, "Each cell of a grid shows that one of its images which is nearest to its centre.")
    else:
        _legend(figure, pool, classes)
    return figure


def cells(
    positions: Float64[np.ndarray, "n 2"], count: int
) -> tuple[Int64[np.ndarray, "k"], Float64[np.ndarray, "k 2"], float]:
    """Which points represent a square grid of `count` cells along the longer side: indices, cell centres, cell side.

    Of the points in a cell the nearest to its centre; empty cells have none.
    """
    low, high = positions.min(axis=0), positions.max(axis=0)
    side = float((high - low).max()) / count or 1.0
    place = np.minimum(((positions - low) / side).astype(np.int64), count - 1)
    centres = low + (place + 0.5) * side
    order = np.argsort(((positions - centres) ** 2).sum(axis=1), kind="stable")
    _, first = np.unique(place[order] @ np.array([1, count]), return_index=True)
    chosen = order[first]
    return chosen, centres[chosen], side


def _positions(features: Float[Tensor, "n D"], method: Method) -> tuple[Float64[np.ndarray, "n 2"], str]:
    """Places of the embeddings, and what a title says about them."""
    scores, shares = principal_components(features, 2)
    if method == "pca":
        return scores, f"{100 * shares[0]:.0f} % and {100 * shares[1]:.0f} % of the variance"
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(scores) - 1) / 3)
    embedding = TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(features.cpu().float().numpy())
    return embedding.astype(np.float64), f"perplexity {perplexity:.0f}"


def _thumbnails(axes: Axes, positions: Float64[np.ndarray, "n 2"], pool: Pool) -> None:
    count = min(MOST_CELLS, math.ceil(1.5 * math.sqrt(len(positions))))
    chosen, centres, side = cells(positions, count)
    height, width = pool.images.shape[2:]
    half = 0.47 * side * np.array([width, height]) / max(width, height)
    for image, centre in zip(pixels(pool.images[torch.from_numpy(chosen)]), centres, strict=True):
        (left, bottom), (right, top) = centre - half, centre + half
        axes.imshow(image, extent=(left, right, bottom, top))
        axes.add_patch(Rectangle((left, bottom), *(2 * half), fill=False, edgecolor=FAINT, linewidth=0.4))
    low, high = centres.min(axis=0) - 0.5 * side, centres.max(axis=0) + 0.5 * side
    if len(chosen) == 1:  # all embeddings are equal: one picture, but not a huge one
        high[0] = low[0] + MOST_CELLS * side
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(low[1], high[1])


def _marks(axes: Axes, positions: Float64[np.ndarray, "n 2"], pool: Pool, classes: tuple[str, ...]) -> None:
    for label in (NO_LABEL, *range(len(classes))):
        colour, marker = _mark(label)
        own = positions[pool.labels == label]
        axes.scatter(own[:, 0], own[:, 1], s=16, color=colour, marker=marker, alpha=0.75, linewidths=0)


def _mark(label: int) -> tuple[str, str]:
    """Neither colour nor shape alone tells many classes apart."""
    if label == NO_LABEL:
        return FAINT, "."
    return COLOURS[label % len(COLOURS)], MARKERS[(label + label // len(COLOURS)) % len(MARKERS)]


def _legend(figure: Figure, pool: Pool, classes: tuple[str, ...]) -> None:
    present = [label for label in (NO_LABEL, *range(len(classes))) if (pool.labels == label).any()]
    if len(present) > MOST_NAMES:
        footnote(figure, f"{len(present)} classes, too many to be named.")
        return
    handles = []
    for label in present:
        colour, marker = _mark(label)
        name = "no label" if label == NO_LABEL else plain(classes[label], 20)
        handles.append(Line2D([], [], linestyle="", color=colour, marker=marker, label=name))
    figure.legend(handles=handles, loc="outside lower left", ncols=5, handlelength=1.0)
