"""The spectrum of pooled embeddings: into how many dimensions an encoder spreads its images."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, Float64
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from cjepa.visualization.style import counted, logarithmic, look, new_figure, plain, styled

RESOLUTION = 1e-6
"""Singular values below this share of the embeddings' size are float32 rounding, and count as zero."""
_FLOOR = 1e-6
"""The axis ends here, where values are below."""

_FEW = 10
"""Fewer values than this each have a marker: one alone makes no line."""


@styled
def spectrum(features: Mapping[str, Float[Tensor, "n _"]]) -> Figure:
    """Singular values of the centred embeddings relative to the largest, one line for each encoder, on a log axis.

    features: pooled embeddings of the same images by name of the encoder. The legend has the effective rank (the
    exponential of the entropy of the values); values of zero are not drawn.
    """
    images = {len(of_encoder) for of_encoder in features.values()}
    assert len(images) == 1, "the encoders were given different numbers of images"
    figure = new_figure(4.6, f"Spectrum of the pooled embeddings of {counted(images.pop(), 'image')}")
    axes = figure.subplots()
    lowest = 0.1
    for index, (name, of_encoder) in enumerate(features.items()):
        colour, line = look(index)
        values = singular_values(of_encoder)
        shown = values[values > 0] / (values[0] or 1.0)
        label = f"{plain(name)}: effective rank {effective_rank(values):.1f} of {of_encoder.shape[1]}"
        label += "" if len(shown) else " (all embeddings are equal)"
        marker = "o" if len(shown) < _FEW else None
        axes.plot(np.arange(1, len(shown) + 1), shown, color=colour, linestyle=line, marker=marker, label=label)
        lowest = float(shown.min(initial=lowest))
    lowest = max(lowest, _FLOOR)
    logarithmic(axes, lowest, 1.0)
    axes.set_ylim(0.8 * lowest, 1.2)
    axes.set_xlim(0, 1 + max(of_encoder.shape[1] for of_encoder in features.values()))
    axes.grid(visible=True)
    axes.set_axisbelow(True)
    axes.set_xlabel("dimension, from the one that varies most")
    axes.set_ylabel("standard deviation, relative to the largest")
    axes.xaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 5, 10], integer=True))
    axes.legend(loc="upper right")
    return figure


def singular_values(embeddings: Float[Tensor, "n D"]) -> Float64[np.ndarray, "K"]:
    """Standard deviations along the principal axes, largest first, as cjepa.evaluation.representation has them."""
    exact = embeddings.detach().cpu().double()
    values = torch.linalg.svdvals(exact - exact.mean(0)) / len(exact) ** 0.5
    return torch.where(values > RESOLUTION * exact.square().mean().sqrt(), values, 0.0).numpy()


def effective_rank(values: Float64[np.ndarray, "K"]) -> float:
    """Exponential of the entropy of the normalised singular values; 1 if all are zero."""
    shares = values[values > 0] / (values.sum() or 1.0)
    return float(np.exp(-(shares * np.log(shares)).sum()))
