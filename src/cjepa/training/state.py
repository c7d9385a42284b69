"""What a run knows besides its weights: plain data, saved with every checkpoint and checked when it comes back."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from cjepa.errors import InputError
from cjepa.training.checkpoint import Checkpoint
from cjepa.training.spikes import Recent
from cjepa.types import Loss

Reason = Literal["not finite", "spike", "left out"]
"""Why a step changed nothing."""


class Taken(NamedTuple):
    """A step that was taken: its loss, the norm of its gradient, and why it changed nothing, if it did not."""

    loss: Loss
    gradient_norm: float
    unchanged: Reason | None


@dataclass(config=ConfigDict(extra="forbid"))
class Progressed:
    """How far a run is, and what it has met on the way."""

    step: int = 0
    evaluated: int = -1
    untrained: dict[str, float] = dataclasses.field(default_factory=dict)
    latest: dict[str, float] = dataclasses.field(default_factory=dict)
    peak_rank: float = 0.0
    best_step: int = 0
    best_quality: float = -math.inf
    skipped: int = 0
    skipped_in_a_row: int = 0
    spikes: int = 0
    recent: Recent = dataclasses.field(default_factory=Recent)
    left_out: list[int] = dataclasses.field(default_factory=list)
    rollbacks: int = 0
    unreadable: list[int] = dataclasses.field(default_factory=list)

    @property
    def weights_moved(self) -> bool:
        """Whether any step so far has changed the weights."""
        return self.step > self.skipped + sum(step < self.step for step in self.left_out)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "Progressed":
        """What a checkpoint says; InputError names what this version does not understand in it."""
        values = checkpoint.state.get("progress")
        if isinstance(values, dict):  # the first version saved nothing between a step and its evaluation
            values = {"evaluated": checkpoint.step, **values}
        try:
            progress = TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in ("progress", *first["loc"]))
            raise InputError(
                f"{checkpoint.path / 'state.json'}: {place}: {first['msg']}: another version of cjepa wrote the "
                "checkpoint; continue with that version, or start a new run"
            ) from error
        if progress.step != checkpoint.step:
            raise InputError(f"{checkpoint.path / 'state.json'}: its step is {progress.step}, not {checkpoint.step}")
        return progress


def differing(saved: object, now: Mapping[str, Any]) -> list[str]:
    """One line for each thing that a checkpoint was made with and that is different now."""
    if not isinstance(saved, dict):
        return []
    return [f"{name}: {saved[name]} -> {now[name]}" for name in now if name in saved and saved[name] != now[name]]
