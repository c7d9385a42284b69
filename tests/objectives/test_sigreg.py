"""SIGReg: the Epps-Pulley statistic against numerical integration, and its random directions."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from cjepa.objectives import build_objective
from cjepa.objectives.projector import ProjectorConfig
from cjepa.objectives.sigreg import SigregConfig, epps_pulley, random_directions
from cjepa.objectives.vicreg import similarity
from cjepa.types import Embeddings


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def integral(samples: np.ndarray) -> float:
    """n * integral of |phi_n(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) over [-5, 5], by adaptive quadrature."""

    def weighted(t: float) -> float:
        characteristic = np.exp(1j * t * samples).mean()
        return float(abs(characteristic - math.exp(-t * t / 2)) ** 2 * math.exp(-t * t / 2))

    return len(samples) * float(quad(weighted, -5, 5, epsabs=1e-10)[0])


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.3, 0.0), (1.0, 0.7), (1.5, -0.5)])
def test_the_statistic_equals_its_integral(scale: float, shift: float) -> None:
    samples = normal(20, 1, 1) * scale + shift
    expected = integral(samples.flatten().numpy())
    assert epps_pulley(samples).item() == pytest.approx(expected, rel=5e-3)


def test_it_is_the_mean_over_views_and_slices() -> None:
    samples = normal(12, 3, 4)
    expected = np.mean([integral(samples[:, m, s].numpy()) for m in range(3) for s in range(4)])
    assert epps_pulley(samples).item() == pytest.approx(expected, rel=5e-3)


def test_normal_samples_have_its_expectation_at_any_number_of_them() -> None:
    """E = integral of (1 - exp(-t^2)) exp(-t^2 / 2) = sqrt(2 pi) (1 - 1 / sqrt(3)) = 1.06 under N(0, 1)."""
    expected = math.sqrt(2 * math.pi) * (1 - 1 / math.sqrt(3))
    for images in (32, 512):
        assert epps_pulley(normal(images, 2, 500)).item() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(
    "distribution",
    [
        lambda x: 0 * x,  # collapsed
        lambda x: 0.5 * x,
        lambda x: x + 0.5,
        lambda x: x.sign(),
        lambda x: x.square() / math.sqrt(2) - 1 / math.sqrt(2),  # mean 0, variance 1, skewed
    ],
    ids=["collapsed", "narrow", "shifted", "two points", "skewed"],
)
def test_other_samples_score_far_higher(distribution: object) -> None:
    assert epps_pulley(distribution(normal(512, 2, 50))).item() > 6


def test_the_gradient_equals_finite_differences() -> None:
    torch.autograd.gradcheck(epps_pulley, (0.5 * normal(6, 2, 3)).requires_grad_())


def test_descending_it_makes_samples_normal() -> None:
    samples = (0.2 * normal(128, 1, 1) + 2).requires_grad_()
    optimizer = torch.optim.Adam([samples], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        epps_pulley(samples).backward()
        optimizer.step()
    assert samples.mean().item() == pytest.approx(0, abs=0.3)
    assert samples.std().item() == pytest.approx(1, abs=0.2)


def test_directions_are_unit_vectors_of_the_seed_and_the_step() -> None:
    directions = random_directions(3, 5, 40, 16)
    assert directions.shape == (40, 16)
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(40, dtype=torch.float64))
    assert torch.equal(random_directions(3, 5, 40, 16), directions)
    assert not torch.isclose(random_directions(3, 6, 40, 16), directions).any()
    assert not torch.isclose(random_directions(4, 5, 40, 16), directions).any()


def test_directions_are_uniform_on_the_sphere() -> None:
    directions = random_directions(0, 0, 20_000, 5)
    torch.testing.assert_close(directions.mean(dim=0), torch.zeros(5, dtype=torch.float64), atol=0.012, rtol=0)
    covariance = directions.T @ directions / 20_000
    torch.testing.assert_close(covariance, torch.eye(5, dtype=torch.float64) / 5, atol=0.01, rtol=0)
    fourth = directions.pow(4).mean(dim=0)  # 3 / (D (D + 2)); a cube's corners or uniform numbers would differ
    torch.testing.assert_close(fourth, torch.full((5,), 3 / 35, dtype=torch.float64), atol=0.004, rtol=0)


def test_the_objective_is_prediction_plus_weighted_terms() -> None:
    config = SigregConfig(beta=0.2, similarity=2, sigreg=3, slices=8, projector=ProjectorConfig(depth=0))
    given = Embeddings(normal(7, 9, 6), normal(7, 3, 4, 6, seed=1), normal(7, 3, 4, 6, seed=2))
    loss = build_objective(config, 6, seed=5)(given, 11)
    views = given.predicted.mean(dim=2)
    gaussianity = epps_pulley(views @ random_directions(5, 11, 8, 6).T)
    torch.testing.assert_close(loss.terms["sigreg"], gaussianity)
    expected = loss.terms["prediction"] + 0.2 * (2 * similarity(views) + 3 * gaussianity)
    torch.testing.assert_close(loss.total, expected)
