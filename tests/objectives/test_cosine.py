"""The cosine criterion of Algorithm 1 against its double loop."""

import pytest
import torch
from torch.nn import functional as F

from cjepa.objectives import build_objective
from cjepa.objectives.cosine import CosineConfig, negative_cosine
from cjepa.objectives.projector import ProjectorConfig
from cjepa.types import Embeddings


def views(images: int, blocks: int, features: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(blocks)
    return torch.randn(images, blocks, features, generator=generator, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(("images", "blocks", "features"), [(1, 2, 3), (5, 4, 16), (16, 3, 4)])
def test_it_equals_the_double_loop_in_value_and_gradient(images: int, blocks: int, features: int) -> None:
    given = views(images, blocks, features)
    pairs = [(i, j) for i in range(blocks) for j in range(blocks) if i != j]
    literal = sum(-F.cosine_similarity(given[:, i], given[:, j]).mean() for i, j in pairs) / len(pairs)
    fast = negative_cosine(given, given)
    torch.testing.assert_close(fast, literal)
    torch.testing.assert_close(*(torch.autograd.grad(value, given)[0] for value in (fast, literal)))


def test_equal_blocks_have_minus_one_and_opposite_ones_plus_one() -> None:
    one = views(4, 1, 6).detach()
    scaled, opposed = one.expand(-1, 3, -1) * torch.tensor([1.0, 2.0, 3.0])[:, None], torch.cat([one, -one], dim=1)
    assert negative_cosine(scaled, scaled).item() == pytest.approx(-1)
    assert negative_cosine(opposed, opposed).item() == pytest.approx(1)


def test_the_objective_is_prediction_plus_weighted_cosine() -> None:
    given = views(5, 4, 8).detach()
    embeddings = Embeddings(given, given.unsqueeze(2), given.unsqueeze(2) + 0.5)
    config = CosineConfig(beta=0.1, similarity=7, projector=ProjectorConfig(depth=0))
    loss = build_objective(config, 8, seed=0)(embeddings, 0)
    torch.testing.assert_close(loss.terms["cosine"], negative_cosine(given, given))
    torch.testing.assert_close(loss.total, loss.terms["prediction"] + 0.7 * negative_cosine(given, given))
