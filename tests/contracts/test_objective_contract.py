"""What every objective must do. A new one in the union is tested without a line here."""

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from cjepa.objectives import (
    AnyObjectiveConfig,
    Objective,
    ObjectiveConfig,
    TwoViewsConfig,
    build_objective,
    term_weights,
)
from cjepa.types import Embeddings, Loss
from tests.contracts.models import NAMES, VARIANTS, batch_for, model_for

REGULARISE_THE_CONTEXT = {"cjepa-context", "cjepa-both"}
"""Objectives whose gradient reaches the context embeddings themselves."""
BATCH, BLOCKS, WIDTH = 8, 4, 16


@pytest.fixture(params=VARIANTS, ids=NAMES)
def config(request: pytest.FixtureRequest) -> AnyObjectiveConfig:
    """A variant with its defaults, but for a narrow projector and a beta that shows."""
    config = request.param()
    changes: dict[str, object] = {"beta": 1.0} if has_beta(config) else {}
    if "projector" in type(config).model_fields:
        changes["projector"] = config.projector.model_copy(update={"width": 24})
    return config.model_copy(update=changes)


@pytest.fixture
def predicting(config: AnyObjectiveConfig) -> AnyObjectiveConfig:
    """A variant that predicts masked patches."""
    if isinstance(config, TwoViewsConfig):
        pytest.skip("two views are compared, nothing is predicted")
    return config


def has_beta(config: AnyObjectiveConfig) -> bool:
    return "beta" in type(config).model_fields


def build(config: AnyObjectiveConfig, seed: int = 0) -> Objective:
    return build_objective(config, WIDTH, seed)


def embeddings(requires_grad: bool = False) -> Embeddings:
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(BATCH, 9, WIDTH, generator=generator)
    predicted, target = torch.randn(2, BATCH, BLOCKS, 5, WIDTH, generator=generator).unbind(0)
    return Embeddings(context.requires_grad_(requires_grad), predicted.clone().requires_grad_(requires_grad), target)


def test_names_are_unique_and_choose_the_variant() -> None:
    assert len(set(NAMES)) == len(NAMES) >= 7
    for variant, name in zip(VARIANTS, NAMES, strict=True):
        assert type(TypeAdapter(ObjectiveConfig).validate_python({"name": name})) is variant


def test_the_loss_is_a_finite_scalar_and_its_terms_are_detached(config: AnyObjectiveConfig) -> None:
    loss = build(config)(embeddings(requires_grad=True), 0)
    assert loss.total.shape == ()
    assert loss.total.dtype == torch.float32
    assert loss.total.isfinite()
    assert loss.total.requires_grad
    assert ("prediction" in loss.terms) != isinstance(config, TwoViewsConfig)
    for name, term in loss.terms.items():
        assert term.shape == (), name
        assert term.isfinite(), name
        assert not term.requires_grad, name


def test_the_weighted_terms_add_up_to_the_loss(config: AnyObjectiveConfig) -> None:
    loss = build(config)(embeddings(), 0)
    weights = term_weights(config)
    assert weights.keys() <= loss.terms.keys()
    assert loss.terms.keys() - weights.keys() <= {"vicreg"}
    torch.testing.assert_close(sum(weight * loss.terms[name] for name, weight in weights.items()), loss.total)


def test_the_gradient_reaches_what_it_should(config: AnyObjectiveConfig) -> None:
    given, objective = embeddings(requires_grad=True), build(config)
    objective(given, 0).total.backward()
    assert given.predicted.grad is not None
    assert (given.predicted.grad.abs().amax(dim=(2, 3)) > 0).all(), "every block of every image counts"
    assert given.predicted.grad.isfinite().all()
    reached = given.context.grad is not None and bool((given.context.grad.abs().amax(dim=(1, 2)) > 0).all())
    assert reached == (config.name in REGULARISE_THE_CONTEXT)
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None, f"{name} is never used"
        assert parameter.grad.isfinite().all(), name


def test_with_target_gradient_the_targets_learn_too(predicting: AnyObjectiveConfig) -> None:
    """The collapse study takes targets from the encoder with gradient; no objective may cut it."""
    given = embeddings()
    target = given.target.clone().requires_grad_()
    build(predicting)(Embeddings(given.context, given.predicted, target), 0).total.backward()
    assert target.grad is not None
    assert target.grad.abs().max() > 0


def test_the_same_embeddings_give_the_same_bits(config: AnyObjectiveConfig) -> None:
    losses = [build(config)(embeddings(), 3) for _ in range(2)]
    objective = build(config)
    losses += [objective(embeddings(), 3) for _ in range(2)]  # nothing is remembered from call to call
    for loss in losses[1:]:
        assert torch.equal(loss.total, losses[0].total)
        assert loss.terms.keys() == losses[0].terms.keys()
        assert all(torch.equal(term, losses[0].terms[name]) for name, term in loss.terms.items())


def test_weights_are_a_function_of_the_seed(config: AnyObjectiveConfig) -> None:
    first, same, other = (list(build(config, seed).parameters()) for seed in (0, 0, 1))
    assert all(map(torch.equal, first, same))
    assert not any(p.ndim > 1 and torch.equal(p, q) for p, q in zip(first, other, strict=True))


def test_initialise_forgets_no_parameter(config: AnyObjectiveConfig) -> None:
    objective = build(config)
    for parameter in objective.parameters():
        parameter.data.fill_(torch.nan)
    objective.initialise(torch.Generator().manual_seed(0))
    assert all(parameter.isfinite().all() for parameter in objective.parameters())


def reordered(given: Embeddings, images: Tensor, blocks: Tensor) -> Embeddings:
    return Embeddings(given.context[images], given.predicted[images][:, blocks], given.target[images][:, blocks])


def assert_close(left: Loss, right: Loss) -> None:
    torch.testing.assert_close(left.total, right.total, rtol=1e-4, atol=1e-5)
    for name, term in left.terms.items():
        torch.testing.assert_close(term, right.terms[name], rtol=1e-4, atol=1e-5)


def test_images_and_blocks_have_no_order(config: AnyObjectiveConfig) -> None:
    objective, given = build(config), embeddings()
    images, blocks = torch.tensor([5, 0, 7, 2, 1, 3, 6, 4]), torch.tensor([2, 0, 3, 1])
    assert_close(objective(reordered(given, images, blocks), 0), objective(given, 0))


def test_without_its_regularisation_only_the_prediction_counts(predicting: AnyObjectiveConfig) -> None:
    if has_beta(predicting):
        predicting = predicting.model_copy(update={"beta": 0.0})
    loss = build(predicting)(embeddings(), 0)
    assert torch.equal(loss.total, loss.terms["prediction"])


def test_perfect_predictions_have_no_prediction_loss(predicting: AnyObjectiveConfig) -> None:
    given = embeddings()
    assert build(predicting)(Embeddings(given.context, given.target, given.target), 0).terms["prediction"] == 0


def test_a_collapsed_batch_has_a_finite_loss_and_gradient(config: AnyObjectiveConfig) -> None:
    shapes = ((BATCH, 9, WIDTH), (BATCH, BLOCKS, 5, WIDTH), (BATCH, BLOCKS, 5, WIDTH))
    context, predicted, target = (torch.full(shape, 0.5) for shape in shapes)
    given = Embeddings(context.requires_grad_(), predicted.requires_grad_(), target)
    loss = build(config)(given, 0)
    loss.total.backward()
    assert loss.total.isfinite()
    assert given.predicted.grad is not None
    assert given.predicted.grad.isfinite().all()


@pytest.mark.parametrize("batch", [2, 3])
def test_the_smallest_batches_work(config: AnyObjectiveConfig, batch: int) -> None:
    given = embeddings()
    few = Embeddings(given.context[:batch], given.predicted[:batch], given.target[:batch])
    assert build(config)(few, 0).total.isfinite()


def test_a_half_precision_forward_pass_gives_a_loss_in_full_precision(config: AnyObjectiveConfig) -> None:
    """As the trainer runs it: bfloat16 within the model, float32 from the embeddings on."""
    model, batch = model_for(config, WIDTH, depth=1), batch_for(config, BATCH)
    images, second = (None if each is None else each / 127.5 - 1.0 for each in (batch.images, batch.second))
    with torch.autocast("cpu", torch.bfloat16):
        found = model(images, batch.masks if second is None else second)
    loss = build(config)(found, 0)
    assert loss.total.dtype == torch.float32
    assert all(term.dtype == torch.float32 for term in loss.terms.values())
    doubled = Embeddings(found.context.double(), found.predicted.double(), found.target.double())
    exact = build(config).double()(doubled, 0)
    torch.testing.assert_close(loss.total.double(), exact.total, rtol=1e-4, atol=1e-6)
    loss.total.backward()
    for part in model.learned.values():
        assert all(p.grad is not None and p.grad.isfinite().all() for p in part.parameters())
