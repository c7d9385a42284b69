"""The fast VICReg term against Algorithm 1 of the paper, written out as it stands there."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from cjepa.objectives import CJepaConfig, build_objective
from cjepa.objectives.projector import ProjectorConfig
from cjepa.objectives.vicreg import covariance_penalty, similarity, variance_hinge
from cjepa.types import Embeddings


def variance(z: Tensor) -> Tensor:
    """v(z): mean over dimensions of max(0, 1 - sqrt(var + 1e-4)), one dimension after the other (Eq. 3)."""
    images, features = z.shape
    hinges = []
    for feature in range(features):
        column = z[:, feature]
        var = (column - column.sum() / images).square().sum() / (images - 1)
        hinges.append((1 - (var + 1e-4).sqrt()).clamp(min=0))
    return torch.stack(hinges).sum() / features


def covariance(z: Tensor) -> Tensor:
    """c(z): squared off-diagonal entries of the covariance matrix, summed, over the dimension (Eq. 4)."""
    images, features = z.shape
    centred = z - z.sum(dim=0) / images
    matrix = sum(torch.outer(row, row) for row in centred) / (images - 1)
    assert isinstance(matrix, Tensor)
    return (matrix - torch.diag(matrix.diagonal())).square().sum() / features


def criterion(z_i: Tensor, z_j: Tensor) -> Tensor:
    """VICReg of two views: 25 similarity, 25 of the mean variance hinge, both covariance penalties."""
    return (
        25 * (z_i - z_j).square().sum() / z_i.numel()
        + 25 * (variance(z_i) + variance(z_j)) / 2
        + 1 * (covariance(z_i) + covariance(z_j))
    )


def algorithm_1(z: Tensor) -> Tensor:
    """The mean of the criterion over all ordered pairs of different blocks; z [B, M, D]."""
    blocks = z.shape[1]
    total = torch.zeros((), dtype=z.dtype)
    for i in range(blocks):
        for j in range(blocks):
            if i != j:
                total = total + criterion(z[:, i], z[:, j])
    return total / (blocks * (blocks - 1))


def fast(z: Tensor) -> Tensor:
    return 25 * similarity(z) + 25 * variance_hinge(z) + 2 * covariance_penalty(z)


def views(images: int, blocks: int, features: int, seed: int) -> Tensor:
    """Correlated dimensions whose spreads lie on both sides of the hinge, around means that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(images, blocks, features, generator=generator, dtype=torch.float64)
    z = z + 0.5 * z.mean(dim=-1, keepdim=True) + torch.randn(blocks, features, generator=generator).double()
    return (z * torch.linspace(0.2, 2.0, features, dtype=torch.float64)).requires_grad_()


@pytest.mark.parametrize(
    ("images", "blocks", "features"),
    [(2, 2, 3), (3, 4, 16), (4, 2, 5), (8, 4, 8), (16, 4, 3), (12, 3, 12), (20, 6, 7), (5, 4, 1)],
)
def test_the_fast_form_equals_the_double_loop(images: int, blocks: int, features: int) -> None:
    z = views(images, blocks, features, seed=images)
    torch.testing.assert_close(fast(z), algorithm_1(z), rtol=1e-12, atol=1e-12)
    ours, literal = (torch.autograd.grad(form(z), z)[0] for form in (fast, algorithm_1))
    torch.testing.assert_close(ours, literal, rtol=1e-11, atol=1e-12)
    assert literal.abs().max() > 1e-3


@given(st.integers(2, 9), st.integers(2, 5), st.integers(1, 9), st.integers(0, 2**31))
@settings(deadline=None, max_examples=25)
def test_the_fast_form_equals_the_double_loop_for_any_shape(images: int, blocks: int, features: int, seed: int) -> None:
    z = views(images, blocks, features, seed)
    torch.testing.assert_close(fast(z), algorithm_1(z), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_the_whole_objective_equals_the_paper(depth: int) -> None:
    """L = L_jepa + 0.001 * L_vicreg of the projected block means, with its gradient by the predictions and weights."""
    config = CJepaConfig(projector=ProjectorConfig(depth=depth, width=12))
    objective = build_objective(config, 10, seed=0).double()
    generator = torch.Generator().manual_seed(1)
    predicted, target = torch.randn(2, 8, 4, 5, 10, generator=generator, dtype=torch.float64).unbind(0)
    predicted.requires_grad_()
    context = torch.randn(8, 9, 10, generator=generator, dtype=torch.float64)

    found = objective(Embeddings(context, predicted, target), 0).total
    means = torch.stack([predicted[:, m].mean(dim=1) for m in range(4)])  # the projector is shared: [M, B, D]
    projected = objective.projector.layers(means.reshape(32, 10)).reshape(4, 8, -1).transpose(0, 1)
    expected = F.smooth_l1_loss(predicted, target, reduction="mean") + 0.001 * algorithm_1(projected)

    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    inputs = [predicted, *objective.parameters()]
    gradients = zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True)
    for ours, literal in gradients:
        torch.testing.assert_close(ours, literal, rtol=1e-9, atol=1e-12)
