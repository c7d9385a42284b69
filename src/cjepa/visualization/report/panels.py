"""The small plots of a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Float64
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from torch import Tensor

from cjepa.visualization.curves import Panel, draw_panel, number
from cjepa.visualization.report.runs import (
    AXES,
    Axis,
    Group,
    Split,
    against,
    curve_of,
    loss_terms,
    probe_curve,
    probe_protocol,
    speed_curve,
)
from cjepa.visualization.report.svg import small_figure, to_svg
from cjepa.visualization.series import Curve
from cjepa.visualization.style import bare, logarithmic, look, styled

_MARGINS = (0.135, 0.185, 0.705, 0.775)
"""Left, bottom, width, height of the axes in a small figure."""
_HEAT_SIZE = (4.2, 3.4)
_WRITTEN = 10
_FLOOR = 1e-6
_FEW = 10

MOST_BANDS = 5
"""More runs than this are drawn as lines alone: bands would hide each other, and fill the page."""

Line = tuple[Group, Curve]


@dataclass(frozen=True)
class Value:
    """A value to be drawn: where it stands in the rows, its title, what a reader should know."""

    split: Split
    key: str
    title: str
    hint: str
    baseline: bool = False


@dataclass(frozen=True)
class Plot:
    """A finished panel: its title, a hint, and an SVG for each axis that can be drawn (one key "" for no axis)."""

    title: str
    hint: str
    pictures: Mapping[str, Markup]


ACCURACY = (
    Value(
        "evaluation", "knn_20_centred", "20-NN accuracy, centred (%)", "higher is better; dashed: before training", True
    ),
    Value("evaluation", "knn_20", "20-NN accuracy (%)", "higher is better; dashed: before training", True),
    Value("evaluation", "linear", "Linear probe accuracy (%)", "a fixed probe while training; dashed: before", True),
    Value("evaluation", "crop_retrieval", "Image found by another crop (%)", "higher is better; needs no labels", True),
)
REPRESENTATION = (
    Value("evaluation", "effective_rank", "Effective rank", "dimensions that the embeddings really use", True),
    Value("evaluation", "explained_variance", "Explained target variance", "1: perfect; 0: knows positions only"),
    Value("evaluation", "spread", "Spread of the embeddings", "near 0: all images get the same embedding", True),
    Value("evaluation", "std_mean", "Mean standard deviation", "of a dimension over images", True),
    Value("evaluation", "std_smallest", "Smallest standard deviation", "0: dead dimensions", True),
)
OPTIMISATION = (
    Value("train", "gradient_norm", "Gradient norm", "before clipping; spikes: lower the learning rate"),
    Value("train", "learning_rate", "Learning rate", "a schedule: warm-up, then cosine"),
    Value("train", "weight_decay", "Weight decay", "a schedule"),
    Value("train", "momentum", "Momentum of the target encoder", "a schedule; 1: the target stands still"),
    Value("train", "skipped", "Skipped steps", "loss or gradient was not finite"),
)
_TERMS = {
    "prediction": "Prediction loss",
    "similarity": "Similarity term",
    "variance": "Variance term",
    "covariance": "Covariance term",
    "cosine": "Cosine term",
    "sigreg": "SIGReg term",
}


def curve_sections(groups: Sequence[Group]) -> list[tuple[str, list[Plot]]]:
    """All curves that any run has, by heading; without those that no run has."""
    accuracy = [_lines(groups, value) for value in ACCURACY]
    protocol = probe_protocol(groups)
    probe = [(group, curve) for group in groups if (curve := probe_curve(group, protocol)) is not None]
    speed = [(group, curve) for group in groups if (curve := speed_curve(group)) is not None]
    probed = Value(
        "evaluation", "evaluated", "Linear evaluation (%)", "by cjepa evaluate linear; dashed: untrained", True
    )
    timed = Value("train", "images_per_second", "Images per second", "evaluations and pauses included")
    sections = {
        "Accuracy": [*zip(ACCURACY, accuracy, strict=True), (probed, probe)],
        "Representation": [(value, _lines(groups, value)) for value in REPRESENTATION],
        "Loss": _losses(groups),
        "Optimisation": [*((value, _lines(groups, value)) for value in OPTIMISATION), (timed, speed)],
    }
    return [
        (title, plots)
        for title, values in sections.items()
        if (plots := [_plot(groups, value, lines) for value, lines in values if lines])
    ]


def _losses(groups: Sequence[Group]) -> list[tuple[Value, list[Line]]]:
    total = Value("train", "loss", "Total loss", "what is minimised; a falling loss is no proof of learning")
    found = [(total, _lines(groups, total))]
    for term in loss_terms(groups):
        name = _TERMS.get(term, term)
        if all(run.weights.get(term, 1.0) == 1.0 for group in groups for run in group.runs):
            once = Value("train", term, f"{name}, weight 1", "as the objective measures it, and its share in the total")
            found.append((once, _lines(groups, once)))
            continue
        plain = Value("train", term, f"{name}, unweighted", "as the objective measures it")
        weighted = Value("train", term, f"{name}, weighted", "its share in the total loss")
        found += [(plain, _lines(groups, plain)), (weighted, _lines(groups, weighted, weighted=True))]
    return found


def _lines(groups: Sequence[Group], value: Value, weighted: bool = False) -> list[Line]:
    pairs = [(group, curve_of(group, value.split, value.key, weighted)) for group in groups]
    found = [(group, curve) for group, curve in pairs if curve is not None]
    return [] if value.key == "skipped" and not any(curve.line.any() for _, curve in found) else found


def _plot(groups: Sequence[Group], value: Value, lines: Sequence[Line]) -> Plot:
    pictures = {}
    for axis in AXES:
        shown = {group.name: against(curve, group, axis) for group, curve in lines}
        if not any(shown.values()):
            continue
        curves = {group.name: shown.get(group.name) for group in groups}
        name = f"{value.split}-{value.key}-{axis}" + ("-weighted" if value.title.endswith(", weighted") else "")
        figure = curve_figure(Panel(value.split, value.key, "", value.baseline), curves, axis)
        pictures[str(axis)] = to_svg(figure, name, describe(value.title, axis, curves))
    return Plot(value.title, value.hint, pictures)


@styled
def curve_figure(panel: Panel, curves: Mapping[str, Curve | None], axis: Axis) -> Figure:
    """One value of several runs in a small figure, coloured by the order of the runs."""
    if len(curves) > MOST_BANDS:
        curves = {name: curve and replace(curve, raw=None, band=None) for name, curve in curves.items()}
    figure = small_figure()
    axes = figure.add_axes(_MARGINS)
    ends = [curve.steps.max() for curve in curves.values() if curve is not None]
    last = max(*ends, 1e-9) if axis == "hours" else max(*ends, 1.0)
    axes.set_xlim(-0.02 * last, 1.02 * last)
    draw_panel(axes, panel, curves)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    digits = FuncFormatter(lambda value, _: f"{value / 1000:g}k" if value >= 10000 else f"{value:g}")
    axes.xaxis.set_major_formatter(digits)
    axes.set_xlabel({"steps": "step", "epochs": "epoch", "hours": "hours of training"}[axis], labelpad=2)
    return figure


def describe(title: str, axis: str, curves: Mapping[str, Curve | None]) -> str:
    """A curve in words: from where to where each run goes."""
    parts = [
        f"{name} from {number(float(curve.line[np.isfinite(curve.line)][0]))} to {number(curve.last)}"
        for name, curve in curves.items()
        if curve is not None
    ]
    return f"{title} against {axis}: {'; '.join(parts)}"


@styled
def spectrum_figure(values: Mapping[str, Sequence[Float[Tensor, "K"]]], label: str) -> Figure:
    """Descending values of each run on a logarithmic axis: of its last snapshot as a line, of its first one dotted."""
    figure = small_figure()
    axes = figure.add_axes(_MARGINS)
    lowest, highest, longest = np.inf, 0.0, 1
    for index, snapshots in enumerate(values.values()):
        colour, _ = look(index)
        for place, of_snapshot in enumerate(snapshots):
            ordered = np.sort(of_snapshot.double().numpy())[::-1]
            shown = ordered[ordered > _FLOOR * max(float(ordered[0]), 1e-12)]
            if not len(shown):
                continue
            style = "-" if place == len(snapshots) - 1 else ":"
            marker = "o" if len(shown) < _FEW else None
            axes.plot(np.arange(1, len(shown) + 1), shown, color=colour, linestyle=style, marker=marker, markersize=3)
            lowest, highest = min(lowest, float(shown[-1])), max(highest, float(shown[0]))
            longest = max(longest, len(ordered))
    if highest > 0:
        logarithmic(axes, lowest, highest)
        axes.set_ylim(0.8 * lowest, 1.25 * highest)
    axes.set_xlim(0, longest + 1)
    axes.grid(visible=True, axis="y")
    axes.set_axisbelow(True)
    axes.set_xlabel(label, labelpad=2)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return figure


@styled
def heat_figure(values: Float64[np.ndarray, "h w"], label: str) -> Figure:
    """A value of every patch of the image; patches without a value are left empty."""
    figure = small_figure(_HEAT_SIZE)
    axes = figure.add_axes((0.02, 0.04, 0.72, 0.92))
    largest = float(np.nanmax(values)) if np.isfinite(values).any() else 1.0
    picture = axes.imshow(values, cmap="cividis", vmin=0.0, vmax=largest or 1.0)
    bare(axes)
    if max(values.shape) <= _WRITTEN:
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                colour = "#fefefe" if value < 0.55 * largest else "#010101"  # not the page's white and black
                text = f"{value:.0f}" if largest >= 10 else f"{value:.2f}"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
    bar = figure.add_axes((0.77, 0.08, 0.035, 0.84))
    figure.colorbar(picture, cax=bar, label=label)
    return figure


@styled
def size_figure(sizes: Float64[np.ndarray, "n 2"]) -> Figure:
    """Height and width of images as points."""
    figure = small_figure()
    axes = figure.add_axes(_MARGINS)
    axes.scatter(sizes[:, 1], sizes[:, 0], s=14, color=look(0)[0], alpha=0.5, linewidths=0)
    axes.set_xlim(0, 1.08 * sizes[:, 1].max())
    axes.set_ylim(0, 1.08 * sizes[:, 0].max())
    axes.set_xlabel("width in pixels", labelpad=2)
    axes.set_ylabel("height")
    axes.grid(visible=True)
    axes.set_axisbelow(True)
    return figure
