"""Training curves: what every run learned and what it minimised, as small multiples on shared axes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from cjepa.visualization.style import FAINT, LineStyle, look, new_figure, plain, styled

Row = Mapping[str, Any]
FloatArray = npt.NDArray[np.float64]

MOST_POINTS = 150
"""A longer curve is drawn as the means of this many stretches, its band from their 10th to 90th percentile."""
WINDOW = 5
"""Rows that a point of a shorter training curve is the mean of: a row is one batch, and noisy."""
FEW_POINTS = 30
"""Up to so many points each has a marker."""
LOGARITHMIC = 30.0
"""Positive values whose largest is this many times the smallest are drawn on a logarithmic axis."""
COLUMNS = 3
LABEL_DISTANCE = 0.1
"""Between two numbers at the right edge, as a share of the panel's height."""
_DASHES = (4.0, 3.0)


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
class Curve:
    """One value of one run, as it is drawn: the line, and what it was averaged from."""

    steps: FloatArray
    line: FloatArray
    raw: tuple[FloatArray, FloatArray] | None = None
    """Steps and values of single rows, where the line is their running mean."""
    band: tuple[FloatArray, FloatArray] | None = None
    """10th and 90th percentile, where the line is the mean of stretches."""

    @property
    def last(self) -> float:
        """The last finite value of the line."""
        return float(self.line[np.isfinite(self.line)][-1])

    @property
    def values(self) -> FloatArray:
        """Every finite value that has to be in sight."""
        parts = [self.line, *(self.raw or ())[1:], *(self.band or ())]
        joined = np.concatenate(parts)
        return joined[np.isfinite(joined)]


@styled
def training_curves(rows: Mapping[str, Sequence[Row]]) -> Figure:
    """Curves of one or several runs against the step, one panel for each value that any of them has.

    rows: the rows of metrics.jsonl by name of the run, as `read_metrics` gives them; NaN leaves a gap. The last
    value of each line stands at its right; the dashed line is the value before training. Training curves are running
    means over 5 rows, or means of 150 stretches where a run has more rows.
    """
    curves = {panel: {run: curve(panel, of_run) for run, of_run in rows.items()} for panel in PANELS}
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
        _draw(axes, panel, curves[panel])
        if line == len(sizes) - 1:
            axes.set_xlabel("step")
    shown = [curve for panel in panels for curve in curves[panel].values() if curve]
    _legend(figure, list(rows), shown, any(panel.baseline for panel in panels))
    return figure


def row_sizes(panels: int) -> list[int]:
    """How many of the panels go into each row: at most COLUMNS, as even as can be, so that no place stays empty."""
    lines = math.ceil(panels / COLUMNS)
    return [panels // lines + (line < panels % lines) for line in range(lines)]


def curve(panel: Panel, rows: Sequence[Row]) -> Curve | None:
    """The curve of a value in the rows of a run; None if it has no finite one."""
    own = [row for row in rows if row["split"] == panel.split and panel.key in row]
    steps = np.array([row["step"] for row in own], dtype=np.float64)
    values = np.array([row[panel.key] for row in own], dtype=np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        return None
    if finite.sum() > MOST_POINTS:
        mean, low, high = condense(values[finite])
        return Curve(condense(steps[finite])[0], mean, band=(low, high))
    if panel.split == "train" and finite.all() and len(values) >= 2 * WINDOW:
        return Curve(steps, running_mean(values), raw=(steps, values))
    return Curve(steps, values)


def condense(values: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean, 10th and 90th percentile of MOST_POINTS stretches of more than that many finite values."""
    stretches = np.array_split(values, MOST_POINTS)
    low, high = np.array([np.percentile(stretch, [10, 90]) for stretch in stretches]).T
    return np.array([stretch.mean() for stretch in stretches]), low, high


def running_mean(values: FloatArray) -> FloatArray:
    """The mean of each value, those before it and those after it, WINDOW in all, fewer at both ends."""
    half = WINDOW // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first = np.maximum(np.arange(len(values)) - half, 0)
    end = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (sums[end] - sums[first]) / (end - first)


def spread(heights: Sequence[float], distance: float) -> list[float]:
    """The nearest heights within [0, 1], in the same order, that are at least `distance` apart."""
    order = np.argsort(heights, kind="stable")
    ladder = distance * np.arange(len(heights))
    # Without the ladder the condition is that values ascend: pool neighbours that do not (isotonic regression).
    pools: list[list[float]] = []
    for value in np.asarray(heights, dtype=np.float64)[order] - ladder:
        pools.append([float(value)])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    ascending = np.concatenate([np.full(len(pool), np.mean(pool)) for pool in pools])
    result = np.empty(len(heights))
    result[order] = ascending.clip(0.0, 1.0 - ladder[-1]) + ladder
    return [float(height) for height in result]


def _limits(rows: Mapping[str, Sequence[Row]]) -> tuple[float, float]:
    """The same steps in all panels."""
    last = max(_last_step(rows), 1)
    return -0.02 * last, 1.02 * last


def _last_step(rows: Mapping[str, Sequence[Row]]) -> int:
    return max(int(row["step"]) for run in rows.values() for row in run)


def _draw(axes: Axes, panel: Panel, curves: Mapping[str, Curve | None]) -> None:
    axes.set_title(panel.title)
    axes.grid(visible=True, axis="y")
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step / 1000:g}k" if step >= 10000 else f"{step:g}"))
    shown = [(*look(index), curve) for index, curve in enumerate(curves.values()) if curve is not None]
    for colour, line, curve in shown:
        _draw_curve(axes, curve, colour, line)
    _scale(axes, np.concatenate([curve.values for _, _, curve in shown]))
    labels = [(colour, "bold", curve.last) for colour, _, curve in shown]
    untrained = {colour: curve.line[0] for colour, _, curve in shown if panel.baseline and curve.steps[0] == 0}
    if len(set(untrained.values())) == 1:  # the usual case: the same initialisation
        untrained = {FAINT: next(iter(untrained.values()))}
        labels.append((FAINT, "normal", untrained[FAINT]))
    for colour, level in untrained.items():
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
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if values.max() < 200 * values.min() else (1.0,)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _label(axes: Axes, labels: list[tuple[str, str, float]]) -> None:
    """Numbers at the right edge, beside their lines, moved apart where they would overlap."""
    if (len(labels) - 1) * LABEL_DISTANCE > 1:
        return  # too many to be told apart
    to_share = axes.transData + axes.transAxes.inverted()
    axes.get_ylim()  # matplotlib settles the limits only when asked
    heights = [float(to_share.transform((0.0, value))[1]) for _, _, value in labels]
    for (colour, weight, value), height in zip(labels, spread(heights, LABEL_DISTANCE), strict=True):
        axes.annotate(
            number(value),
            (1.0, height),
            xycoords="axes fraction",
            xytext=(4, 0),
            textcoords="offset points",
            color=colour,
            fontsize=9,
            fontweight=weight,
            va="center",
        )


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:#.3g}".removesuffix(".").replace("-", "\N{MINUS SIGN}")


def _title(rows: Mapping[str, Sequence[Row]]) -> str:
    if len(rows) == 1:
        return f"Training curves of {plain(next(iter(rows)))}, {_last_step(rows)} steps"
    return f"Training curves of {len(rows)} runs, up to {_last_step(rows)} steps"


def _legend(figure: Figure, runs: Sequence[str], curves: Sequence[Curve], baseline: bool) -> None:
    handles: list[Artist] = []
    for index, run in enumerate(runs):
        colour, line = look(index)
        handles.append(Line2D([], [], color=colour, linestyle=line, label=plain(run)))
    if baseline:
        handles.append(Line2D([], [], color=FAINT, dashes=_DASHES, linewidth=1, label="before training"))
    if any(curve.raw is not None for curve in curves):
        handles.append(Line2D([], [], color=FAINT, alpha=0.5, linewidth=0.8, label="single batches"))
    if any(curve.band is not None for curve in curves):
        handles.append(Patch(color=FAINT, alpha=0.3, linewidth=0, label="10th to 90th percentile"))
    columns = 3 if max(len(run) for run in runs) > 20 else 5
    figure.legend(handles=handles, loc="outside lower left", ncols=min(columns, len(handles)))


def _nothing_yet(runs: int) -> Figure:
    figure = new_figure(1.2, "Training curves")
    figure.text(0.01, 0.35, f"no values yet in the metrics of {runs} run{'' if runs == 1 else 's'}", color=FAINT)
    return figure
