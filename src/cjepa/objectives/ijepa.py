"""I-JEPA: the prediction loss alone."""

from typing import Literal

import torch
from torch import nn

from cjepa.objectives.prediction import PredictionLoss, prediction_loss
from cjepa.types import Embeddings, Loss, Part


class IJepaConfig(Part):
    """I-JEPA (Assran et al., 2023): L = L_jepa, the beta = 0 of C-JEPA."""

    name: Literal["ijepa"] = "ijepa"
    """The objective."""
    prediction: PredictionLoss = "smooth_l1"
    """Distance between predicted and target patches."""


class IJepa(nn.Module):
    """L = L_jepa."""

    def __init__(self, config: IJepaConfig) -> None:
        super().__init__()
        self.config = config

    def initialise(self, generator: torch.Generator) -> None:
        """Nothing to fill: there are no weights."""

    def forward(self, embeddings: Embeddings, step: int) -> Loss:  # noqa: ARG002
        """The loss of a batch."""
        prediction = prediction_loss(embeddings.predicted, embeddings.target, self.config.prediction)
        return Loss(prediction, {"prediction": prediction.detach()})
