"""VICReg and SimSiam of two views, against formulas written another way; lightly's are in tests/reference/."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cjepa.objectives.cosine import negative_cosine
from cjepa.objectives.projector import ProjectorConfig
from cjepa.objectives.two_views import Simsiam, SimsiamConfig, Vicreg, VicregConfig
from cjepa.types import Embeddings


def embeddings(images: int = 12, width: int = 6) -> Embeddings:
    views = torch.randn(images, 2, 1, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Embeddings(views.new_empty(images, 0, width), views.requires_grad_(), views.detach().flip(1))


def simsiam(width: int = 10) -> Simsiam:
    objective = Simsiam(SimsiamConfig(projector=ProjectorConfig(width=width), hidden=4), 6)
    objective.initialise(torch.Generator().manual_seed(0))
    return objective.double()


def normed(rows: Tensor) -> Tensor:
    return (rows - rows.mean(0)) / (rows.var(0, unbiased=False) + 1e-5).sqrt()


def test_simsiam_by_hand() -> None:
    """Projector with a norm after every layer, predictor of two layers with one between them, the others detached."""
    given, objective = embeddings(), simsiam()
    rows = given.predicted.flatten(0, 2)
    first, _, _, second, _, _, third = objective.projector.layers
    rows = normed(rows @ first.weight.T).relu()
    rows = normed(rows @ second.weight.T).relu()
    rows = normed(rows @ third.weight.T + third.bias)
    inner, _, _, outer = objective.predictor
    predicted = normed(rows @ inner.weight.T).relu() @ outer.weight.T + outer.bias
    z, p = rows.detach().view(12, 2, 10), predicted.view(12, 2, 10)
    by_hand = -(F.cosine_similarity(p[:, 0], z[:, 1]) + F.cosine_similarity(p[:, 1], z[:, 0])).mean() / 2
    loss = objective(given, 0)
    torch.testing.assert_close(loss.total, by_hand)
    torch.testing.assert_close(*(torch.autograd.grad(each, given.predicted)[0] for each in (loss.total, by_hand)))


def test_without_stop_gradient_the_gradient_would_be_another() -> None:
    views = embeddings().predicted.squeeze(2).detach().requires_grad_()
    predicted = views.detach() * torch.linspace(0.5, 2.0, 6, dtype=torch.float64)
    negative_cosine(predicted, views).backward()
    assert views.grad is not None
    assert views.grad.abs().max() > 1e-3, "the function itself lets it through; the objective detaches"


def test_the_pairs_are_those_of_different_views() -> None:
    generator = torch.Generator().manual_seed(1)
    p, z = torch.randn(2, 5, 3, 7, generator=generator, dtype=torch.float64).unbind()
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    expected = -torch.stack([F.cosine_similarity(p[:, i], z[:, j]) for i, j in pairs]).mean()
    torch.testing.assert_close(negative_cosine(p, z), expected)


@pytest.mark.parametrize("depth", [0, 2])
def test_the_projector_may_be_of_any_depth(depth: int) -> None:
    for objective in (
        Simsiam(SimsiamConfig(projector=ProjectorConfig(depth=depth, width=8)), 6),
        Vicreg(VicregConfig(projector=ProjectorConfig(depth=depth, width=8)), 6),
    ):
        objective.initialise(torch.Generator().manual_seed(0))
        assert objective.double()(embeddings(), 0).total.isfinite()


def test_vicreg_of_equal_and_spread_views_is_the_covariance_alone() -> None:
    objective = Vicreg(VicregConfig(projector=ProjectorConfig(depth=0)), 6).double()
    given = embeddings()
    same = 5.0 * given.predicted.detach()[:, :1].expand(-1, 2, -1, -1)
    loss = objective(Embeddings(given.context, same, same), 0)
    assert loss.terms["similarity"] == 0
    assert loss.terms["variance"] == 0
    covariance = torch.cov(same[:, 0, 0].T)
    off_diagonal = covariance - torch.diag(covariance.diagonal())
    torch.testing.assert_close(loss.total, 2.0 * off_diagonal.square().sum() / 6)
