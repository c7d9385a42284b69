"""The prediction loss: a mean over everything."""

import pytest
import torch

from cjepa.objectives.prediction import prediction_loss


def test_values_are_those_of_the_formulas() -> None:
    difference = torch.tensor([0.5, -0.2, 3.0, -1.0])
    target = torch.ones(1, 1, 1, 4)
    smooth = torch.tensor([0.5 * 0.25, 0.5 * 0.04, 3.0 - 0.5, 0.5]).mean()
    torch.testing.assert_close(prediction_loss(target + difference, target, "smooth_l1"), smooth)
    torch.testing.assert_close(prediction_loss(target + difference, target, "mse"), difference.square().mean())


@pytest.mark.parametrize("kind", ["smooth_l1", "mse"])
def test_the_loss_does_not_grow_with_the_batch(kind: str) -> None:
    predicted, target = torch.randn(2, 2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).unbind(0)
    repeated = prediction_loss(predicted.repeat(3, 2, 2, 2), target.repeat(3, 2, 2, 2), kind)
    torch.testing.assert_close(repeated, prediction_loss(predicted, target, kind))
