"""VICReg's terms, the cosine criterion and positions against lightly's, on the same input."""

from itertools import permutations

import pytest
import torch
from torch import Tensor

lightly_vicreg = pytest.importorskip("lightly.loss.vicreg_loss", reason="lightly is not installed")

from lightly.loss import NegativeCosineSimilarity, VICRegLoss  # noqa: E402
from lightly.models.utils import get_2d_sine_cosine_positional_embedding  # noqa: E402

from cjepa.models.positions import sincos_positions  # noqa: E402
from cjepa.objectives.cosine import negative_cosine  # noqa: E402
from cjepa.objectives.projector import ProjectorConfig  # noqa: E402
from cjepa.objectives.two_views import Vicreg, VicregConfig  # noqa: E402
from cjepa.objectives.vicreg import covariance_penalty, similarity, variance_hinge  # noqa: E402
from cjepa.types import Embeddings  # noqa: E402

SHAPES = [(6, 2, 20), (16, 4, 16), (64, 4, 8), (9, 3, 30)]


def views(images: int, blocks: int, features: int) -> Tensor:
    generator = torch.Generator().manual_seed(images)
    z = torch.randn(images, blocks, features, generator=generator, dtype=torch.float64)
    return (z + z.mean(dim=-1, keepdim=True)) * torch.linspace(0.2, 2.0, features, dtype=torch.float64) + 1


def pairs(z: Tensor) -> list[tuple[Tensor, Tensor]]:
    """All ordered pairs of different views, each [B, D]."""
    return list(permutations(z.unbind(1), 2))


def mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()


@pytest.mark.parametrize("shape", SHAPES)
def test_terms(shape: tuple[int, int, int]) -> None:
    """lightly's covariance term divides by B - 1 and by D, as the paper's and ours do."""
    z = views(*shape)
    torch.testing.assert_close(similarity(z), mean([lightly_vicreg.invariance_loss(*pair) for pair in pairs(z)]))
    torch.testing.assert_close(variance_hinge(z), mean([lightly_vicreg.variance_loss(v) for v in z.unbind(1)]))
    torch.testing.assert_close(covariance_penalty(z), mean([lightly_vicreg.covariance_loss(v) for v in z.unbind(1)]))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_whole_loss_with_its_gradient(shape: tuple[int, int, int]) -> None:
    z = views(*shape).requires_grad_()
    criterion = VICRegLoss(lambda_param=25.0, mu_param=25.0, nu_param=1.0, eps=1e-4)
    theirs = mean([criterion(*pair) for pair in pairs(z)])
    ours = 25 * similarity(z) + 25 * variance_hinge(z) + 2 * covariance_penalty(z)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, z)[0] for loss in (ours, theirs)))


@pytest.mark.parametrize("shape", SHAPES)
def test_negative_cosine(shape: tuple[int, int, int]) -> None:
    z = views(*shape)
    criterion = NegativeCosineSimilarity()
    torch.testing.assert_close(negative_cosine(z, z), mean([criterion(*pair) for pair in pairs(z)]))


@pytest.mark.parametrize("shape", [(6, 2, 20), (64, 2, 8)])
def test_vicreg_of_two_views_with_its_gradient(shape: tuple[int, int, int]) -> None:
    z = views(*shape).requires_grad_()
    objective = Vicreg(VicregConfig(projector=ProjectorConfig(depth=0)), shape[2])
    ours = objective(Embeddings(z[:, :0], z.unsqueeze(2), z.unsqueeze(2)), 0).total
    theirs = VICRegLoss(lambda_param=25.0, mu_param=25.0, nu_param=1.0, eps=1e-4)(*z.unbind(1))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, z)[0] for loss in (ours, theirs)))


@pytest.mark.parametrize("shape", [(6, 2, 20), (64, 2, 8)])
def test_simsiam_with_its_gradient(shape: tuple[int, int, int]) -> None:
    """As lightly's example has it: half of each view's prediction against the other's projection, detached."""
    p, z = views(*shape).requires_grad_(), views(*shape).flip(0) * 0.7
    criterion = NegativeCosineSimilarity()
    theirs = 0.5 * (criterion(p[:, 0], z[:, 1].detach()) + criterion(p[:, 1], z[:, 0].detach()))
    ours = negative_cosine(p, z.detach())
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, p)[0] for loss in (ours, theirs)))


def test_positions_equal_those_of_masked_autoencoders() -> None:
    theirs = torch.from_numpy(get_2d_sine_cosine_positional_embedding(48, 7, cls_token=False)).float()
    torch.testing.assert_close(sincos_positions(7, 7, 48), theirs, atol=1e-6, rtol=1e-5)
