"""Algorithm 1 with its other criterion: negative cosine similarity between blocks, as in SimSiam."""

from typing import Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from cjepa.objectives.cjepa import BlockVicregConfig
from cjepa.objectives.prediction import prediction_loss
from cjepa.objectives.projector import ProjectedObjective
from cjepa.types import Embeddings, Loss


class CosineConfig(BlockVicregConfig):
    """C-JEPA, Algorithm 1 with the cosine criterion: L = L_jepa - beta * w * mean cosine between blocks."""

    name: Literal["cjepa-cosine"] = "cjepa-cosine"
    """The objective."""
    similarity: float = Field(25.0, ge=0)
    """Weight of the negative cosine similarity between blocks of an image."""


class Cosine(ProjectedObjective):
    """L = L_jepa + beta * w_sim * mean over pairs i != j of -cos(z_i, z_j)."""

    def __init__(self, config: CosineConfig, features: int) -> None:
        super().__init__(config.projector, features)
        self.config = config

    def forward(self, embeddings: Embeddings, step: int) -> Loss:  # noqa: ARG002
        """The loss of a batch; its terms are unweighted."""
        prediction = prediction_loss(embeddings.predicted, embeddings.target, self.config.prediction)
        views = self.project(embeddings.predicted.mean(dim=2))
        cosine = negative_cosine(views, views)
        total = prediction + self.config.beta * self.config.similarity * cosine
        return Loss(total, {"prediction": prediction.detach(), "cosine": cosine.detach()})


def negative_cosine(ours: Float[Tensor, "B M D"], theirs: Float[Tensor, "B M D"]) -> Float[Tensor, ""]:
    """Mean over images and ordered pairs i != j of views of -cos(ours_i, theirs_j).

    With unit vectors the sum over all pairs is the product of the two sums; that of equal indices is taken off.
    """
    count = ours.shape[1]
    first, second = F.normalize(ours, dim=-1), F.normalize(theirs, dim=-1)
    pairs = (first.sum(dim=1) * second.sum(dim=1)).sum(dim=-1) - (first * second).sum(dim=(1, 2))
    return -pairs.mean() / (count * (count - 1))
