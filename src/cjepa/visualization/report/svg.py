"""Small figures as SVG that is part of a page: its colours are the page's, light or dark, and its ids are unique."""

import io
import re
import warnings

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from cjepa.visualization.style import COLOURS, FAINT, INK

GRID = "#e4e4e4"
_VARIABLES = {
    INK: "var(--ink)",
    FAINT: "var(--faint)",
    GRID: "var(--line)",
    "#ffffff": "none",
    **{colour.lower(): f"var(--c{index})" for index, colour in enumerate(COLOURS)},
}
_SIZE = (4.2, 2.5)
"""Inches; text of 9 points is read at a phone's width."""


def small_figure(size: tuple[float, float] = _SIZE) -> Figure:
    """An empty figure for one panel."""
    return Figure(figsize=size)


def to_svg(figure: Figure, name: str, description: str) -> Markup:
    """The figure as an <svg> element with a description for those who do not see it. name: unique on the page."""
    stream = io.StringIO()
    none = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(stream, format="svg", metadata=none)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<(metadata|defs)>\s*<style.*?</\1>|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<[^>]+>", lambda tag: _shortened(tag[0]), text)
    text = _unique_ids(text, name)
    text = re.sub(
        r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", r'<svg class="plot" \1 role="img" aria-label="{}">', text, count=1
    )
    text = re.sub(r">\s+<", "><", text)
    head, tail = text.split("{}", 1)
    return Markup(head) + description + Markup(tail)


def _shortened(tag: str) -> str:
    """Coordinates to a tenth of a point, and the page's colours; texts between the tags stay as they are."""
    tag = re.sub(r"(\d\.\d)\d+(?![\d.]*%)", r"\1", tag) if not tag.startswith("<image") else tag
    return re.sub(r"#[0-9a-f]{6}\b", lambda match: _VARIABLES.get(match[0], match[0]), tag)


def _unique_ids(text: str, name: str) -> str:
    """Ids that something refers to get the prefix of their figure; the others are removed."""
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", text))
    text = re.sub(r"(url\(#|href=\"#)([^)\"]+)", rf"\1{name}-\2", text)
    return re.sub(r' id="([^"]*)"', lambda match: f' id="{name}-{match[1]}"' if match[1] in used else "", text)
