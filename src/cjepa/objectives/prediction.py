"""The prediction loss of I-JEPA: how far the predicted patches are from the targets."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

PredictionLoss = Literal["smooth_l1", "mse"]


def prediction_loss(
    predicted: Float[Tensor, "B M T D"], target: Float[Tensor, "B M T D"], kind: PredictionLoss
) -> Float[Tensor, ""]:
    """L_jepa: mean over images, blocks, patches and features of smooth-L1 (threshold 1) or of the squared error.

    The mean is what makes a weight of 0.001 on the VICReg term meaningful.
    """
    match kind:
        case "smooth_l1":
            return F.smooth_l1_loss(predicted, target)
        case "mse":
            return F.mse_loss(predicted, target)
