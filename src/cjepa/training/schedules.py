"""Schedules as pure functions of the step: nothing to save, nothing to restore."""

import math

from pydantic import Field, model_validator

from cjepa.types import Part


class LearningRateConfig(Part):
    """Linear warm-up, then half a cosine."""

    start: float = Field(1e-4, ge=0)
    """Learning rate of the first step."""
    peak: float = Field(1e-3, gt=0)
    """Learning rate at the end of the warm-up."""
    final: float = Field(1e-6, ge=0)
    """Learning rate at the end of training."""
    warmup_epochs: float = Field(15.0, ge=0)
    """Length of the warm-up, in epochs; must be shorter than the training."""


class RangeConfig(Part):
    """A value that moves linearly over training."""

    start: float = Field(ge=0)
    """Value at the first step."""
    final: float = Field(ge=0)
    """Value at the last step."""


class MomentumConfig(Part):
    """Momentum of the target encoder's moving average; it moves linearly over training."""

    start: float = Field(0.996, ge=0, le=1)
    """Momentum at the first step; 1 / (1 - momentum) steps are averaged, which a short run must leave room for."""
    final: float = Field(1.0, ge=0, le=1)
    """Momentum at the last step."""

    @model_validator(mode="after")
    def _moves_somewhere(self) -> "MomentumConfig":
        if self.start == 1:
            raise ValueError("start: with a momentum of 1 the target encoder never leaves its random start; use less")
        return self


def learning_rate(config: LearningRateConfig, step: int, warmup_steps: int, total_steps: int) -> float:
    """Linear from start to peak over the warm-up, then a half cosine that reaches final at the last step."""
    if step < warmup_steps:
        return config.start + (config.peak - config.start) * step / warmup_steps
    progress = (step - warmup_steps) / max(total_steps - 1 - warmup_steps, 1)
    return config.final + (config.peak - config.final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def linear(start: float, final: float, step: int, total_steps: int) -> float:
    """From start at step 0 to final at the last step, there to the bit: rounding must not lift a momentum above 1."""
    if step == total_steps - 1 > 0:
        return final
    return start + (final - start) * step / max(total_steps - 1, 1)
