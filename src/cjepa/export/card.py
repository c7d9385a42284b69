"""The model card of an export: what is known about the weights, as markdown with the head that model hubs read."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jinja2

from cjepa.models.pretrained import PretrainedEncoder

_TEMPLATE = "model_card.md.j2"
LIBRARIES = {"transformers": "transformers", "timm": "timm", "onnx": "onnx"}
"""Names of the libraries that open a format; the others need cjepa or torch."""
_COMPUTED = "positions are fixed sin-cos waves, computed for whatever grid comes."
_STORED = (
    "positions are fixed sin-cos waves, stored for this size; at others the library interpolates them, which is not "
    "what the encoder itself does."
)


@dataclass(frozen=True)
class Table:
    """Results of one kind; every cell is text."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Card:
    """What a card says besides what the encoder itself shows.

    data, reproduce: lines. recipe: the run's config as YAML, or empty. licence: an identifier, or empty where nobody
    stated one. ancestry: a sentence on weights that these were trained from, or empty. tags: of the method.
    citation: BibTeX, or empty where the method is not known.
    """

    title: str
    summary: str
    data: Sequence[str]
    results: Sequence[Table]
    health: str
    reproduce: Sequence[str]
    recipe: str = ""
    licence: str = ""
    ancestry: str = ""
    tags: Sequence[str] = ()
    citation: str = ""


def number(value: float | None) -> str:
    """A measured value as tables show it, three digits; nothing where it is missing or no number."""
    if value is None or math.isnan(value):
        return ""
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def render_card(card: Card, encoder: PretrainedEncoder, format_name: str, usage: str, version: str) -> str:
    """The card as markdown. usage: Python that opens the export."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cjepa.export"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # markdown
    )
    return environment.get_template(_TEMPLATE).render(
        card=card,
        encoder_text=_encoder_text(encoder),
        library=LIBRARIES.get(format_name, "cjepa"),
        mean=list(encoder.mean),
        positions=_STORED if format_name in ("transformers", "timm") else _COMPUTED,
        size=encoder.image_size,
        std=list(encoder.std),
        usage=usage,
        version=version,
    )


def _encoder_text(encoder: PretrainedEncoder) -> str:
    config = encoder.encoder.config
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    return (
        f"A vision transformer of {parameters:,} parameters: width {config.width}, {config.depth} blocks, "
        f"{config.heads} heads, patches of {config.patch_size} x {config.patch_size} pixels, no class token. The "
        "embedding of an image is the mean of its patches'."
    )
