"""All pictures of a run at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from cjepa.types import Masks
from cjepa.visualization.curves import training_curves
from cjepa.visualization.embedding_map import embedding_map
from cjepa.visualization.masks import coverage, mask_examples
from cjepa.visualization.neighbours import Pool, nearest_neighbours
from cjepa.visualization.patches import patch_colours
from cjepa.visualization.series import Row
from cjepa.visualization.spectrum import spectrum
from cjepa.visualization.style import patch_grid, save
from cjepa.visualization.views import view_examples

QUERIES = 8
"""Images whose neighbours are shown."""


@dataclass(frozen=True)
class Examples:
    """A few images (6 to 8 are shown) with their masks and patch features.

    masks: of several steps, the first for at least the n images; all of them make the coverage; none where the
    objective has none. patch_size: pixels; it divides H and W, and N is the number of patches. features: by name of
    the encoder, in the order to be shown. views: what an objective of two views compares, of images of its own.
    """

    images: UInt8[Tensor, "n 3 H W"]
    masks: Sequence[Masks]
    patch_size: int
    features: Mapping[str, Float[Tensor, "n N _"]]
    views: tuple[UInt8[Tensor, "v 3 H W"], UInt8[Tensor, "v 3 H W"]] | None = None


def write_pictures(
    folder: Path,
    *,
    metrics: Mapping[str, Sequence[Row]],
    examples: Examples,
    queries: Pool,
    gallery: Pool,
    classes: tuple[str, ...],
) -> list[Path]:
    """Write the pictures of one or several runs into a folder as PNG and return their paths.

    curves.png: from metrics, the rows of metrics.jsonl by name of the run. masks.png and coverage.png, or views.png,
    and patches.png: from the examples. neighbours.png: 8 of the queries, evenly chosen, with the most similar images
    of the gallery. spectrum.png, map.png: of the embeddings of all queries. queries, gallery: such as test and training
    images, none in both; their features are pooled embeddings of the same encoders. classes: names of the labels, ()
    without.
    """
    grid = patch_grid(examples.images, examples.patch_size)
    chosen = np.linspace(0, len(queries.images) - 1, min(QUERIES, len(queries.images))).round().astype(np.int64)
    figures: dict[str, Figure] = {"curves": training_curves(metrics)}
    if examples.masks:
        figures["masks"] = mask_examples(examples.images, examples.masks[0], examples.patch_size)
        figures["coverage"] = coverage(examples.masks, grid)
    if examples.views is not None:
        figures["views"] = view_examples(*examples.views)
    figures |= {
        "patches": patch_colours(examples.images, examples.features, examples.patch_size),
        "neighbours": nearest_neighbours(queries.take(chosen), gallery, classes),
        "spectrum": spectrum(queries.features),
        "map": embedding_map(queries),
    }
    return [save(figure, folder / f"{name}.png") for name, figure in figures.items()]
