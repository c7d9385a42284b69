"""No parameter keeps what was in memory before: filled with NaN and initialised, all of it is finite and the same."""

import pytest
import torch
from torch import nn

from cjepa.build import build_model
from cjepa.config import RunConfig, parts_of, variant_name
from cjepa.models.jepa import JEPA
from cjepa.objectives import ObjectiveConfig, build_objective
from tests.training.conftest import tiny_config

NAMES = [variant_name(part) for part in parts_of(ObjectiveConfig)]


def not_finite(module: nn.Module) -> list[str]:
    return [name for name, tensor in module.state_dict().items() if not tensor.isfinite().all()]


def filled(config: RunConfig) -> JEPA:
    model = JEPA(config.model, config.grid)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)
    return model


def test_every_weight_is_initialised() -> None:
    config = tiny_config()
    model = filled(config)
    assert not_finite(model)
    model.initialise(config.seed)
    assert not_finite(model) == []
    expected = build_model(config).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_a_forgotten_one_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the line that initialises the predictor."""
    config = tiny_config()
    model = filled(config)
    monkeypatch.setattr(type(model.predictor), "initialise", lambda *_: None)
    model.initialise(config.seed)
    assert not_finite(model)


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_of_an_objective_is_initialised(name: str) -> None:
    config = tiny_config(objective={"name": name}).objective
    objective, expected = (build_objective(config, 32, 5) for _ in range(2))
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.fill_(torch.nan)
    objective.initialise(torch.Generator().manual_seed(5))
    assert not_finite(objective) == []
    assert objective.state_dict().keys() == expected.state_dict().keys()
