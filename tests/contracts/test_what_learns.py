"""Nothing but encoder, predictor and projector learns; the target encoder follows by its average alone."""

import pytest
import torch
from torch import nn

from cjepa.models.pretrained import normalise
from cjepa.objectives import IJepaConfig, build_objective
from cjepa.objectives.ijepa import IJepa
from cjepa.training.config import TrainingConfig
from cjepa.training.trainer import Trainer
from cjepa.types import Batch, Embeddings, Loss
from tests.contracts.models import NAMES, batch_for, model_for, variant

BATCH = 8
CHANNELS = (0.5, 0.5, 0.5)


def trainer(name: str, precision: str = "float32", objective: nn.Module | None = None) -> Trainer:
    """Of an objective by its name, or with another module in its place."""
    model = model_for(variant(name), width=16, depth=2)
    config = TrainingConfig.model_validate(
        {
            "epochs": 1,
            "batch_size": BATCH,
            "precision": precision,
            "optimizer": {"learning_rate": {"start": 1e-2, "peak": 1e-2, "warmup_epochs": 0}},
            "momentum": {"start": 0.9},
        }
    )

    def prepare(images: torch.Tensor) -> torch.Tensor:
        return normalise(images, CHANNELS, CHANNELS)

    built = objective or build_objective(variant(name), 16, seed=0)
    return Trainer(config, model, built, prepare, 4 * BATCH, 0.1, torch.device("cpu"))


def batch(name: str, step: int = 0) -> Batch:
    return batch_for(variant(name), BATCH, step)


def identities(module: nn.Module) -> set[int]:
    return {id(parameter) for parameter in module.parameters()}


@pytest.mark.parametrize("name", NAMES)
def test_the_optimizer_holds_encoder_predictor_and_projector_once(name: str) -> None:
    built = trainer(name)
    held = [id(parameter) for group in built.optimizer.param_groups for parameter in group["params"]]
    learned = [identities(part) for part in (*built.model.learned.values(), built.objective)]
    assert len(held) == len(set(held))
    assert set(held) == set.union(*learned)
    assert not set(held) & identities(built.model.target_encoder)


@pytest.mark.parametrize("name", NAMES)
def test_exactly_what_learns_has_gradients(name: str) -> None:
    built = trainer(name)
    built.gradient(batch(name))
    with_gradient = {
        key
        for part, module in (("model", built.model), ("objective", built.objective))
        for key, parameter in module.named_parameters(part)
        if parameter.grad is not None
    }
    expected = {
        f"model.{part}.{key}" for part, module in built.model.learned.items() for key, _ in module.named_parameters()
    }
    expected |= {f"objective.{key}" for key, _ in built.objective.named_parameters()}
    assert with_gradient == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_step_moves_every_learned_weight_and_the_target_by_the_average_alone(name: str) -> None:
    built = trainer(name)
    before = {key: p.detach().clone() for key, p in built.parameters.items()}
    target = {key: p.detach().clone() for key, p in built.model.target_encoder.named_parameters()}
    built.take_step(batch(name))
    for key, parameter in built.parameters.items():
        assert not torch.equal(parameter, before[key]), f"{key} did not move"
        assert parameter.grad is None, "gradients are released after the step"
    encoder = dict(built.model.encoder.named_parameters())
    for key, parameter in built.model.target_encoder.named_parameters():
        torch.testing.assert_close(parameter, 0.9 * target[key] + 0.1 * encoder[key], atol=1e-6, rtol=1e-5)


def test_several_steps_follow_the_closed_form_of_the_average() -> None:
    """Momentum moves linearly from 0.9 to 1 over the 4 steps, so the last step leaves the target where it is."""
    built = trainer("cjepa")
    expected = {key: p.detach().double() for key, p in built.model.target_encoder.named_parameters()}
    for step in range(4):
        built.take_step(batch("cjepa", step))
        built.progress.step += 1
        momentum = 0.9 + 0.1 * step / 3
        for key, parameter in built.model.encoder.named_parameters():
            expected[key] = momentum * expected[key] + (1 - momentum) * parameter.detach().double()
    for key, parameter in built.model.target_encoder.named_parameters():
        torch.testing.assert_close(parameter.double(), expected[key], atol=1e-6, rtol=1e-6)


def test_weight_decay_is_for_matrices_alone() -> None:
    built = trainer("cjepa")
    built.take_step(batch("cjepa"))
    decayed, spared = built.optimizer.param_groups
    assert decayed["weight_decay"] == pytest.approx(0.04)
    assert spared["weight_decay"] == 0
    assert all(parameter.ndim >= 2 for parameter in decayed["params"])
    assert all(parameter.ndim < 2 for parameter in spared["params"])
    assert built.model.predictor.mask_token.ndim == 1  # hence never decayed


class Witness(IJepa):
    """Notes what reaches the objective."""

    seen: Embeddings
    autocast: bool

    def forward(self, embeddings: Embeddings, step: int) -> Loss:
        self.seen, self.autocast = embeddings, torch.is_autocast_enabled("cpu")
        return super().forward(embeddings, step)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_objectives_run_in_full_precision_whatever_the_model_does(precision: str) -> None:
    """Half precision in the statistics overflows or cancels: autocast ends before the objective."""
    witness = Witness(IJepaConfig())
    built = trainer("ijepa", precision, witness)
    loss = built.take_step(batch("ijepa")).loss
    assert not witness.autocast
    for part in (witness.seen.context, witness.seen.predicted, witness.seen.target):
        assert part.dtype == torch.float32
    assert loss.total.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in built.model.parameters())
    inexact = witness.seen.predicted != witness.seen.predicted.bfloat16().float()
    assert inexact.any() == (precision == "float32"), "the precision of the model is that of the config"
