"""Encoders put together from the ranks' shards, so that the first rank can draw what they see."""

from collections.abc import Mapping

from cjepa.build import build_model
from cjepa.config import RunConfig
from cjepa.evaluation.monitor import Monitor
from cjepa.models import Model
from cjepa.ranks import is_first
from cjepa.training.whole_state import whole_weights

DRAWN = ("encoder", "target_encoder")
"""The parts of a model that are drawn."""


class Gathered:
    """A monitor that leaves both encoders whole on the first rank after every measurement.

    `whole` lies on the CPU and costs the first rank the weights of both encoders twice over while they come in, as a
    checkpoint does. Every rank has to measure, since all of them give their shards.
    """

    def __init__(self, monitor: Monitor, config: RunConfig) -> None:
        self.monitor = monitor
        self.quality = monitor.quality
        self.count = monitor.count
        self.whole: Model | None = build_model(config) if is_first() else None

    def measure(self, model: Model) -> Mapping[str, float]:
        """What the monitor measures."""
        values = self.monitor.measure(model)
        for name in DRAWN:
            weights = whole_weights(model.get_submodule(name))
            if self.whole is not None:
                self.whole.get_submodule(name).load_state_dict(weights)
        return values
