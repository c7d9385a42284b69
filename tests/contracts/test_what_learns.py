"""Nothing but encoder, predictor and projector learns; the target encoder follows by its average alone."""

from collections.abc import Iterable, Mapping

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


CONSTANT = {"learning_rate": {"start": 1e-2, "peak": 1e-2, "warmup_epochs": 0}}


def trainer(
    name: str,
    precision: str = "float32",
    objective: nn.Module | None = None,
    optimizer: Mapping[str, object] = CONSTANT,
) -> Trainer:
    """Of an objective by its name, or with another module in its place; a training of four steps."""
    model = model_for(variant(name), width=16, depth=2)
    config = TrainingConfig.model_validate(
        {
            "epochs": 1,
            "batch_size": BATCH,
            "precision": precision,
            "optimizer": optimizer,
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


def norm_of(tensors: Iterable[torch.Tensor]) -> float:
    return float(torch.stack([tensor.double().square().sum() for tensor in tensors]).sum().sqrt())


def gradients(built: Trainer) -> dict[str, torch.Tensor]:
    return {key: p.grad.detach().clone() for key, p in built.parameters.items() if p.grad is not None}


def test_steps_are_those_of_adamw_at_the_rates_of_their_schedules() -> None:
    """Written out in float64: two steps of warm-up, then the cosine, which the last one ends."""
    rate = {"start": 1e-3, "peak": 1e-2, "final": 1e-4, "warmup_epochs": 0.5}
    built = trainer("cjepa", optimizer={"learning_rate": rate, "weight_decay": {"start": 0.1, "final": 0.4}})
    expected = {key: p.detach().double() for key, p in built.parameters.items()}
    moments = {key: (torch.zeros_like(p), torch.zeros_like(p)) for key, p in expected.items()}
    plans = zip((1e-3, 5.5e-3, 1e-2, 1e-4), (0.1, 0.2, 0.3, 0.4), strict=True)
    for step, (learning_rate, decay) in enumerate(plans):
        built.gradient(batch("cjepa", step))
        found = gradients(built)
        built.optimizer.zero_grad(set_to_none=True)
        built.take_step(batch("cjepa", step))
        built.progress.step += 1
        for key, parameter in built.parameters.items():
            gradient = found[key].double()
            first, second = (0.9 * moments[key][0] + 0.1 * gradient, 0.999 * moments[key][1] + 0.001 * gradient**2)
            moments[key] = first, second
            shrunk = expected[key] * (1 - learning_rate * decay if parameter.ndim >= 2 else 1)
            root = (second / (1 - 0.999 ** (step + 1))).sqrt()
            expected[key] = shrunk - learning_rate * first / (1 - 0.9 ** (step + 1)) / (root + 1e-8)
            torch.testing.assert_close(parameter.double(), expected[key], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("share", [0.1, 10.0])
def test_a_clipped_gradient_keeps_its_direction_and_its_norm_is_reported_as_it_was(share: float) -> None:
    _, plain = (whole := trainer("cjepa")).gradient(batch("cjepa"))
    clipped = trainer("cjepa", optimizer=CONSTANT | {"clip_gradient": share * plain})
    _, norm = clipped.gradient(batch("cjepa"))
    assert norm == plain == pytest.approx(norm_of(gradients(whole).values()), rel=1e-3)  # added up in float32
    for key, gradient in gradients(whole).items():
        torch.testing.assert_close(gradients(clipped)[key], gradient * min(share, 1.0), rtol=1e-5, atol=0)


def test_a_step_does_not_ask_an_apple_gpu_for_what_torch_refuses_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """foreach=True is an error on mps; here torch is made to believe that it has such tensors."""
    _, norm = trainer("cjepa").gradient(batch("cjepa"))
    built = trainer("cjepa")
    monkeypatch.setattr("torch.nn.utils.clip_grad._device_has_foreach_support", lambda device: False)
    monkeypatch.setattr("torch.nn.utils.clip_grad._has_foreach_support", lambda tensors, device: False)
    built.device, built.batch_loss.prepare = torch.device("mps"), built.normalise
    assert built.gradient(batch("cjepa"))[1] == pytest.approx(norm, rel=1e-3)


class Witness(IJepa):
    """Notes what reaches the objective."""

    seen: Embeddings
    autocast: bool
    products: list[str]
    """The precision of float32 products: forward, backward."""

    def forward(self, embeddings: Embeddings, step: int) -> Loss:
        self.seen, self.autocast = embeddings, torch.is_autocast_enabled("cpu")
        self.products = [torch.get_float32_matmul_precision()]
        embeddings.predicted.register_hook(lambda _: self.products.append(torch.get_float32_matmul_precision()))
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


def test_no_step_rounds_float32_to_tf32() -> None:
    """Whatever TORCH_ALLOW_TF32_CUBLAS_OVERRIDE or torch's setting says, in the backward pass too."""
    witness = Witness(IJepaConfig())
    built = trainer("ijepa", objective=witness)
    assert torch.get_float32_matmul_precision() == "highest"
    torch.set_float32_matmul_precision("high")
    try:
        built.take_step(batch("ijepa"))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert witness.products == ["highest", "highest"]
