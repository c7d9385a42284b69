"""Figures of the study: curves of the methods over training, and where runs collapse."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from benchmarks.study_plan import PARTS, StudyPart
from benchmarks.study_results import Result
from cjepa.visualization.style import look, new_figure, save, styled

FOLDER = Path(__file__).parents[1] / "docs" / "images"
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
            drawn.append(save(phases(part, own), FOLDER / f"study-{part.name}.png"))
        elif own and part.name.startswith("convergence"):
            drawn.append(save(curves(part, own), FOLDER / f"study-{part.name}.png"))
    return drawn


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
def phases(part: StudyPart, own: Sequence[Result]) -> Figure:
    """Effective rank at the end over that of the untrained encoder, for each setting and each regulariser."""
    groups = list(dict.fromkeys(condition.group for condition in part.conditions))
    names = list(dict.fromkeys(condition.name for condition in part.conditions))
    found = {(result["condition"], result["group"]): result for result in own}
    ratios = np.full((len(names), len(groups)), np.nan)
    figure = new_figure(6.4, "Effective rank after training as a share of the untrained encoder's")
    axes = figure.subplots()
    for row, name in enumerate(names):
        for column, group in enumerate(groups):
            result = found.get((name, group))
            if result is None:
                continue
            first, last = result["curve"][0]["effective_rank"], result["curve"][-1]["effective_rank"]
            ratios[row, column] = np.log2(max(last, 1.0) / first)
            mark = {"diverged": ", diverged"}.get(result["outcome"], "")
            mark = ", collapse" if result["verdict"] == "collapse" else mark
            axes.text(column, row, f"{last:.1f} of {first:.1f}{mark}", ha="center", va="center", fontsize=8.5)
    limit = max(1.0, float(np.nanmax(np.abs(ratios), initial=1.0)))
    image = axes.imshow(ratios, cmap="RdBu", norm=TwoSlopeNorm(0.0, -limit, limit), aspect="auto", alpha=0.75)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_yticks(range(len(names)), names)
    figure.colorbar(image, ax=axes, label="doublings of the effective rank")
    return figure
