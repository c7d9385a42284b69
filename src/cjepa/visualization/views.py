"""The two views of single images that an objective compares."""

from jaxtyping import UInt8
from matplotlib.figure import Figure
from torch import Tensor

from cjepa.visualization.style import picture_rows, pixels, show_image, styled

MOST_EXAMPLES = 6


@styled
def view_examples(first: UInt8[Tensor, "n 3 H W"], second: UInt8[Tensor, "n 3 H W"]) -> Figure:
    """Both views of each image below each other, as they are cropped and coloured; at most the first 6 images."""
    count = min(len(first), MOST_EXAMPLES)
    size = (first.shape[2], first.shape[3])
    detail = f"{size[0]} × {size[1]} pixels"
    labels = [("one view", detail), ("the other", detail)]
    figure, axes = picture_rows("Two views of the same images: what is compared", labels, count, size)
    for row, views in zip(axes, (first, second), strict=True):
        for place, picture in zip(row, pixels(views[:count]), strict=True):
            show_image(place, picture)
    return figure
