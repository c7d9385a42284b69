"""The loss of a batch and its gradient, whatever the objective."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cjepa.objectives import AnyObjectiveConfig, build_objective
from cjepa.training.batch_loss import BatchLoss
from cjepa.training.parallel import Engine
from tests.contracts.models import NAMES, VARIANTS, batch_for, model_for


class NoFloat64(TorchDispatchMode):
    """Nothing becomes float64, which Apple's GPUs do not have; numbers that the host draws may be."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given, made = (
            {each.dtype for each in tree_leaves(values) if isinstance(each, torch.Tensor)}
            for values in ((args, kwargs), result)
        )
        assert torch.float64 in given or torch.float64 not in made, func
        return result


@pytest.mark.parametrize("micro_batch", [None, 4])
@pytest.mark.parametrize("config", VARIANTS, ids=NAMES)
def test_a_step_needs_no_float64(config: type[AnyObjectiveConfig], micro_batch: int | None) -> None:
    model, objective = model_for(config(), width=16, depth=1), build_objective(config(), 16, 0)
    engine = Engine(model, objective)
    loss = BatchLoss(model, objective, lambda x: x / 127.5 - 1.0, engine, torch.device("cpu"), True, micro_batch)
    batch = batch_for(config(), 8)
    loss.backward(batch, 0)  # the encoder keeps its positions, which the host computes
    with NoFloat64():
        found = loss.backward(batch, 0)
    assert found.total.isfinite()
    assert not found.total.requires_grad
    assert not any(term.requires_grad for term in found.terms.values())
