"""C-JEPA with both readings of the paper at once: VICReg of the predicted blocks, and of the pooled context."""

from typing import Literal

from pydantic import Field

from cjepa.objectives.cjepa import BlockVicregConfig
from cjepa.objectives.context import context_terms
from cjepa.objectives.prediction import prediction_loss
from cjepa.objectives.projector import ProjectedObjective
from cjepa.objectives.vicreg import covariance_penalty, similarity, variance_hinge
from cjepa.ranks import gather
from cjepa.types import Embeddings, Loss


class BothConfig(BlockVicregConfig):
    """C-JEPA, Algorithm 1 and appendix C.2: L = L_jepa + beta * (VICReg of blocks + w * VICReg of the context)."""

    name: Literal["cjepa-both"] = "cjepa-both"
    """The objective."""
    similarity: float = Field(25.0, ge=0)
    """Weight of the squared distances: between blocks of an image, and between pooled context and pooled targets."""
    variance: float = Field(25.0, ge=0)
    """Weight of the variance hinges."""
    covariance: float = Field(1.0, ge=0)
    """Weight of the covariance penalties; each pair of blocks counts both of its penalties."""
    context: float = Field(1.0, ge=0)
    """Weight of the context's term, which has no projector, against that of the blocks."""


class Both(ProjectedObjective):
    """L = L_jepa + beta * (L_vicreg of the projected blocks, as CJepa has it, + w * that of ContextVicreg)."""

    def __init__(self, config: BothConfig, features: int) -> None:
        super().__init__(config.projector, features)
        self.config = config

    def forward(self, embeddings: Embeddings, step: int) -> Loss:  # noqa: ARG002
        """The loss of a batch; its terms are unweighted."""
        config = self.config
        prediction = prediction_loss(embeddings.predicted, embeddings.target, config.prediction)
        blocks = self.project(embeddings.predicted.mean(dim=2))
        context = gather(embeddings.context.mean(dim=1, keepdim=True))
        target = gather(embeddings.target.mean(dim=(1, 2)).unsqueeze(1))
        context_distance, context_variance, context_covariance = context_terms(context, target)
        terms = {
            "similarity": similarity(blocks),
            "variance": variance_hinge(blocks),
            "covariance": covariance_penalty(blocks),
            "context_similarity": context_distance,
            "context_variance": context_variance,
            "context_covariance": context_covariance,
        }
        weights = both_weights(config)
        total = prediction + sum((weights[name] * term for name, term in terms.items()), start=prediction.new_zeros(()))
        return Loss(total, {name: term.detach() for name, term in ({"prediction": prediction} | terms).items()})


def both_weights(config: BothConfig) -> dict[str, float]:
    """The factor of each term but the prediction in the total."""
    inner = {"similarity": config.similarity, "variance": config.variance, "covariance": config.covariance}
    blocks = {name: config.beta * weight * (2 if name == "covariance" else 1) for name, weight in inner.items()}
    return blocks | {f"context_{name}": config.beta * config.context * weight for name, weight in inner.items()}
