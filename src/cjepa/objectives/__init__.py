"""What is minimised: a closed list of objectives, each mapping Embeddings to a Loss."""

from typing import Annotated, assert_never

import torch
from pydantic import Field

from cjepa.objectives.both import Both, BothConfig, both_weights
from cjepa.objectives.cjepa import CJepa, CJepaConfig, InvarianceConfig, VarianceCovarianceConfig
from cjepa.objectives.context import ContextConfig, ContextVicreg
from cjepa.objectives.cosine import Cosine, CosineConfig
from cjepa.objectives.ijepa import IJepa, IJepaConfig
from cjepa.objectives.sigreg import Sigreg, SigregConfig
from cjepa.objectives.two_views import Simsiam, SimsiamConfig, TwoViewsConfig, Vicreg, VicregConfig

__all__ = [
    "AnyObjectiveConfig",
    "BothConfig",
    "CJepaConfig",
    "ContextConfig",
    "IJepaConfig",
    "Objective",
    "ObjectiveConfig",
    "SimsiamConfig",
    "TwoViewsConfig",
    "build_objective",
    "term_weights",
]

AnyObjectiveConfig = (
    IJepaConfig
    | CJepaConfig
    | VarianceCovarianceConfig
    | InvarianceConfig
    | ContextConfig
    | CosineConfig
    | SigregConfig
    | BothConfig
    | VicregConfig
    | SimsiamConfig
)
ObjectiveConfig = Annotated[AnyObjectiveConfig, Field(discriminator="name")]

Objective = IJepa | CJepa | ContextVicreg | Cosine | Sigreg | Both | Vicreg | Simsiam
"""A module whose forward maps (embeddings, step) to a Loss."""


def build_objective(config: AnyObjectiveConfig, features: int, seed: int) -> Objective:
    """The objective of a config for embeddings of this many features, with its weights filled from the seed."""
    objective = _choose(config, features, seed)
    objective.initialise(torch.Generator().manual_seed(seed))
    return objective


def _choose(config: AnyObjectiveConfig, features: int, seed: int) -> Objective:
    match config:
        case IJepaConfig():
            return IJepa(config)
        case CJepaConfig():
            return CJepa(config, features)
        case VarianceCovarianceConfig():
            return CJepa(CJepaConfig(**_shared(config), similarity=0.0), features)
        case InvarianceConfig():
            return CJepa(CJepaConfig(**_shared(config), variance=0.0, covariance=0.0), features)
        case ContextConfig():
            return ContextVicreg(config, features)
        case CosineConfig():
            return Cosine(config, features)
        case SigregConfig():
            return Sigreg(config, features, seed)
        case BothConfig():
            return Both(config, features)
        case VicregConfig():
            return Vicreg(config, features)
        case SimsiamConfig():
            return Simsiam(config, features)
        case _:
            assert_never(config)


def _shared(config: VarianceCovarianceConfig | InvarianceConfig) -> dict[str, object]:
    """The keys that a special case of C-JEPA has in common with it."""
    return {key: value for key, value in config if key != "name"}


def term_weights(config: AnyObjectiveConfig) -> dict[str, float]:
    """The factor of each of the loss's terms in the total; sums that a loss also reports, as vicreg, are left out."""
    weights = {"prediction": 1.0}
    match config:
        case IJepaConfig():
            return weights
        case CJepaConfig():
            inner = {"similarity": config.similarity, "variance": config.variance, "covariance": 2 * config.covariance}
        case VarianceCovarianceConfig():
            inner = {"similarity": 0.0, "variance": config.variance, "covariance": 2 * config.covariance}
        case InvarianceConfig():
            inner = {"similarity": config.similarity, "variance": 0.0, "covariance": 0.0}
        case ContextConfig():
            inner = {"similarity": config.similarity, "variance": config.variance, "covariance": config.covariance}
        case CosineConfig():
            inner = {"cosine": config.similarity}
        case SigregConfig():
            inner = {"similarity": config.similarity, "sigreg": config.sigreg}
        case BothConfig():
            return weights | both_weights(config)
        case VicregConfig():
            terms = {"similarity": config.similarity, "variance": config.variance}
            return terms | {"covariance": 2 * config.covariance}
        case SimsiamConfig():
            return {"cosine": 1.0}
        case _:
            assert_never(config)
    return weights | {name: config.beta * weight for name, weight in inner.items()}
