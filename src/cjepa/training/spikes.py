"""Spikes: a loss or a gradient far above those of the steps before, judged robustly and as plain data."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from cjepa.types import Part

WINDOW = 128
"""Steps that a value is compared with."""
FEWEST = 32
"""Steps without which nothing is called a spike: the first ones of a run differ from each other."""
_TO_STANDARD_DEVIATION = 1.4826  # of a normal distribution, from its median absolute deviation
_SMALLEST_SCALE = 0.01  # of the median loss or norm: what hardly moves has spikes of more than rounding only


class SpikesConfig(Part):
    """What to do when loss or gradient jump."""

    policy: Literal["log", "skip", "rollback"] = "log"
    """log: a warning. skip: the step changes nothing. rollback: back to the last checkpoint, leaving steps out."""
    threshold: float = Field(10.0, gt=0)
    """Robust standard deviations above the median of the last 128 steps that make a spike; one is 1.4826 MAD."""
    left_out: int = Field(8, ge=1)
    """rollback: how many steps are left out, the one of the spike and those before it."""


@dataclass
class Recent:
    """The losses and logarithms of gradient norms of the last WINDOW steps that changed the weights; all finite."""

    losses: list[float] = field(default_factory=list)
    log_norms: list[float] = field(default_factory=list)

    def add(self, loss: float, norm: float) -> None:
        """Remember a step. What is not finite is never remembered: it would hide or invent all later spikes."""
        if math.isfinite(loss):
            self.losses = [*self.losses, loss][-WINDOW:]
        if math.isfinite(norm) and norm > 0.0:
            self.log_norms = [*self.log_norms, math.log(norm)][-WINDOW:]

    def deviation(self, loss: float, norm: float) -> float:
        """How far a step lies above the recent ones, in robust standard deviations: the larger of loss and gradient.

        0 while fewer than FEWEST steps are known. Norms are compared by their logarithms, because they scatter by
        factors: a gradient 10^4 times the usual one is far outside, one twice as large is not, and none at all is far
        below.
        """
        log_norm = math.log(norm) if norm > 0.0 else -math.inf
        smallest = _SMALLEST_SCALE * abs(statistics.median(self.losses)) if self.losses else 0.0
        # A share of a norm is a distance between logarithms, whatever they are.
        return max(_deviation(loss, self.losses, smallest), _deviation(log_norm, self.log_norms, _SMALLEST_SCALE))


def _deviation(value: float, window: Sequence[float], smallest: float) -> float:
    """(value - median) / (1.4826 MAD, at least smallest); both are blind to spikes in the window itself."""
    if len(window) < FEWEST:
        return 0.0
    median = statistics.median(window)
    spread = _TO_STANDARD_DEVIATION * statistics.median(abs(each - median) for each in window)
    return (value - median) / max(spread, smallest, 1e-12)
