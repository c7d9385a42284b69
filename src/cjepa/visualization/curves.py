"""Training curves: what every run learned and what it minimised, as small multiples on shared axes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from cjepa.visualization.series import Curve, FloatArray, Row, read_curve, spread
from cjepa.visualization.style import FAINT, LineStyle, counted, logarithmic, look, new_figure, plain, styled

FEW_POINTS = 30
"""Up to so many points each has a marker."""
LOGARITHMIC = 30.0
"""Positive values whose largest is this many times the smallest are drawn on a logarithmic axis."""
COLUMNS = 3
LABEL_DISTANCE = 0.1
"""Between two numbers at the right edge, as a share of the panel's height."""
_CONSTANT = 1e-6
"""Values that differ by less than this share of their size are drawn as a level line, not as rounding errors."""
_DASHES = (4.0, 3.0)
FLOORS = {"explained_variance": -1.0}
"""Values without a lower end that means anything: what is below is out of the picture, its number stays."""


@dataclass(frozen=True)
class Panel:
    """One value of the metrics; `baseline` draws its level before training as a dashed line."""

    split: Literal["train", "evaluation"]
    key: str
    title: str
    baseline: bool = False


PANELS = (
    Panel("evaluation", "knn_20", "20-NN accuracy (%)", baseline=True),
    Panel("evaluation", "knn_20_centred", "20-NN accuracy, centred features (%)", baseline=True),
    Panel("evaluation", "linear", "Linear probe accuracy (%)", baseline=True),
    Panel("evaluation", "crop_retrieval", "Image found by another crop (%)", baseline=True),
    Panel("evaluation", "effective_rank", "Effective rank", baseline=True),
    Panel("evaluation", "explained_variance", "Explained target variance"),
    Panel("train", "prediction", "Prediction loss"),
    Panel("train", "similarity", "Similarity term, unweighted"),
    Panel("train", "variance", "Variance term, unweighted"),
    Panel("train", "covariance", "Covariance term, unweighted"),
    Panel("train", "cosine", "Cosine term, unweighted"),
    Panel("train", "sigreg", "SIGReg term, unweighted"),
    Panel("train", "gradient_norm", "Gradient norm"),
)
"""Everything that is drawn, in this order, where a run has it."""


@dataclass(frozen=True)
class _Label:
    value: float
    colour: str
    weight: str = "normal"
    after: str = ""


@styled
def training_curves(rows: Mapping[str, Sequence[Row]]) -> Figure:
    """Curves of one or several runs against the step, one panel for each value that any of them has.

    rows: the rows of metrics.jsonl by name of the run, as `read_metrics` gives them; NaN leaves a gap. The last
    value of each line stands at its right; the dashed line is the value before training. Training curves are running
    means over 5 rows, or means of 150 stretches where a run has more rows.
    """
    curves = {
        panel: {run: read_curve(of_run, panel.split, panel.key) for run, of_run in rows.items()} for panel in PANELS
    }
    panels = [panel for panel in PANELS if any(curves[panel].values())]
    if not panels:
        return _nothing_yet(len(rows))
    sizes = row_sizes(len(panels))
    figure = new_figure(0.9 + 2.1 * len(sizes), _title(rows))
    grid = figure.add_gridspec(len(sizes), math.lcm(*sizes))
    places = [(line, column, size) for line, size in enumerate(sizes) for column in range(size)]
    for panel, (line, column, size) in zip(panels, places, strict=True):
        span = math.lcm(*sizes) // size
        axes = figure.add_subplot(grid[line, column * span : (column + 1) * span])
        axes.set_xlim(*_limits(rows))
        draw_panel(axes, panel, curves[panel])
        if line == len(sizes) - 1:
            axes.set_xlabel("step")
    _legend(figure, list(rows), panels, [curve for panel in panels for curve in curves[panel].values() if curve])
    return figure


def row_sizes(panels: int) -> list[int]:
    """How many of the panels go into each row: at most COLUMNS, as even as can be, so that no place stays empty."""
    lines = math.ceil(panels / COLUMNS)
    return [panels // lines + (line < panels % lines) for line in range(lines)]


def _limits(rows: Mapping[str, Sequence[Row]]) -> tuple[float, float]:
    """The same steps in all panels."""
    last = max(_last_step(rows), 1)
    return -0.02 * last, 1.02 * last


def _last_step(rows: Mapping[str, Sequence[Row]]) -> int:
    return max(int(row["step"]) for run in rows.values() for row in run)


def draw_panel(axes: Axes, panel: Panel, curves: Mapping[str, Curve | None]) -> None:
    """The curves of one value, coloured by their order, with their last values and the level before training."""
    axes.set_title(panel.title)
    axes.grid(visible=True, axis="y")
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step / 1000:g}k" if step >= 10000 else f"{step:g}"))
    shown = [(*look(index), curve) for index, curve in enumerate(curves.values()) if curve is not None]
    for colour, line, curve in shown:
        _draw_curve(axes, curve, colour, line)
    values = np.concatenate([curve.values for _, _, curve in shown])
    _scale(axes, values)
    floor = FLOORS.get(panel.key)
    if floor is not None and values.min() < floor:
        axes.set_ylim(floor, max(float(values.max()), 0.0) + 0.1)
    labels = [_Label(curve.last, colour, "bold", " → NaN" if curve.lost else "") for colour, _, curve in shown]
    levels = [(curve.untrained, colour) for colour, _, curve in shown if panel.baseline and curve.untrained is not None]
    if len({level for level, _ in levels}) == 1:  # the usual case: the same initialisation
        levels = [(levels[0][0], FAINT)]
        labels.append(_Label(*levels[0]))
    for level, colour in levels:
        axes.axhline(level, color=colour, dashes=_DASHES, linewidth=1)
    _label(axes, labels)


def _draw_curve(axes: Axes, curve: Curve, colour: str, line: LineStyle) -> None:
    if curve.band is not None:
        axes.fill_between(curve.steps, *curve.band, color=colour, alpha=0.2, linewidth=0)
    if curve.raw is not None:
        axes.plot(*curve.raw, color=colour, alpha=0.3, linewidth=0.8)
    few = curve.raw is None and len(curve.steps) <= FEW_POINTS
    axes.plot(curve.steps, curve.line, color=colour, linestyle=line, marker="o" if few else None, markersize=3.5)


def _scale(axes: Axes, values: FloatArray) -> None:
    if values.min() > 0 and values.max() > LOGARITHMIC * values.min():
        logarithmic(axes, values.min(), values.max())
    elif np.ptp(values) < _CONSTANT * np.abs(values).max():
        margin = 0.1 * np.abs(values).max()
        axes.set_ylim(values.min() - margin, values.max() + margin)


def _label(axes: Axes, labels: list[_Label]) -> None:
    """Numbers at the right edge, beside their lines, moved apart where they would overlap."""
    if (len(labels) - 1) * LABEL_DISTANCE > 1:
        return  # too many to be told apart
    to_share = axes.transData + axes.transAxes.inverted()
    axes.get_ylim()  # matplotlib settles the limits only when asked
    heights = [float(to_share.transform((0.0, label.value))[1]) for label in labels]
    for label, height in zip(labels, spread(heights, LABEL_DISTANCE), strict=True):
        axes.annotate(
            number(label.value) + label.after,
            (1.0, height),
            xycoords="axes fraction",
            xytext=(4, 0),
            textcoords="offset points",
            color=label.colour,
            fontsize=9,
            fontweight=label.weight,
            va="center",
        )


def number(value: float) -> str:
    """Three significant digits; two where there is an exponent."""
    text = f"{value:#.3g}".removesuffix(".")
    return (f"{value:.1e}" if "e" in text else text).replace("-", "\N{MINUS SIGN}")


def _title(rows: Mapping[str, Sequence[Row]]) -> str:
    runs = plain(next(iter(rows))) if len(rows) == 1 else f"{len(rows)} runs"
    return f"Training curves of {runs} to step {_last_step(rows)}"


def _legend(figure: Figure, runs: Sequence[str], panels: Sequence[Panel], curves: Sequence[Curve]) -> None:
    handles: list[Artist] = []
    for index, run in enumerate(runs):
        colour, line = look(index)
        handles.append(Line2D([], [], color=colour, linestyle=line, label=plain(run)))
    if any(panel.baseline for panel in panels) and any(curve.untrained is not None for curve in curves):
        handles.append(Line2D([], [], color=FAINT, dashes=_DASHES, linewidth=1, label="before training"))
    if any(curve.raw is not None for curve in curves):
        handles.append(Line2D([], [], color=FAINT, alpha=0.5, linewidth=0.8, label="single batches"))
    if any(curve.band is not None for curve in curves):
        handles.append(Patch(color=FAINT, alpha=0.3, linewidth=0, label="10th to 90th percentile"))
    columns = 3 if max(len(run) for run in runs) > 20 else 5
    figure.legend(handles=handles, loc="outside lower left", ncols=min(columns, len(handles)))


def _nothing_yet(runs: int) -> Figure:
    figure = new_figure(1.2, "Training curves")
    figure.text(0.01, 0.35, f"no values yet in the metrics of {counted(runs, 'run')}", color=FAINT)
    return figure
