"""The figure of one traced step: when which part of it ran, and what kind of operation kept the threads busy."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from cjepa.visualization.style import FAINT, look, new_figure, save, styled

Span = tuple[float, float]
"""Begin and duration in milliseconds since the step began."""
_LOW = -0.8
"""Where names of parts stand, in lanes."""
_VISIBLE = 6000
"""Parts of a step's time below which a gap cannot be seen: spans as near as that are drawn as one."""


@styled
def draw(title: str, phases: Mapping[str, Span], lanes: Mapping[str, Sequence[Span]], path: Path) -> None:
    """Parts of the step side by side, and below them a lane for each kind of operation."""
    figure = new_figure(4.6, title)
    axes = figure.subplots()
    end = max(begin + lasted for begin, lasted in phases.values())
    for row, spans in enumerate(lanes.values()):
        colour = look(row)[0] if row < len(lanes) - 1 else FAINT
        axes.broken_barh(merged(spans, end / _VISIBLE), (row - 0.36, 0.72), facecolors=colour, linewidth=0)
    busy = [f"{kind}  {100 * sum(lasted for _, lasted in spans) / end:.0f} %" for kind, spans in lanes.items()]
    axes.set_yticks(range(len(lanes)), busy)
    axes.set_ylim(len(lanes) - 0.4, -2.4)
    axes.set_xlim(0, end)
    axes.set_xlabel("milliseconds since the step began")
    _name(axes, phases, end)
    save(figure, path)


def _name(axes: Axes, phases: Mapping[str, Span], end: float) -> None:
    """The parts above the lanes; those too short for their name have it further up, each higher than the one before."""
    height = _LOW
    for number, (name, (begin, lasted)) in enumerate(phases.items()):
        axes.axvspan(begin, begin + lasted, color=FAINT, alpha=0.16 if number % 2 else 0.06, linewidth=0)
        short = lasted < 0.09 * end
        height = height - 0.6 if short else _LOW
        text = f"{name}, {lasted:.0f} ms" if lasted > 0.2 * end or short else name
        middle = begin + lasted / 2
        place, side = (begin, "left") if middle < 0.1 * end else (middle, "center")
        place, side = (end, "right") if middle > 0.9 * end else (place, side)
        axes.text(place, height, text, ha=side, va="center", fontsize=8.5)


def merged(spans: Sequence[Span], gap: float) -> list[Span]:
    """Spans in order, those that follow within `gap` made one."""
    found: list[Span] = []
    for begin, lasted in sorted(spans):
        if found and begin - sum(found[-1]) <= gap:
            found[-1] = (found[-1][0], max(sum(found[-1]), begin + lasted) - found[-1][0])
        else:
            found.append((begin, lasted))
    return found
