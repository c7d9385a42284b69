"""Both readings at once are the sum of the two objectives, less the prediction that both count."""

import torch

from cjepa.objectives import AnyObjectiveConfig, CJepaConfig, ContextConfig, build_objective
from cjepa.objectives.both import BothConfig
from cjepa.objectives.projector import ProjectorConfig
from cjepa.types import Embeddings


def test_it_is_the_sum_of_the_two_with_its_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(8, 9, 12, generator=generator, dtype=torch.float64).requires_grad_()
    predicted = torch.randn(8, 4, 5, 12, generator=generator, dtype=torch.float64).requires_grad_()
    target = torch.randn(8, 4, 5, 12, generator=generator, dtype=torch.float64)

    def loss(config: AnyObjectiveConfig) -> torch.Tensor:
        objective = build_objective(config, 12, 0).double()
        total: torch.Tensor = objective(Embeddings(context, predicted, target), 0).total
        return total

    projector = ProjectorConfig(width=16)
    both = loss(BothConfig(beta=0.1, context=3.0, projector=projector))
    parts = loss(CJepaConfig(beta=0.1, projector=projector)) + loss(ContextConfig(beta=0.3))
    parts = parts - torch.nn.functional.smooth_l1_loss(predicted, target)
    torch.testing.assert_close(both, parts)
    for ours, theirs in zip(*(torch.autograd.grad(each, (context, predicted)) for each in (both, parts)), strict=True):
        torch.testing.assert_close(ours, theirs)
