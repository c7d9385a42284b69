"""Where an evaluation computes, how it tells how far it is, and where it keeps what is done."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from cjepa.data.loader import PATIENCE
from cjepa.types import Precision


@runtime_checkable
class Line(Protocol):
    """Says how far work is."""

    def update(self, done: int, values: Mapping[str, str | int | float], images: int = 0) -> None:
        """`done` of the total, values to show, and the images since the last call."""
        ...


class Silent:
    """A line that nobody sees."""

    def update(self, done: int, values: Mapping[str, str | int | float], images: int = 0) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Kept:
    """What was done when an evaluation was interrupted: named tensors, in groups, and values."""

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


@runtime_checkable
class Keeper(Protocol):
    """Keeps the work of one evaluation of one encoder until its result is known."""

    def newest(self, groups: tuple[str, ...]) -> Kept | None:
        """The last save that is intact, with these groups of tensors; None at the start."""
        ...

    def save(self, kept: Kept) -> None:
        """Keep this, so that the same command continues from here."""
        ...


class Forgetful:
    """A keeper of nothing: an interrupted evaluation starts again."""

    def newest(self, _groups: tuple[str, ...]) -> Kept | None:
        """Nothing is ever kept."""
        return None

    def save(self, kept: Kept) -> None:
        """Nothing is ever kept."""


@dataclass(frozen=True)
class Work:
    """How an evaluation computes.

    batch_size: images per forward pass of a frozen encoder. patience: seconds after which workers count as hung.
    progress: opens a line for a description and a total. promptly: within, a signal raises StoppedEarly at once; it
    is around all that one rank does on its own. unbroken: within, it does not after all, for what asks `stop` between
    its steps, and saves. stop: the name of the signal that asked to stop, if one did. scratch: a folder for features
    that do not fit into memory; it must lie on a disk.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: Precision = "float32"
    batch_size: int = 256
    workers: int = 0
    patience: float = PATIENCE
    seed: int = 0
    progress: Callable[[str, int], AbstractContextManager[Line]] = lambda *_: nullcontext(Silent())
    keeper: Keeper = field(default_factory=Forgetful)
    promptly: Callable[[], AbstractContextManager[None]] = nullcontext
    unbroken: Callable[[], AbstractContextManager[None]] = nullcontext
    stop: Callable[[], str | None] = lambda: None
    scratch: Path | None = None

    def autocast(self) -> torch.autocast:
        """The precision of forward passes."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")
