"""C-JEPA with SIGReg (LeJEPA, Balestriero & LeCun, 2025) in place of variance and covariance."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from cjepa.objectives.cjepa import BlockVicregConfig
from cjepa.objectives.prediction import prediction_loss
from cjepa.objectives.projector import ProjectedObjective
from cjepa.objectives.vicreg import similarity
from cjepa.randomness import Stream, uniform_rows
from cjepa.types import Embeddings, Loss, to_device

KNOTS = 17
LARGEST_FREQUENCY = 5.0


class SigregConfig(BlockVicregConfig):
    """C-JEPA with SIGReg: L = L_jepa + beta * (25 similarity + w * SIGReg of the projected blocks)."""

    name: Literal["cjepa-sigreg"] = "cjepa-sigreg"
    """The objective."""
    similarity: float = Field(25.0, ge=0)
    """Weight of the invariance term between blocks of an image."""
    sigreg: float = Field(25.0, ge=0)
    """Weight of SIGReg."""
    slices: int = Field(256, ge=1)
    """Random directions per step along which the embeddings are compared with a normal distribution."""


class Sigreg(ProjectedObjective):
    """L = L_jepa + beta * (w_sim * mean pairwise mse + w_sigreg * mean over blocks of SIGReg(z_m))."""

    def __init__(self, config: SigregConfig, features: int, seed: int) -> None:
        super().__init__(config.projector, features)
        self.config = config
        self.seed = seed

    def forward(self, embeddings: Embeddings, step: int) -> Loss:
        """The loss of a batch; the directions are a function of the seed and the step."""
        config = self.config
        prediction = prediction_loss(embeddings.predicted, embeddings.target, config.prediction)
        views = self.project(embeddings.predicted.mean(dim=2))
        directions = random_directions(self.seed, step, config.slices, views.shape[-1])
        directions = to_device(directions.to(views.dtype), views.device)
        invariance, gaussianity = similarity(views), epps_pulley(views @ directions.T)
        total = prediction + config.beta * (config.similarity * invariance + config.sigreg * gaussianity)
        terms = {"prediction": prediction, "similarity": invariance, "sigreg": gaussianity}
        return Loss(total, {name: term.detach() for name, term in terms.items()})


def random_directions(seed: int, step: int, count: int, features: int) -> Float[Tensor, "count features"]:
    """Unit vectors, uniform on the sphere: normal numbers by Box and Muller's transform, normalised."""
    draws = torch.from_numpy(uniform_rows(seed, Stream.SLICES, step, 0, count, 2 * features))
    radius = (-2.0 * torch.log1p(-draws[:, :features])).sqrt()
    return F.normalize(radius * torch.cos(2.0 * math.pi * draws[:, features:]), dim=1)


def epps_pulley(samples: Float[Tensor, "B M S"]) -> Float[Tensor, ""]:
    """The Epps-Pulley statistic against N(0, 1), averaged over views and slices.

    B * integral over t in [-5, 5] of |phi(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2), where phi is the empirical
    characteristic function of the B samples of a slice; trapezoidal rule with 17 knots.
    """
    knots = torch.linspace(-LARGEST_FREQUENCY, LARGEST_FREQUENCY, KNOTS)
    knots = to_device(knots.to(samples.dtype), samples.device)
    normal = torch.exp(-0.5 * knots.square())
    angles = samples.unsqueeze(-1) * knots
    error = (angles.cos().mean(dim=0) - normal).square() + angles.sin().mean(dim=0).square()
    return samples.shape[0] * torch.trapezoid(error * normal, knots, dim=-1).mean()
