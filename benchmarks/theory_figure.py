"""The figure of docs/theory.md."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from cjepa.visualization.style import FAINT, look, new_figure, save, styled

PANELS = {
    "stop-gradient": "Fixed predictor λ, stop-gradient",
    "no stop-gradient": "Fixed predictor λ, no stop-gradient",
    "no predictor": "No predictor (λ = 1)",
    "moving average": "Fixed predictor, moving-average target of rate k",
    "predictor that learns": "Predictor that learns, from λ = 0.3",
    "VICReg's variance": "Dying modes with VICReg's variance term",
    "VICReg's covariance": "VICReg on two nearly equal dimensions",
}

_RAISED = {"no predictor": 0.35, "predictor that learns": 0.75, "VICReg's variance": 0.35, "VICReg's covariance": 1e4}
"""Panels whose courses leave no place for their names: room above them."""


@styled
def draw(curves: Sequence[dict[str, Any]], path: Path) -> None:
    """All courses: lines are closed forms or, dashed, integrated; dots are trained networks."""
    figure = new_figure(11.0, "The paper's linear dynamics, and what a moving average and VICReg change")
    panels = figure.subplots(4, 2).ravel()
    for axes, (panel, title) in zip(panels, PANELS.items(), strict=False):
        _panel(axes, [curve for curve in curves if curve["panel"] == panel])
        axes.set_title(title)
        axes.set_ylabel("smaller eigenvalue" if panel == "VICReg's covariance" else "amplitude w")
    panels[-1].set_axis_off()
    key = [
        Line2D([], [], color=FAINT, label="closed form"),
        Line2D([], [], color=FAINT, linestyle="--", label="integrated (no closed form)"),
        Line2D([], [], color=FAINT, linestyle="", marker="o", markersize=4, label="trained on random batches"),
    ]
    panels[-1].legend(handles=key, loc="center left")
    save(figure, path)


def _panel(axes: Axes, curves: Sequence[dict[str, Any]]) -> None:
    if curves[0]["panel"] == "VICReg's covariance":
        axes.set_yscale("symlog", linthresh=1e-4)
    for index, curve in enumerate(curves):
        colour, _ = look(index)
        closed = curve["closed"] is not None
        line = curve["closed"] if closed else curve["integrated"]
        axes.plot(curve["times"], line, color=colour, linestyle="-" if closed else "--", label=curve["label"])
        axes.plot(curve["times"][::4], curve["trained"][::4], color=colour, linestyle="", marker="o", markersize=3.5)
    axes.grid(visible=True, axis="y")
    axes.set_axisbelow(True)
    axes.set_xlabel("time: steps × learning rate", labelpad=2)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + _RAISED.get(curves[0]["panel"], 0.0))
    axes.legend(fontsize=7.5)
