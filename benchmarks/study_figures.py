"""Figures of the study: curves of the methods over training, and where runs collapse."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.study_plan import PARTS, StudyPart
from benchmarks.study_results import Result
from cjepa.visualization.style import look, new_figure, save, styled

FOLDER = Path(__file__).parents[1] / "docs" / "images"
TEACHERS = ("EMA 0.99", "EMA 0", "no stop-gradient")
"""Settings whose course and spectra are drawn."""
_SMALLEST = 1e-4
"""Of the largest standard deviation or of the start; the axis of the spectra ends here."""
_MOST = 2.0
"""Doublings or halvings at which the colours of the phase diagram end."""
PANELS = {"knn_20_centred": "20-NN, centred, %", "linear": "linear, %", "effective_rank": "effective rank"}


def link(part: str) -> str:
    """The figure of a part as docs/ sees it."""
    return f"images/study-{part}.png"


def draw(results: Mapping[str, Result]) -> list[Path]:
    """The figure of every part that has results; their paths."""
    drawn = []
    for part in PARTS:
        own = [result for result in results.values() if result["part"] == part.name and result.get("curve")]
        if own and part.name == "collapse":
            drawn.append(_saved(phases(part, own), FOLDER / f"study-{part.name}.png"))
            drawn.append(_saved(spectra(part, own), FOLDER / f"study-{part.name}-spectra.png"))
        elif own and part.name.startswith("convergence"):
            drawn.append(_saved(curves(part, own), FOLDER / f"study-{part.name}.png"))
    return drawn


def _saved(figure: Figure, path: Path) -> Path:
    """A PNG with a palette of 128 colours, which is a third as large."""
    with Image.open(save(figure, path)) as picture:
        small = picture.convert("RGB").quantize(128)
    small.save(path, optimize=True)
    return path


@styled
def curves(part: StudyPart, own: Sequence[Result]) -> Figure:
    """Mean over seeds of every method over the images seen, with the range of the seeds."""
    figure = new_figure(5.4, part.recipe.title)
    axes = figure.subplots(1, len(PANELS))
    for place, (measure, title) in enumerate(PANELS.items()):
        for index, condition in enumerate(part.conditions):
            runs = [result["curve"] for result in own if result["condition"] == condition.name]
            if runs:
                _band(axes[place], runs, measure, condition.name, index)
        axes[place].set_title(title)
        axes[place].set_xlabel("images seen, thousands")
        axes[place].grid(visible=True)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def _band(axes: Axes, runs: Sequence[list[Result]], measure: str, name: str, index: int) -> None:
    shared = min(map(len, runs))
    usable = [column for column in range(shared) if all(run[column].get(measure) is not None for run in runs)]
    images = [runs[0][column]["images"] / 1000 for column in usable]
    found = [[float(run[column][measure]) for run in runs] for column in usable]
    colour, line = look(index)
    axes.plot(images, [statistics.mean(each) for each in found], color=colour, linestyle=line, label=name)
    if len(runs) > 1:
        axes.fill_between(images, [min(each) for each in found], [max(each) for each in found], color=colour, alpha=0.1)


@styled
def spectra(part: StudyPart, own: Sequence[Result]) -> Figure:
    """Above: effective rank while a run trains. Below: the spectrum of its embeddings at the end."""
    groups = list(dict.fromkeys(condition.group for condition in part.conditions))
    figure = new_figure(6.6, "Effective rank over training, and the spectrum of the embeddings at its end")
    axes = figure.subplots(2, len(TEACHERS), sharey="row")
    for column, name in enumerate(TEACHERS):
        for index, group in enumerate(groups):
            for result in (each for each in own if (each["condition"], each["group"]) == (name, group)):
                colour, line = look(index)
                images = [row["images"] / 1000 for row in result["curve"]]
                ranks = [row["effective_rank"] for row in result["curve"]]
                axes[0, column].plot(images, ranks, color=colour, linestyle=line, label=group)
                values = np.array(result["spectrum"])
                shares = np.clip(values / (values[0] or 1.0), _SMALLEST, None)
                axes[1, column].semilogy(np.arange(1, len(values) + 1), shares, color=colour, linestyle=line)
        axes[0, column].set_title(name)
        axes[0, column].set_xlabel("images seen, thousands")
        axes[1, column].set_xlabel("principal axis")
    axes[0, 0].set_ylabel("effective rank")
    axes[1, 0].set_ylabel("standard deviation / largest")
    handles = {
        label: handle for each in axes[0] for handle, label in zip(*each.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
    return figure


@styled
def phases(part: StudyPart, own: Sequence[Result]) -> Figure:
    """Effective rank and spread at the end over those of the untrained encoder, by setting and regulariser.

    Both are needed: embeddings that have shrunk to one point still differ in their last digits, in many dimensions.
    """
    groups = list(dict.fromkeys(condition.group for condition in part.conditions))
    found = {(result["condition"], result["group"]): result for result in own}
    run = {name for name, _ in found}
    names = [name for name in dict.fromkeys(condition.name for condition in part.conditions) if name in run]
    figure = new_figure(
        2.4 + 0.35 * len(names),
        "After training, as a share of the untrained encoder's; c: the run's verdict was collapse",
    )
    axes = figure.subplots(1, 2, sharey=True)
    for place, (measure, title) in enumerate({"effective_rank": "effective rank", "spread": "spread"}.items()):
        doublings = np.full((len(names), len(groups)), np.nan)
        for row, name in enumerate(names):
            for column, group in enumerate(groups):
                if (result := found.get((name, group))) is not None:
                    share = result["curve"][-1][measure] / result["curve"][0][measure]
                    doublings[row, column] = np.log2(max(share, _SMALLEST))
                    text = "diverged" if result["outcome"] == "diverged" else f"{100 * share:.0f} %"
                    text += " c" if result["verdict"] == "collapse" else ""
                    axes[place].text(column, row, text, ha="center", va="center", fontsize=8.5)
        image = axes[place].imshow(
            doublings, cmap="RdBu", norm=TwoSlopeNorm(0.0, -_MOST, _MOST), aspect="auto", alpha=0.7
        )
        axes[place].set_title(title)
        labels = [group.replace(" on ", "\non ").replace(", ", ",\n") for group in groups]
        axes[place].set_xticks(range(len(groups)), labels, rotation=40, ha="right")
    axes[0].set_yticks(range(len(names)), names)
    figure.colorbar(image, ax=axes, label="doublings")
    return figure
