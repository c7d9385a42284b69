"""C-JEPA as Algorithm 1 of the paper: VICReg between the projected means of the predicted target blocks."""

from typing import Literal

from pydantic import Field

from cjepa.objectives.prediction import PredictionLoss, prediction_loss
from cjepa.objectives.projector import ProjectedObjective, ProjectorConfig
from cjepa.objectives.vicreg import covariance_penalty, similarity, variance_hinge
from cjepa.types import Embeddings, Loss, Part


class BlockVicregConfig(Part):
    """Keys shared by the objectives that regularise the predicted blocks."""

    beta: float = Field(0.001, ge=0)
    """Weight of the VICReg term against the prediction loss (the paper: 0.001)."""
    projector: ProjectorConfig = Field(default_factory=lambda: ProjectorConfig())
    """The projector between pooled predictions and the VICReg term."""
    prediction: PredictionLoss = "smooth_l1"
    """Distance between predicted and target patches."""


class CJepaConfig(BlockVicregConfig):
    """C-JEPA (Mo & Tong, 2024), Algorithm 1: L = L_jepa + beta * (25 similarity + 25 variance + 2 covariance)."""

    name: Literal["cjepa"] = "cjepa"
    """The objective."""
    similarity: float = Field(25.0, ge=0)
    """Weight of the invariance term between blocks of an image."""
    variance: float = Field(25.0, ge=0)
    """Weight of the variance hinge."""
    covariance: float = Field(1.0, ge=0)
    """Weight of the covariance penalty; each pair of blocks counts both of its penalties."""


class VarianceCovarianceConfig(BlockVicregConfig):
    """C-JEPA with the variance and covariance terms only."""

    name: Literal["cjepa-variance-covariance"] = "cjepa-variance-covariance"
    """The objective."""
    variance: float = Field(25.0, ge=0)
    """Weight of the variance hinge."""
    covariance: float = Field(1.0, ge=0)
    """Weight of the covariance penalty; each pair of blocks counts both of its penalties."""


class InvarianceConfig(BlockVicregConfig):
    """C-JEPA with the invariance term only."""

    name: Literal["cjepa-invariance"] = "cjepa-invariance"
    """The objective."""
    similarity: float = Field(25.0, ge=0)
    """Weight of the invariance term between blocks of an image."""


class CJepa(ProjectedObjective):
    """L = L_jepa + beta * L_vicreg over the M predicted blocks of each image.

    L_vicreg is the mean over ordered pairs i != j of
    w_sim * mse(z_i, z_j) + w_var * (v(z_i) + v(z_j)) / 2 + w_cov * (c(z_i) + c(z_j)).
    Every block appears equally often, so M evaluations replace the M (M - 1) of the paper's double loop.
    No stop-gradient inside.
    """

    def __init__(self, config: CJepaConfig, features: int) -> None:
        super().__init__(config.projector, features)
        self.config = config

    def forward(self, embeddings: Embeddings, step: int) -> Loss:  # noqa: ARG002
        """The loss of a batch; its terms are unweighted."""
        config = self.config
        prediction = prediction_loss(embeddings.predicted, embeddings.target, config.prediction)
        views = self.project(embeddings.predicted.mean(dim=2))
        invariance, variance = similarity(views), variance_hinge(views)
        covariance = covariance_penalty(views)
        vicreg = config.similarity * invariance + config.variance * variance + 2.0 * config.covariance * covariance
        terms = {
            "prediction": prediction,
            "similarity": invariance,
            "variance": variance,
            "covariance": covariance,
            "vicreg": vicreg,
        }
        return Loss(prediction + config.beta * vicreg, {name: term.detach() for name, term in terms.items()})
