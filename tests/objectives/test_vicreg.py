"""VICReg's terms: known values, collapse, and precision where naive formulas fail."""

import pytest
import torch
from torch import Tensor

from cjepa.objectives.vicreg import covariance_penalty, similarity, variance_hinge


def normal_views(images: int, blocks: int, features: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, blocks, features, generator=generator, dtype=torch.float64)


def test_similarity_is_the_mean_squared_distance_of_two_views() -> None:
    views = normal_views(5, 2, 3)
    torch.testing.assert_close(similarity(views), (views[:, 0] - views[:, 1]).square().mean())


def test_similarity_of_equal_blocks_is_zero_although_images_differ() -> None:
    """With images and blocks mixed up, as in a block-major view, it would be large."""
    views = normal_views(6, 1, 8).expand(-1, 4, -1)
    assert similarity(views).item() == pytest.approx(0, abs=1e-30)
    mixed = views.transpose(0, 1).reshape(6, 4, 8)
    assert similarity(mixed) > 1


def test_variance_hinge_of_known_spreads() -> None:
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(500)
    spread = torch.stack([0.5 * signs, 3.0 * signs], dim=1)[:, None]  # std 0.5 and 3 over images
    unbiased = (0.25 * 1000 / 999 + 1e-4) ** 0.5
    assert variance_hinge(spread).item() == pytest.approx((1 - unbiased) / 2)


def test_covariance_penalty_of_known_dependence() -> None:
    first = normal_views(50, 1, 1)
    copied = torch.cat([first, 2 * first, torch.zeros_like(first)], dim=-1)
    covariance = 2 * first.var().item()  # between the first two dimensions, twice; the third is constant
    assert covariance_penalty(copied).item() == pytest.approx(2 * covariance**2 / 3)


def test_covariance_penalty_vanishes_for_independent_dimensions() -> None:
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)[:, None]
    assert covariance_penalty(corners).item() == pytest.approx(0, abs=1e-15)


def test_statistics_are_taken_over_images_and_never_between_views() -> None:
    """Constant offsets between the views of an image are no variance."""
    views = torch.zeros(7, 4, 5, dtype=torch.float64) + normal_views(1, 4, 5)
    assert variance_hinge(views).item() == pytest.approx(1 - 0.01)
    assert covariance_penalty(views).item() == pytest.approx(0, abs=1e-30)


def test_an_exactly_collapsed_batch_has_finite_loss_and_no_gradient() -> None:
    """VICReg cannot leave an exact collapse, so the alarm has to come earlier (docs/health.md)."""
    views = torch.full((8, 4, 6), 0.3, requires_grad=True)
    (25 * similarity(views) + 25 * variance_hinge(views) + 2 * covariance_penalty(views)).backward()
    assert variance_hinge(views).item() == pytest.approx(0.99, abs=1e-4)
    assert views.grad is not None
    assert views.grad.abs().max() < 1e-6


@pytest.mark.parametrize(("images", "features"), [(16, 64), (256, 16)])
def test_a_large_mean_costs_no_precision(images: int, features: int) -> None:
    """At a mean of 300 the one-pass formula E[xx] - E[x]^2 is 19 % wrong in float32."""
    views = normal_views(images, 2, features)
    shifted = (views * 0.7 + 300).float()
    exact = shifted.double()
    torch.testing.assert_close(covariance_penalty(shifted).double(), covariance_penalty(exact), rtol=1e-4, atol=0)
    torch.testing.assert_close(variance_hinge(shifted).double(), variance_hinge(exact), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("images", "features"), [(4, 9), (6, 6), (9, 4)])
def test_gradients_equal_finite_differences(images: int, features: int) -> None:
    views = (normal_views(images, 3, features) * torch.linspace(0.3, 2, features)).requires_grad_()
    for term in (similarity, variance_hinge, covariance_penalty):
        torch.autograd.gradcheck(term, views, atol=1e-6)
