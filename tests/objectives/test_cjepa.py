"""C-JEPA's objective and its special cases add up."""

import torch

from cjepa.objectives import CJepaConfig, IJepaConfig, build_objective
from cjepa.objectives.cjepa import InvarianceConfig, VarianceCovarianceConfig
from cjepa.objectives.projector import ProjectorConfig
from cjepa.types import Embeddings, Loss

SMALL = ProjectorConfig(width=24)


def embeddings(seed: int = 0) -> Embeddings:
    generator = torch.Generator().manual_seed(seed)
    context, predicted, target = (
        torch.randn(shape, generator=generator) for shape in ((8, 9, 16), (8, 4, 5, 16), (8, 4, 5, 16))
    )
    return Embeddings(context, predicted, target)


def loss(config: CJepaConfig | IJepaConfig | InvarianceConfig | VarianceCovarianceConfig) -> Loss:
    return build_objective(config, 16, seed=0)(embeddings(), 0)


def test_with_beta_0_it_is_ijepa() -> None:
    assert torch.equal(loss(CJepaConfig(beta=0)).total, loss(IJepaConfig()).total)
    assert not torch.isclose(loss(CJepaConfig()).total, loss(IJepaConfig()).total, rtol=1e-4)


def test_its_two_halves_add_up_to_the_whole() -> None:
    """L_full - L_jepa = (L_variance_covariance - L_jepa) + (L_invariance - L_jepa), of the same projector."""
    whole = loss(CJepaConfig(beta=1, projector=SMALL)).total
    halves = [loss(config(beta=1, projector=SMALL)).total for config in (VarianceCovarianceConfig, InvarianceConfig)]
    alone = loss(IJepaConfig()).total
    torch.testing.assert_close(whole - alone, sum(half - alone for half in halves))
    assert all((half - alone) > 0.1 for half in halves)


def test_the_total_is_the_weighted_sum_of_its_terms() -> None:
    config = CJepaConfig(beta=0.3, similarity=2, variance=3, covariance=5, projector=SMALL)
    found = loss(config)
    terms = found.terms
    vicreg = 2 * terms["similarity"] + 3 * terms["variance"] + 2 * 5 * terms["covariance"]
    torch.testing.assert_close(terms["vicreg"], vicreg)
    torch.testing.assert_close(found.total, terms["prediction"] + 0.3 * vicreg)


def test_the_paper_s_weights_are_the_defaults() -> None:
    config = CJepaConfig()
    assert (config.beta, config.similarity, config.variance, config.covariance) == (0.001, 25, 25, 1)


def test_blocks_are_compared_by_their_means_over_patches() -> None:
    """Patches that change within a block, with the same mean, change the prediction term alone."""
    objective = build_objective(CJepaConfig(projector=SMALL), 16, seed=0)
    before = embeddings()
    shift = torch.randn(8, 4, 5, 16, generator=torch.Generator().manual_seed(9))
    predicted = before.predicted + shift - shift.mean(dim=2, keepdim=True)
    after = Embeddings(before.context, predicted, before.target)
    torch.testing.assert_close(objective(after, 0).terms["vicreg"], objective(before, 0).terms["vicreg"])
    assert objective(after, 0).terms["prediction"] > objective(before, 0).terms["prediction"] + 0.05


def test_images_and_blocks_are_not_interchangeable() -> None:
    """The same predictions viewed block-major are another loss: what the mistake of mixing them would change."""
    objective = build_objective(CJepaConfig(projector=SMALL), 16, seed=0)
    blocks = torch.randn(8, 1, 1, 16, generator=torch.Generator().manual_seed(0)).expand(8, 4, 5, 16)
    mixed = blocks.transpose(0, 1).reshape(8, 4, 5, 16)
    context = embeddings().context
    right, wrong = (objective(Embeddings(context, part, part), 0).terms["similarity"] for part in (blocks, mixed))
    assert right < 1e-10
    assert wrong > 0.01


def test_no_part_of_the_vicreg_term_stops_the_gradient() -> None:
    """The gradient by each block equals a numerical derivative, so no branch is detached."""
    objective = build_objective(CJepaConfig(beta=1, projector=ProjectorConfig(depth=0)), 16, seed=0)
    given = embeddings()
    predicted = given.predicted.double().requires_grad_()

    def total(values: torch.Tensor) -> torch.Tensor:
        return objective(Embeddings(given.context.double(), values, given.target.double()), 0).total

    torch.autograd.gradcheck(total, predicted, fast_mode=True, atol=1e-5)
