"""The baselines that compare two augmented views of an image: VICReg and SimSiam."""

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from cjepa.objectives.cosine import negative_cosine
from cjepa.objectives.projector import ProjectedObjective, ProjectorConfig, fill
from cjepa.objectives.vicreg import covariance_penalty, similarity, variance_hinge
from cjepa.types import Embeddings, Loss, Part


class TwoViewsConfig(Part):
    """Keys shared by the objectives of two views; masking and model.predictor are not used, data.views is."""

    projector: ProjectorConfig = Field(default_factory=lambda: ProjectorConfig())
    """The projector (VICReg's expander) between pooled embeddings and the loss; VICReg's own is 8192 wide."""


class VicregConfig(TwoViewsConfig):
    """VICReg (Bardes et al., 2022): L = 25 invariance + 25 variance + 1 covariance of two projected views."""

    name: Literal["vicreg"] = "vicreg"
    """The objective."""
    similarity: float = Field(25.0, ge=0)
    """Weight of the squared distance between the views of an image."""
    variance: float = Field(25.0, ge=0)
    """Weight of the variance hinge."""
    covariance: float = Field(1.0, ge=0)
    """Weight of the covariance penalty, which is summed over the two views."""


class SimsiamConfig(TwoViewsConfig):
    """SimSiam (Chen & He, 2021): L = -cosine between one view's prediction and the other's projection, detached."""

    name: Literal["simsiam"] = "simsiam"
    """The objective."""
    hidden: int = Field(512, ge=1)
    """Features of the hidden layer of the predictor, an MLP of two layers; a quarter of the projector's width."""


class Vicreg(ProjectedObjective):
    """L = w_sim * mse(z_1, z_2) + w_var * (v(z_1) + v(z_2)) / 2 + w_cov * (c(z_1) + c(z_2))."""

    def __init__(self, config: VicregConfig, features: int) -> None:
        super().__init__(config.projector, features)
        self.config = config

    def forward(self, embeddings: Embeddings, step: int) -> Loss:  # noqa: ARG002
        """The loss of a batch; its terms are unweighted."""
        config = self.config
        views = self.project(embeddings.predicted.mean(dim=2))
        invariance, variance, covariance = similarity(views), variance_hinge(views), covariance_penalty(views)
        total = config.similarity * invariance + config.variance * variance + 2.0 * config.covariance * covariance
        terms = {"similarity": invariance, "variance": variance, "covariance": covariance}
        return Loss(total, {name: term.detach() for name, term in terms.items()})


class Simsiam(ProjectedObjective):
    """L = mean over ordered pairs of views i != j of -cos(h(z_i), stop-gradient(z_j)), h the predictor.

    The projector ends in a batch norm without scale and shift, as SimSiam's does. All batch norms see both views of
    all images of the global batch together, where SimSiam passes one view of one device at a time.
    """

    def __init__(self, config: SimsiamConfig, features: int) -> None:
        super().__init__(config.projector, features)
        width = config.projector.width if config.projector.depth else features
        self.last_norm = nn.BatchNorm1d(width, affine=False, track_running_stats=False)
        self.predictor = nn.Sequential(
            nn.Linear(width, config.hidden, bias=False),
            nn.BatchNorm1d(config.hidden, track_running_stats=False),
            nn.ReLU(),
            nn.Linear(config.hidden, width),
        )

    def initialise(self, generator: torch.Generator) -> None:
        """Fill the weights of projector and predictor."""
        super().initialise(generator)
        fill(self.predictor, generator)

    def forward(self, embeddings: Embeddings, step: int) -> Loss:  # noqa: ARG002
        """The loss of a batch, which is its only term."""
        projected = self.project(embeddings.predicted.mean(dim=2))
        rows = self.last_norm(projected.flatten(0, 1))
        views, predicted = (each.unflatten(0, projected.shape[:2]) for each in (rows, self.predictor(rows)))
        loss = negative_cosine(predicted, views.detach())
        return Loss(loss, {"cosine": loss.detach()})
