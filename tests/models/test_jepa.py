"""Encoder, moving average and predictor together: targets, gradients, the closed form of the average."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cjepa.masking import MultiblockConfig, build_sampler
from cjepa.models import JEPA, EncoderConfig, ModelConfig
from cjepa.models.jepa import TargetConfig, gather_blocks
from cjepa.models.predictor import PredictorConfig
from cjepa.types import Masks

GRID = (6, 5)


def model(**target: object) -> JEPA:
    config = ModelConfig(
        encoder=EncoderConfig(width=24, depth=2, heads=2, patch_size=4),
        predictor=PredictorConfig(width=16, depth=2),
        target=TargetConfig.model_validate(target),
    )
    built = JEPA(config, GRID)
    built.initialise(0)
    return built


def batch(images: int = 3) -> tuple[Tensor, Masks]:
    pixels = torch.randn(images, 3, 24, 20, generator=torch.Generator().manual_seed(1))
    return pixels, build_sampler(MultiblockConfig(), GRID, 0, images)(0, 0, images)


def perturb(module: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


def test_embeddings_are_those_of_each_image_and_block() -> None:
    """Against a loop over images and blocks, with a target encoder that differs from the encoder."""
    built = model()
    perturb(built.target_encoder, 2)
    images, masks = batch()
    found = built(images, masks)
    assert found.predicted.shape == found.target.shape == (*masks.targets.shape, 24)
    for image in range(3):
        pixels = images[[image]]
        context = built.encoder(pixels, keep=masks.context[[image]])
        targets = F.layer_norm(built.target_encoder(pixels), (24,))[0]
        torch.testing.assert_close(found.context[image], context[0])
        for block in range(4):
            indices = masks.targets[image, block]
            alone = Masks(masks.context[[image]], indices[None, None])
            torch.testing.assert_close(found.target[image, block], targets[indices])
            torch.testing.assert_close(found.predicted[image, block], built.predictor(context, alone)[0, 0])


def test_gathered_blocks_are_those_of_each_image() -> None:
    patches = torch.arange(2 * 6.0).reshape(2, 6, 1)
    blocks = gather_blocks(patches, torch.tensor([[[0, 1], [4, 5]], [[2, 3], [0, 5]]]))
    assert blocks.squeeze(-1).tolist() == [[[0, 1], [4, 5]], [[8, 9], [6, 11]]]


def test_targets_are_normalised_over_features_without_affine() -> None:
    images, masks = batch()
    target = model()(images, masks).target
    torch.testing.assert_close(target.mean(dim=-1), torch.zeros(target.shape[:-1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(target.var(dim=-1, correction=0), torch.ones(target.shape[:-1]), atol=1e-3, rtol=0)


def test_targets_can_be_standardised_over_the_batch_per_position() -> None:
    targets = model(normalization="batch").targets([batch(32)[0]])
    torch.testing.assert_close(targets.mean(dim=0), torch.zeros(30, 24), atol=1e-4, rtol=0)
    assert (targets.var(dim=0, correction=0) < 1.001).all()
    assert targets.var(dim=0, correction=0).median() > 0.9  # less than 1 by the epsilon


def test_targets_can_be_left_as_they_are() -> None:
    built = model(normalization="none")
    torch.testing.assert_close(built.targets([batch()[0]]), built.target_encoder(batch()[0]))


def test_the_target_encoder_never_has_gradients() -> None:
    built = model()
    images, masks = batch()
    embeddings = built(images, masks)
    assert not embeddings.target.requires_grad
    assert embeddings.context.requires_grad
    assert embeddings.predicted.requires_grad
    (embeddings.predicted - embeddings.target).square().mean().backward()
    assert all(p.grad is not None for part in (built.encoder, built.predictor) for p in part.parameters())
    assert all(p.grad is None and not p.requires_grad for p in built.target_encoder.parameters())


def test_with_target_gradient_it_flows_into_the_encoder_and_not_into_its_average() -> None:
    built = model(gradient=True)
    images, masks = batch()
    embeddings = built(images, masks)
    assert embeddings.target.requires_grad
    (embeddings.target * torch.randn(embeddings.target.shape)).sum().backward()
    assert built.encoder.patch_projection.weight.grad.abs().max() > 0
    assert all(p.grad is None for p in built.target_encoder.parameters())
    perturb(built.target_encoder, 2)
    torch.testing.assert_close(built(images, masks).target, embeddings.target)  # the average plays no part


def test_the_average_equals_its_closed_form_after_many_updates() -> None:
    """f'_n = prod(m) f_0 + sum over k of (1 - m_k) prod over j > k of m_j, f_k: in float64, for every parameter."""
    built = model()
    momenta = [0.99 + 0.01 * k / 19 for k in range(20)]
    averaged = [p.detach().double() for p in built.target_encoder.parameters()]
    snapshots = []
    for k, momentum in enumerate(momenta):
        perturb(built.encoder, k)
        snapshots.append([p.detach().double().clone() for p in built.encoder.parameters()])
        built.update_target(momentum)
    remaining = torch.tensor(momenta, dtype=torch.float64)
    weights = [(1 - momenta[k]) * remaining[k + 1 :].prod() for k in range(20)]
    assert float(sum(weights) + remaining.prod()) == pytest.approx(1)
    for index, (parameter, start) in enumerate(zip(built.target_encoder.parameters(), averaged, strict=True)):
        expected = remaining.prod() * start + sum(w * s[index] for w, s in zip(weights, snapshots, strict=True))
        assert parameter.dtype == torch.float32
        torch.testing.assert_close(parameter.double(), expected, atol=1e-6, rtol=1e-6)


def test_momentum_1_freezes_the_average_and_0_copies_the_encoder() -> None:
    built = model()
    before = [p.clone() for p in built.target_encoder.parameters()]
    perturb(built.encoder, 3)
    built.update_target(1.0)
    assert all(map(torch.equal, before, built.target_encoder.parameters()))
    built.update_target(0.0)
    assert all(map(torch.equal, built.encoder.parameters(), built.target_encoder.parameters()))
    perturb(built.encoder, 4)  # a copy, not the same memory
    assert not any(map(torch.equal, built.encoder.parameters(), built.target_encoder.parameters()))


def test_a_small_step_of_the_average_is_not_lost() -> None:
    """1 - momentum = 1e-4 moves float32 weights; in bfloat16 it would round away."""
    built = model()
    perturb(built.encoder, 3)
    before = [p.clone() for p in built.target_encoder.parameters()]
    built.update_target(0.9999)
    for old, new, goal in zip(before, built.target_encoder.parameters(), built.encoder.parameters(), strict=True):
        torch.testing.assert_close(new - old, 1e-4 * (goal - old), atol=2e-7, rtol=0.02)


def test_initialise_forgets_no_parameter_and_is_a_function_of_the_seed() -> None:
    first, second, third = model(), model(), model()
    for built in (second, third):
        for parameter in built.parameters():
            parameter.data.fill_(torch.nan)
    second.initialise(0)
    third.initialise(1)
    assert all(p.isfinite().all() for built in (second, third) for p in built.parameters())
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    assert not torch.equal(first.encoder.patch_projection.weight, third.encoder.patch_projection.weight)
    assert all(map(torch.equal, third.encoder.parameters(), third.target_encoder.parameters()))


def test_a_forgotten_initialisation_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cjepa.models.predictor.cut_normal", lambda *arguments: None)
    built = model()
    for parameter in built.parameters():
        parameter.data.fill_(torch.nan)
    built.initialise(0)
    assert not all(p.isfinite().all() for p in built.parameters())


def test_half_precision_in_the_forward_pass_leaves_embeddings_in_float32() -> None:
    built = model()
    images, masks = batch()
    exact = built(images, masks)
    with torch.autocast("cpu", torch.bfloat16):
        found = built(images, masks)
    for name in ("context", "predicted", "target"):
        assert getattr(found, name).dtype == torch.float32
        difference = (getattr(found, name) - getattr(exact, name)).abs().max()
        assert 0 < difference < 0.1
