"""The variant of appendix C.2: VICReg on the pooled context."""

import torch
from torch.nn import functional as F

from cjepa.objectives import ContextConfig, build_objective
from cjepa.objectives.projector import ProjectorConfig
from cjepa.types import Embeddings


def embeddings(*, requires_grad: bool = False) -> Embeddings:
    generator = torch.Generator().manual_seed(0)
    shapes = ((8, 9, 16), (8, 4, 5, 16), (8, 4, 5, 16))
    context, predicted, target = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return Embeddings(context.requires_grad_(requires_grad), predicted.requires_grad_(requires_grad), target)


def test_the_loss_equals_the_formula_of_the_appendix() -> None:
    given = embeddings(requires_grad=True)
    found = build_objective(ContextConfig(beta=0.1), 16, seed=0).double()(given, 0).total
    context, target = given.context.mean(dim=1), given.target.flatten(1, 2).mean(dim=1)
    centred = context - context.mean(dim=0)
    covariance = centred.T @ centred / 7
    off_diagonal = covariance[~torch.eye(16, dtype=torch.bool)]
    expected = F.smooth_l1_loss(given.predicted, given.target) + 0.1 * (
        25 * F.mse_loss(context, target)
        + 25 * (1 - (covariance.diagonal() + 1e-4).sqrt()).clamp(min=0).mean()
        + off_diagonal.square().sum() / 16
    )
    torch.testing.assert_close(found, expected)
    inputs = (given.context, given.predicted)
    for ours, theirs in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_context_is_regularised_and_the_predictions_only_predict() -> None:
    objective = build_objective(ContextConfig(beta=1, projector=ProjectorConfig(width=24)), 16, seed=0).double()
    given = embeddings(requires_grad=True)
    loss = objective(given, 0)
    prediction = F.smooth_l1_loss(given.predicted, given.target)
    by_vicreg = torch.autograd.grad(loss.total - prediction, (given.context, given.predicted), allow_unused=True)
    assert by_vicreg[0].abs().max() > 1e-4
    assert by_vicreg[1] is None or by_vicreg[1].abs().max() < 1e-12


def test_one_target_block_is_enough() -> None:
    given = embeddings()
    one = Embeddings(given.context, given.predicted[:, :1], given.target[:, :1])
    assert build_objective(ContextConfig(), 16, seed=0).double()(one, 0).total.isfinite()
