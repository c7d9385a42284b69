"""Two views through one encoder: what the objective is handed, and that parts of a batch give the whole's gradient."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from cjepa.models import EncoderConfig, ModelConfig, TwoViews
from cjepa.objectives import build_objective
from cjepa.training.batch_loss import BatchLoss
from cjepa.training.parallel import Engine
from tests.contracts.models import batch_for, model_for, variant

CPU = torch.device("cpu")
SIMSIAM, VICREG = variant("simsiam"), variant("vicreg")


def views(images: int = 6) -> Iterator[Tensor]:
    batch = batch_for(VICREG, images)
    assert batch.second is not None
    return (each / 127.5 - 1.0 for each in (batch.images, batch.second))


def test_each_view_is_pooled_alone_and_faces_the_other() -> None:
    model = model_for(VICREG, width=16, depth=2)
    first, second = views()
    found = model(first, second)
    assert found.context.shape == (6, 0, 16)
    torch.testing.assert_close(found.predicted[:, 0, 0], model.encoder.embed(first))
    torch.testing.assert_close(found.predicted[:, 1, 0], model.encoder.embed(second))
    assert torch.equal(found.target[:, 0], found.predicted[:, 1])
    assert torch.equal(found.target[:, 1], found.predicted[:, 0])
    assert found.predicted.requires_grad
    assert not found.target.requires_grad


def test_it_starts_as_a_jepa_of_the_same_seed() -> None:
    """So that methods are compared from the same untrained encoder."""
    one, other = model_for(VICREG, width=16, depth=2), model_for(variant("cjepa"), width=16, depth=2)
    for left, right in zip(one.encoder.parameters(), other.encoder.parameters(), strict=True):
        assert torch.equal(left, right)
    for left, right in zip(one.target_encoder.parameters(), other.encoder.parameters(), strict=True):
        assert torch.equal(left, right)


def test_the_average_follows() -> None:
    model = TwoViews(ModelConfig(encoder=EncoderConfig(width=16, depth=1, heads=2, patch_size=4)))
    model.initialise(0)
    before = [parameter.clone() for parameter in model.target_encoder.parameters()]
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(1.0)
    model.update_target(0.75)
    for old, new in zip(before, model.target_encoder.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.25)


@pytest.mark.parametrize("config", [VICREG, SIMSIAM], ids=lambda config: config.name)
@pytest.mark.parametrize("micro_batch", [1, 4, 5])
def test_parts_give_the_gradient_of_the_whole(config: object, micro_batch: int) -> None:
    gradients = []
    for most in (None, micro_batch):
        model = model_for(config, width=16, depth=2).double()  # type: ignore[arg-type]
        objective = build_objective(config, 16, 0).double()  # type: ignore[arg-type]
        loss = BatchLoss(model, objective, lambda x: x / 127.5 - 1.0, Engine(model, objective), CPU, False, most)
        loss.prepare = lambda images: images.double() / 127.5 - 1.0
        loss.backward(batch_for(config, 10), 0)  # type: ignore[arg-type]
        gradients.append([p.grad for p in (*model.learned["encoder"].parameters(), *objective.parameters())])
    for whole, divided in zip(*gradients, strict=True):
        assert whole is not None
        assert divided is not None
        torch.testing.assert_close(divided, whole, rtol=1e-8, atol=1e-10)
