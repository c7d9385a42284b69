"""How every picture looks: one width, dark on light, the colours of Okabe and Ito (2008) for colour-blind readers."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from jaxtyping import UInt8
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from torch import Tensor

WIDTH = 10.0
"""Inches; at DPI a picture is 1400 pixels wide, and its smallest text is still read at 1000."""
DPI = 140

LABEL_WIDTH = 1.3
"""Inches left of rows of pictures for their names."""
FEWEST_COLUMNS = 4

INK, FAINT = "#222222", "#6b6b6b"
RIGHT, WRONG = "#0072B2", "#D55E00"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LineStyle = Literal["-", "--", ":", "-."]
LINES: tuple[LineStyle, ...] = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

BESIDE: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
"""Arguments of an annotation that stands some points away from a place of its axes."""

styled = rc_context(
    {
        "font.family": ["DejaVu Sans"],
        "font.size": 10.0,
        "axes.titlesize": 10.0,
        "axes.labelsize": 9.0,
        "xtick.labelsize": 9.0,
        "ytick.labelsize": 9.0,
        "legend.fontsize": 10.0,
        "legend.frameon": False,
        "figure.titlesize": 12.0,
        "figure.titleweight": "bold",
        "figure.facecolor": "white",
        "axes.facecolor": "white",
        "savefig.facecolor": "white",
        "savefig.bbox": None,
        "text.color": INK,
        "text.usetex": False,
        "axes.labelcolor": INK,
        "axes.titlecolor": INK,
        "axes.edgecolor": FAINT,
        "xtick.color": FAINT,
        "ytick.color": FAINT,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
        "axes.grid": False,
        "grid.color": "#e4e4e4",
        "lines.linewidth": 1.8,
        "legend.handlelength": 2.6,
        "figure.constrained_layout.h_pad": 0.06,
        "figure.constrained_layout.w_pad": 0.06,
    }
)
"""Decorator: draw with these settings, whatever the user's matplotlibrc says."""


def new_figure(height: float, title: str) -> Figure:
    """An empty figure of this many inches in height with its title at the upper left."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left")
    return figure


@styled
def save(figure: Figure, path: Path) -> Path:
    """Write a PNG 1400 pixels wide, or an SVG where the name ends so, and return its path.

    Equal figures give equal bytes: no date, no version, no random names.
    """
    kind = path.suffix.lower().removeprefix(".") or "png"
    assert kind in ("png", "svg"), path
    unsaid: dict[str, Any] = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), rc_context({"svg.hashsalt": path.stem}):
        # Names of the user's files may hold characters that the font lacks: they become boxes, not a failure.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(path, format=kind, dpi=DPI, metadata=unsaid)
    return path


def look(index: int) -> tuple[str, LineStyle]:
    """Colour and line style of the index-th run or encoder."""
    return COLOURS[index % len(COLOURS)], LINES[index // len(COLOURS) % len(LINES)]


def plain(text: str, most: int = 40) -> str:
    """Text of the user as a label: one line, at most so many characters, without a meaning for matplotlib."""
    line = " ".join(text.split())
    if len(line) > most:
        head = most // 2
        line = f"{line[:head]}…{line[len(line) - (most - head - 1) :]}"
    # $ would begin a formula; labels that begin with _ are left out of legends.
    return (" " + line if line.startswith("_") else line).replace("$", r"\$")


def counted(count: int, noun: str) -> str:
    """A number of things: 1 image, 2 images."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def logarithmic(axes: Axes, low: float, high: float) -> None:
    """A logarithmic vertical axis for values from low to high, with plain numbers at its ticks."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 200.0 * low else (1.0,)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def pixels(images: UInt8[Tensor, "n 3 H W"]) -> UInt8[np.ndarray, "n H W 3"]:
    """Images as matplotlib wants them."""
    return np.ascontiguousarray(images.cpu().numpy().transpose(0, 2, 3, 1))


def patch_grid(images: UInt8[Tensor, "n 3 H W"], patch_size: int) -> tuple[int, int]:
    """Height and width of the images in patches."""
    height, width = images.shape[2:]
    assert height % patch_size == 0, f"patches of {patch_size} pixels do not divide a height of {height}"
    assert width % patch_size == 0, f"patches of {patch_size} pixels do not divide a width of {width}"
    return height // patch_size, width // patch_size


def show_image(axes: Axes, image: UInt8[np.ndarray, "H W 3"]) -> None:
    """An image without axes, its pixels as they are."""
    axes.imshow(image)
    bare(axes)


def bare(axes: Axes) -> None:
    """Take ticks and frame away."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def picture_rows(
    title: str, labels: Sequence[tuple[str, str]], count: int, size: tuple[int, int]
) -> tuple[Figure, npt.NDArray[np.object_]]:
    """A figure for `count` pictures of this height and width in each row, and its axes [rows, count].

    labels: of each row its name, and in small what is worth knowing. Few pictures keep to the left, not to grow huge.
    """
    columns = max(count, FEWEST_COLUMNS)
    height = (WIDTH - LABEL_WIDTH) / columns * size[0] / size[1]
    figure = new_figure(0.65 + len(labels) * (height + 0.04), title)
    grid = figure.add_gridspec(len(labels), columns, wspace=0.0, hspace=0.0)
    axes = np.array([[figure.add_subplot(grid[row, place]) for place in range(count)] for row in range(len(labels))])
    for first, (name, detail) in zip(axes[:, 0], labels, strict=True):
        first.annotate(name, (0, 0.5), xytext=(-8, 2), ha="right", va="bottom", fontweight="bold", **BESIDE)
        first.annotate(detail, (0, 0.5), xytext=(-8, -2), ha="right", va="top", fontsize=8.5, color=FAINT, **BESIDE)
    return figure, axes


def footnote(figure: Figure, text: str) -> None:
    """A line in small at the lower left."""
    figure.supxlabel(text, x=0.01, ha="left", fontsize=9, color=FAINT)


def picture_width(count: int) -> float:
    """Inches of each picture of `picture_rows`."""
    return (WIDTH - LABEL_WIDTH) / max(count, FEWEST_COLUMNS) - 0.12
