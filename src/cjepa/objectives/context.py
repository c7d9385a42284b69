"""C-JEPA as the pseudo-code of the paper's appendix C.2: VICReg on the pooled context, which acts on the encoder."""

from typing import Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from cjepa.objectives.prediction import PredictionLoss, prediction_loss
from cjepa.objectives.projector import ProjectedObjective, ProjectorConfig
from cjepa.objectives.vicreg import covariance_penalty, variance_hinge
from cjepa.types import Embeddings, Loss, Part


class ContextConfig(Part):
    """C-JEPA, appendix C.2: similarity of pooled context and pooled targets, variance and covariance of the context."""

    name: Literal["cjepa-context"] = "cjepa-context"
    """The objective."""
    beta: float = Field(0.001, ge=0)
    """Weight of the VICReg term against the prediction loss (the paper: 0.001; small data starts faster with 0.1)."""
    similarity: float = Field(25.0, ge=0)
    """Weight of the squared distance between pooled context and pooled targets."""
    variance: float = Field(25.0, ge=0)
    """Weight of the variance hinge."""
    covariance: float = Field(1.0, ge=0)
    """Weight of the covariance penalty."""
    projector: ProjectorConfig = Field(default_factory=lambda: ProjectorConfig(depth=0))
    """The projector before the VICReg term; none by default, so that the term acts on the encoder itself."""
    prediction: PredictionLoss = "smooth_l1"
    """Distance between predicted and target patches."""


class ContextVicreg(ProjectedObjective):
    """L = L_jepa + beta * (w_sim * mse(z_c, z_t) + w_var * v(z_c) + w_cov * c(z_c)).

    z_c, z_t: the projected means of the context's and of the target blocks' patches; targets have no gradient.
    """

    def __init__(self, config: ContextConfig, features: int) -> None:
        super().__init__(config.projector, features)
        self.config = config

    def forward(self, embeddings: Embeddings, step: int) -> Loss:  # noqa: ARG002
        """The loss of a batch; its terms are unweighted."""
        config = self.config
        prediction = prediction_loss(embeddings.predicted, embeddings.target, config.prediction)
        context = self.project(embeddings.context.mean(dim=1, keepdim=True))
        target = self.project(embeddings.target.mean(dim=(1, 2)).unsqueeze(1))
        distance, variance, covariance = context_terms(context, target)
        vicreg = config.similarity * distance + config.variance * variance + config.covariance * covariance
        terms = {
            "prediction": prediction,
            "similarity": distance,
            "variance": variance,
            "covariance": covariance,
            "vicreg": vicreg,
        }
        return Loss(prediction + config.beta * vicreg, {name: term.detach() for name, term in terms.items()})


def context_terms(
    context: Float[Tensor, "B 1 D"], target: Float[Tensor, "B 1 D"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean squared distance to the targets; variance hinge and covariance penalty of the context."""
    return (context - target).square().mean(), variance_hinge(context), covariance_penalty(context)
