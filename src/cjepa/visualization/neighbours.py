"""Nearest neighbours: which images an encoder takes to be alike."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Int64, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor
from torch.nn.functional import normalize

from cjepa.data.source import NO_LABEL
from cjepa.visualization.style import (
    BESIDE,
    FAINT,
    LABEL_WIDTH,
    RIGHT,
    WIDTH,
    WRONG,
    counted,
    new_figure,
    pixels,
    plain,
    show_image,
    styled,
)

LARGEST = 1.6
"""Inches of a picture at most."""
_DASHES = (0.0, (2.5, 1.5))
_LETTER = 0.1
"""Inches that a letter of a heading takes."""
_GAP = 0.25
"""Between the groups of columns, as a share of a picture's width."""


@dataclass(frozen=True)
class Pool:
    """Images with their labels (-1 where there is none) and their pooled embeddings by name of the encoder."""

    images: UInt8[Tensor, "n 3 H W"]
    labels: Int[np.ndarray, "n"]
    features: Mapping[str, Float[Tensor, "n _"]]

    def take(self, indices: Int[np.ndarray, "k"]) -> "Pool":
        """Some of the images, in this order."""
        index = torch.from_numpy(indices.astype(np.int64))
        features = {name: of_encoder[index] for name, of_encoder in self.features.items()}
        return Pool(self.images[index], self.labels[indices], features)


def nearest(
    queries: Float[Tensor, "q D"], gallery: Float[Tensor, "n D"], count: int
) -> Int64[np.ndarray, "q count_found"]:
    """Indices of the `count` nearest gallery embeddings of each query, the nearest first.

    By cosine similarity after subtracting the gallery's mean, because pooled embeddings share a large constant part.
    Of equally near ones the first in the gallery comes first; all of a smaller gallery are returned.
    """
    mean = gallery.double().mean(0)
    similarity = normalize(queries.double() - mean, dim=1) @ normalize(gallery.double() - mean, dim=1).T
    order = similarity.argsort(dim=1, descending=True, stable=True)
    return order[:, :count].cpu().numpy()


def agreement(labels: Int[np.ndarray, "q"], found: Int[np.ndarray, "q k"]) -> Int64[np.ndarray, "q k"]:
    """Whether labels found for a query are its own: 1 or 0, and NO_LABEL where one of the two is missing."""
    missing = (labels[:, None] == NO_LABEL) | (found == NO_LABEL)
    return np.where(missing, NO_LABEL, (labels[:, None] == found).astype(np.int64))


@styled
def nearest_neighbours(queries: Pool, gallery: Pool, classes: tuple[str, ...], count: int = 5) -> Figure:
    """Each query in a row with its `count` nearest images of the gallery, side by side for every encoder.

    queries, gallery: with features of the same encoders, and no image in both. classes: names of the labels. The
    frame tells whether a neighbour has the query's label: solid and blue, or dashed and orange; a thin grey frame
    where one of the two has no label.
    """
    count = min(count, len(gallery.images))
    rows, height, width = len(queries.images), *queries.images.shape[2:]
    # The query, then for every encoder a gap and its neighbours.
    ratios = [1.0, *([_GAP, *[1.0] * count] * len(queries.features))]
    unit = min((WIDTH - LABEL_WIDTH) / sum(ratios), LARGEST)
    labelled = bool((queries.labels != NO_LABEL).any())
    title = (
        f"The {count} nearest of {counted(len(gallery.images), 'image')}, by cosine similarity of centred embeddings"
    )
    figure = new_figure(0.95 + 0.4 * labelled + rows * unit * height / width, title)
    grid = figure.add_gridspec(rows, len(ratios), width_ratios=ratios, wspace=0.0, hspace=0.0)
    for row, image in enumerate(pixels(queries.images)):
        axes = figure.add_subplot(grid[row, 0])
        show_image(axes, image)
        _name(axes, int(queries.labels[row]), classes)
        if row == 0:
            _heading(axes, "query")
    unknown = False
    for group, (name, features) in enumerate(queries.features.items()):
        found = nearest(features, gallery.features[name], count)
        same = agreement(queries.labels, gallery.labels[found])
        for row, place in np.ndindex(found.shape):
            axes = figure.add_subplot(grid[row, 2 + group * (count + 1) + place])
            show_image(axes, pixels(gallery.images[found[row, place]][None])[0])
            if labelled:
                _frame(axes, int(same[row, place]))
            if row == 0 and place == 0:
                _heading(axes, plain(name, max(8, int(count * unit / _LETTER))), _share(same))
        unknown = unknown or bool((same == NO_LABEL).any())
    if labelled:
        _explain_frames(figure, unknown)
    return figure


def _name(axes: Axes, label: int, classes: tuple[str, ...]) -> None:
    if label != NO_LABEL:
        name = plain(classes[label], 18)
        axes.annotate(name, (0, 0.5), xytext=(-6, 0), ha="right", va="center", fontsize=9, **BESIDE)


def _heading(axes: Axes, name: str, detail: str = "") -> None:
    axes.set_title(" \n ")  # keeps the room; the text itself must not widen the column of one picture
    axes.annotate(name, (0, 1), xytext=(0, 20), fontweight="bold", **BESIDE).set_in_layout(False)
    axes.annotate(detail, (0, 1), xytext=(0, 7), fontsize=9, color=FAINT, **BESIDE).set_in_layout(False)


def _frame(axes: Axes, same: int) -> None:
    axes.spines[:].set_visible(True)
    if same == NO_LABEL:
        axes.spines[:].set_linewidth(0.8)
    else:
        axes.spines[:].set_color(RIGHT if same else WRONG)
        axes.spines[:].set_linewidth(2.6)
        axes.spines[:].set_linestyle("-" if same else _DASHES)


def _share(same: Int64[np.ndarray, "q k"]) -> str:
    known = same != NO_LABEL
    if not known.any():
        return ""
    return f"same class: {int(same[known].sum())} of {int(known.sum())}" + ("" if known.all() else " labelled")


def _explain_frames(figure: Figure, unknown: bool) -> None:
    handles = [
        Patch(facecolor="none", edgecolor=RIGHT, linewidth=2, label="same class"),
        Patch(facecolor="none", edgecolor=WRONG, linewidth=2, linestyle=_DASHES, label="another class"),
    ]
    if unknown:
        handles.append(Patch(facecolor="none", edgecolor=FAINT, linewidth=0.8, label="no label"))
    figure.legend(handles=handles, loc="outside lower left", ncols=3)
