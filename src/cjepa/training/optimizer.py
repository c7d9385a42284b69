"""AdamW over everything that learns, without decay on biases and other one-dimensional parameters."""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from cjepa.training.schedules import LearningRateConfig, RangeConfig
from cjepa.types import Part

Named = Mapping[str, nn.Parameter]
DecayRate = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Part):
    """AdamW and its schedules."""

    learning_rate: LearningRateConfig = Field(default_factory=lambda: LearningRateConfig())
    """Learning rate over training."""
    weight_decay: RangeConfig = Field(default_factory=lambda: RangeConfig(start=0.04, final=0.4))
    """Decay of weight matrices over training; biases and norms have none."""
    betas: tuple[DecayRate, DecayRate] = (0.9, 0.999)
    """AdamW's decay rates of the two moments (the paper does not state them)."""
    clip_gradient: float | None = Field(None, gt=0)
    """Largest norm of the gradient; larger ones are scaled down. The paper does not clip."""


def build_optimizer(config: OptimizerConfig, parameters: Named) -> torch.optim.AdamW:
    """Group 0 is decayed (two or more dimensions), group 1 is not."""
    matrices = [parameter for parameter in parameters.values() if parameter.ndim >= 2]
    vectors = [parameter for parameter in parameters.values() if parameter.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate.start, betas=config.betas, weight_decay=config.weight_decay.start, fused=True
    )


def set_rates(optimizer: torch.optim.Optimizer, learning_rate: float, weight_decay: float) -> None:
    """The rates of the step about to be taken."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.param_groups[0]["weight_decay"] = weight_decay


def moments(optimizer: torch.optim.Optimizer, parameters: Named) -> dict[str, Tensor]:
    """The optimizer's tensors, named PARAMETER|exp_avg and so on; empty before the first step."""
    return {
        f"{name}|{key}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }


def restore_moments(optimizer: torch.optim.Optimizer, parameters: Named, saved: Mapping[str, Tensor]) -> None:
    """The inverse of `moments`."""
    for key, value in saved.items():
        name, _, kind = key.rpartition("|")
        parameter = parameters[name]
        # AdamW counts its steps on the CPU unless it is fused on another device; both accept the parameter's device.
        optimizer.state[parameter][kind] = value.to(parameter.device)


def moments_like(parameters: Named) -> dict[str, Tensor]:
    """Tensors with the names and shapes that `moments` has after the first step."""
    count = torch.zeros(())
    kinds = {"step": count, "exp_avg": None, "exp_avg_sq": None}
    return {
        f"{name}|{kind}": parameter if like is None else like
        for name, parameter in parameters.items()
        for kind, like in kinds.items()
    }
