"""The projector: shared by all views, with batch statistics of the batch at hand."""

import pytest
import torch
from torch import nn

from cjepa.objectives.projector import Projector, ProjectorConfig


def projector(**keys: object) -> Projector:
    built = Projector(ProjectorConfig.model_validate({"width": 32} | keys), inputs=8)
    built.initialise(torch.Generator().manual_seed(0))
    return built


def pooled() -> torch.Tensor:
    return torch.randn(6, 4, 8, generator=torch.Generator().manual_seed(1))


def test_without_layers_it_is_the_identity() -> None:
    assert torch.equal(projector(depth=0)(pooled()), pooled())


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
@pytest.mark.parametrize("depth", [1, 3])
def test_rows_stay_in_their_places(depth: int, norm: str) -> None:
    """Permuting images and blocks permutes the output: all views share one projector."""
    built, given = projector(depth=depth, norm=norm), pooled()
    assert built(given).shape == (6, 4, 32)
    images, blocks = torch.tensor([3, 1, 0, 5, 4, 2]), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(built(given[images][:, blocks]), built(given)[images][:, blocks])


def test_the_last_layer_is_linear_and_hidden_ones_are_not() -> None:
    assert [type(layer) for layer in projector(depth=2).layers] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    one = projector(depth=1)
    torch.testing.assert_close(one(2 * pooled()), 2 * one(pooled()))
    assert (projector(depth=2)(pooled()) < 0).any()


def test_it_keeps_no_state_and_is_the_same_in_training_and_evaluation() -> None:
    built = projector()
    before = {name: value.clone() for name, value in built.state_dict().items()}
    trained = built(pooled())
    assert torch.equal(built.eval()(pooled()), trained)
    assert before.keys() == dict(built.named_parameters()).keys()
    assert all(torch.equal(value, before[name]) for name, value in built.state_dict().items())


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_initialise_forgets_no_parameter(norm: str) -> None:
    built = projector(norm=norm)
    for parameter in built.parameters():
        parameter.data.fill_(torch.nan)
    built.initialise(torch.Generator().manual_seed(0))
    assert all(parameter.isfinite().all() for parameter in built.parameters())
    assert all(map(torch.equal, built.parameters(), projector(norm=norm).parameters()))


def test_initial_weights_keep_the_scale_through_relu() -> None:
    built = projector(width=512, depth=4, norm="none")
    assert built(pooled()).square().mean().item() == pytest.approx(2 * pooled().square().mean().item(), rel=0.3)
