"""Pictures put together from small images as arrays: faster than a plot, and of exactly the pixels that there are."""

import math

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from cjepa.data.source import NO_LABEL
from cjepa.visualization.components import principal_components
from cjepa.visualization.embedding_map import cells
from cjepa.visualization.neighbours import nearest
from cjepa.visualization.style import RIGHT, WRONG, pixels

Rgba = UInt8[np.ndarray, "H W 4"]

LARGEST_TILE = 96
"""Pixels of the longer side of an image in a montage; smaller ones are enlarged by a whole factor."""
_FRAME, _GAP = 3, 3
MOST_CELLS = 16


def enlarged(images: UInt8[np.ndarray, "n h w 3"], least: int = 48) -> UInt8[np.ndarray, "n H W 3"]:
    """Images enlarged by the whole factor that brings their longer side to at least so many pixels."""
    factor = max(math.ceil(least / max(images.shape[1:3])), 1)
    return images.repeat(factor, axis=1).repeat(factor, axis=2)


def strip(images: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n*h w c"]:
    """Images below each other."""
    return images.reshape(-1, *images.shape[2:])


def tiled(images: UInt8[np.ndarray, "n h w 3"], columns: int) -> Rgba:
    """Images in rows of so many, with transparent gaps."""
    count, height, width, _ = images.shape
    rows = math.ceil(count / columns)
    canvas = np.zeros((rows, height + _GAP, columns, width + _GAP, 4), np.uint8)
    places = np.arange(count)
    canvas[places // columns, :height, places % columns, :width, :3] = images
    canvas[places // columns, :height, places % columns, :width, 3] = 255
    return canvas.reshape(rows * (height + _GAP), columns * (width + _GAP), 4)[:-_GAP, :-_GAP]


def framed(images: UInt8[np.ndarray, "n h w 3"], same: Int[np.ndarray, "n"]) -> UInt8[np.ndarray, "n H W 3"]:
    """Images in frames that are told apart without colours: whole and blue for 1, broken and orange for 0, grey for
    NO_LABEL."""
    height, width = images.shape[1] + 2 * _FRAME, images.shape[2] + 2 * _FRAME
    colours = {1: RIGHT, 0: WRONG, NO_LABEL: "#9a9a9a"}
    canvas = np.empty((len(images), height, width, 3), np.uint8)
    for value, colour in colours.items():
        canvas[same == value] = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    dashed = (np.add.outer(np.arange(height), np.arange(width)) // 6 % 2).astype(np.bool_)
    canvas[(same == 0)[:, None, None] & dashed] = 255
    canvas[:, _FRAME:-_FRAME, _FRAME:-_FRAME] = images
    return canvas


def neighbours_of(
    embeddings: Float[Tensor, "m D"], queries: Int[np.ndarray, "q"], count: int
) -> Int[np.ndarray, "q k"]:
    """Indices of the `count` nearest other images of each query, the nearest first; centred cosine similarity."""
    index = torch.from_numpy(queries.astype(np.int64))
    found = nearest(embeddings[index], embeddings, min(count + 1, len(embeddings)))
    others = [row[row != query][:count] for query, row in zip(queries, found, strict=True)]
    return np.stack(others) if others else np.empty((0, 0), np.int64)


def neighbour_montage(
    images: UInt8[Tensor, "m 3 h w"],
    queries: Int[np.ndarray, "q"],
    found: Int[np.ndarray, "q k"],
    same: Int[np.ndarray, "q k"],
) -> Rgba:
    """Each query at the left of a row, its neighbours in frames beside it."""
    shown = enlarged(pixels(images))
    count = found.shape[1]
    place = np.concatenate([queries[:, None], found], axis=1).flatten()
    known = np.concatenate([np.full((len(queries), 1), NO_LABEL), same], axis=1).flatten()
    whole = tiled(framed(shown[place], known), count + 1)
    width = shown.shape[2] + 2 * _FRAME + _GAP
    gap = np.zeros((len(whole), 4 * _GAP, 4), np.uint8)
    return np.concatenate([whole[:, :width], gap, whole[:, width:]], axis=1)


def map_montage(
    embeddings: Float[Tensor, "m D"], images: UInt8[Tensor, "m 3 h w"]
) -> tuple[Rgba, npt.NDArray[np.float64]]:
    """Images where their embeddings lie on the first two principal components, and these components' shares.

    A grid, of which each cell shows that one of its images which is nearest to its centre.
    """
    scores, shares = principal_components(embeddings, 2)
    count = min(MOST_CELLS, math.ceil(1.5 * math.sqrt(len(scores))))
    chosen, centres, side = cells(scores, count)
    place = np.rint((centres - centres.min(axis=0)) / side).astype(np.int64)
    columns, rows = place.max(axis=0) + 1
    shown = enlarged(pixels(images[torch.from_numpy(chosen)]), 32)
    height, width = shown.shape[1:3]
    canvas = np.zeros((rows, height + 1, columns, width + 1, 4), np.uint8)
    upwards = rows - 1 - place[:, 1]
    canvas[upwards, :height, place[:, 0], :width, :3] = shown
    canvas[upwards, :height, place[:, 0], :width, 3] = 255
    return canvas.reshape(rows * (height + 1), columns * (width + 1), 4), shares
