"""Rank, spread and explained variance of embeddings whose answer is known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cjepa.evaluation.representation import (
    dimension_std,
    effective_rank,
    explained_variance,
    position_errors,
    singular_values,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_singular_values_equal_numpy() -> None:
    embeddings = normal(50, 6) + 100
    exact = embeddings.double().numpy()
    expected = np.linalg.svd(exact - exact.mean(0), compute_uv=False) / np.sqrt(50)
    np.testing.assert_allclose(singular_values(embeddings).numpy(), expected, rtol=1e-9)


def test_isotropic_embeddings_have_full_rank() -> None:
    corners = torch.cat([torch.eye(12), -torch.eye(12)])
    assert effective_rank(corners) == pytest.approx(12)
    assert effective_rank(normal(20_000, 12)) == pytest.approx(12, abs=0.01)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_embeddings_in_a_subspace_have_its_rank(rank: int) -> None:
    basis = torch.linalg.qr(normal(32, rank, seed=1))[0]
    corners = torch.cat([torch.eye(rank), -torch.eye(rank)]).repeat(4, 1)
    assert effective_rank(corners @ basis.T + 5) == pytest.approx(rank, rel=1e-3)


def test_unequal_axes_have_the_entropy_of_rankme() -> None:
    shares = torch.tensor([0.5, 0.25, 0.25])  # entropy 1.5 bits
    embeddings = torch.cat([torch.diag(shares), -torch.diag(shares)])
    assert effective_rank(embeddings) == pytest.approx(2**1.5)


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1e-20, 1e15])
def test_constant_embeddings_have_rank_one_and_no_spread(value: float) -> None:
    embeddings = torch.full((33, 7), value)
    assert effective_rank(embeddings) == 1
    assert dimension_std(embeddings).max() <= 1e-15 * abs(value)


def test_rounding_noise_of_a_collapsed_encoder_is_not_rank() -> None:
    assert effective_rank(1 + 1e-7 * normal(100, 16)) == 1
    assert effective_rank(1 + 1e-4 * normal(100, 16)) > 14


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(2, 20),
    width=st.integers(1, 20),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    shift=st.sampled_from([0.0, 1.0, -10.0]),
)
def test_rank_is_bounded_and_ignores_scale_and_shift(n: int, width: int, scale: float, shift: float) -> None:
    embeddings = normal(n, width)
    rank = effective_rank(embeddings)
    assert 1 - 1e-9 <= rank <= min(n - 1, width) + 1e-9
    assert effective_rank(scale * (embeddings + shift)) == pytest.approx(rank, rel=1e-3)


def test_dimension_std_is_unbiased_and_two_pass() -> None:
    embeddings = 1000 + normal(40, 5) * torch.tensor([1e-3, 0.1, 1, 10, 0])
    expected = np.std(embeddings.double().numpy(), axis=0, ddof=1)
    np.testing.assert_allclose(dimension_std(embeddings).numpy(), expected, rtol=1e-9, atol=1e-12)
    with pytest.raises(AssertionError, match="at least two"):
        dimension_std(embeddings[:1])


IMAGES, BLOCKS, LENGTH, WIDTH, GRID = 64, 3, 4, 6, 9


def blocks(seed: int = 0, images: int = IMAGES) -> tuple[Tensor, Tensor, Tensor]:
    """Targets made of a large part that position decides and a part of the patch; positions, and the position part.

    Blocks overlap, as target blocks do: an image's patch has the same target in each of its blocks.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(images, BLOCKS, GRID, generator=generator)
    positions = draws.argsort(-1)[..., :LENGTH]
    by_position = 10 * torch.randn(GRID, WIDTH, generator=torch.Generator().manual_seed(99))
    content = torch.randn(images, GRID, WIDTH, generator=generator)
    patches = (by_position + content)[torch.arange(images).view(-1, 1, 1), positions]
    return patches, positions, by_position[positions]


def test_a_perfect_predictor_scores_one() -> None:
    target, positions, _ = blocks()
    assert explained_variance(target, target, positions) == 1


@pytest.mark.parametrize(("images", "seeds"), [(4, 400), (64, 30)])
def test_a_predictor_that_knows_only_positions_scores_zero_at_any_batch_size(images: int, seeds: int) -> None:
    scores = []
    for seed in range(seeds):
        target, positions, by_position = blocks(seed, images)
        scores.append(explained_variance(by_position, target, positions))
    error = np.std(scores) / np.sqrt(seeds)
    assert error < 0.02
    assert abs(np.mean(scores)) < 4 * error + 0.02  # a ratio of means is unbiased only to first order


def test_half_of_the_content_explains_three_quarters() -> None:
    target, positions, by_position = blocks()
    predicted = by_position + 0.5 * (target - by_position)
    assert explained_variance(predicted, target, positions) == pytest.approx(0.75, abs=0.01)


def test_worse_than_the_mean_is_negative() -> None:
    target, positions, by_position = blocks()
    assert explained_variance(2 * by_position - target, target, positions) == pytest.approx(-3, abs=0.2)
    assert explained_variance(torch.zeros_like(target), target, positions) < -10


def test_equals_the_definition_where_every_image_holds_a_position_once() -> None:
    target, predicted = normal(5, 1, GRID, WIDTH), normal(5, 1, GRID, WIDTH, seed=1)
    positions = torch.arange(GRID).expand(5, 1, GRID)
    within = (target - target.mean(0)).square().sum() * 5 / 4
    expected = 1 - (target - predicted).square().sum() / within
    assert explained_variance(predicted, target, positions) == pytest.approx(float(expected), rel=1e-5)


def test_positions_of_a_single_image_contribute_nothing() -> None:
    target, positions, by_position = blocks()
    base = explained_variance(0.5 * (target + by_position), target, positions)
    alone = torch.full((IMAGES, 1, LENGTH), GRID)  # its own row for every image: GRID, GRID + 1, ...
    alone += torch.arange(IMAGES).view(-1, 1, 1)  # the same position in all slots of an image, no other image's
    more = torch.cat([target, normal(IMAGES, 1, LENGTH, WIDTH)], dim=1)
    guess = torch.cat([0.5 * (target + by_position), 100 * normal(IMAGES, 1, LENGTH, WIDTH)], dim=1)
    assert explained_variance(guess, more, torch.cat([positions, alone], dim=1)) == pytest.approx(base, rel=1e-12)


def test_targets_that_only_position_decides_score_zero() -> None:
    _, positions, by_position = blocks()
    assert explained_variance(by_position, by_position, positions) == 0
    assert explained_variance(by_position + 1, by_position, positions) == 0
    assert explained_variance(torch.zeros_like(by_position), torch.zeros_like(by_position), positions) == 0


def test_one_image_scores_zero() -> None:
    target, positions, _ = blocks(images=1)
    assert explained_variance(target, target, positions) == 0


def test_position_errors_equal_a_loop_and_are_missing_where_nothing_is_predicted() -> None:
    predicted, target = normal(3, 2, 4, 5), normal(3, 2, 4, 5, seed=1)
    positions = torch.randint(0, 9, (3, 2, 4), generator=torch.Generator().manual_seed(2))
    found = position_errors(predicted, target, positions, 12)
    for place in range(12):
        errors = [
            float((predicted[index] - target[index]).square().mean())
            for index in np.ndindex(3, 2, 4)
            if positions[index] == place
        ]
        assert bool(found[place].isnan()) == (not errors)
        if errors:
            assert float(found[place]) == pytest.approx(np.mean(errors), rel=1e-5)
