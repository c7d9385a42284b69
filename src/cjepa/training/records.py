"""What a run leaves on the disk while it trains: rows, unreadable images, checkpoints, and the dump of a divergence."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import Tensor

from cjepa.errors import StorageError
from cjepa.ranks import from_first
from cjepa.training.checkpoint import CheckpointStore
from cjepa.training.metrics import MetricsWriter
from cjepa.training.rows import RowLog
from cjepa.types import Unreadable

_log = logging.getLogger(__name__)

Tensors = Mapping[str, Mapping[str, Tensor]]


class Records:
    """The places that a run writes to. Only the first rank writes; what it could not write fails on all of them.

    about: what every checkpoint says of the run besides its progress. on_failure: what to do when something cannot be
    written, as on a full disk. stop: StorageError, from which the same command continues. continue: a warning, but for
    the last checkpoint of the training.
    """

    def __init__(
        self,
        checkpoints: CheckpointStore,
        dumps: CheckpointStore,
        writers: list[MetricsWriter],
        unreadable: RowLog,
        about: Mapping[str, Any],
        on_failure: Literal["stop", "continue"] = "stop",
    ) -> None:
        self.checkpoints = checkpoints
        self.dumps = dumps
        self.writers = writers
        self.unreadable = unreadable
        self.about = about
        self.on_failure = on_failure

    def row(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Write values of a step."""

        def write() -> None:
            for writer in self.writers:
                writer.write(step, split, values)

        self._try(write)

    def bad_image(self, step: int, image: Unreadable) -> None:
        """List an image that could not be read."""
        _log.warning("unreadable image replaced: %s (%s)", image.name, image.reason)
        self._try(lambda: self.unreadable.append({"step": step, "name": image.name, "reason": image.reason}))

    def save(self, step: int, tensors: Tensors, state: Mapping[str, Any], best: int, last: bool) -> bool:
        """Save a checkpoint once all rows are on the disk; the one of step `best` is kept. Whether it is there."""

        def write() -> None:
            for writer in self.writers:
                writer.flush()
            self.checkpoints.save(step, tensors, {**self.about, **state}, protect={best})

        return self._try(write, must=last)

    def dump(self, step: int, tensors: Tensors, state: Mapping[str, Any]) -> str:
        """Keep the state before a step that cannot be taken; where it is, or why it is not there."""
        try:
            path = from_first(lambda: self.dumps.save(step, tensors, {**self.about, **state}).path)
            return f"what is needed to repeat it is in {path}"
        except StorageError as error:
            return f"what is needed to repeat it could not be kept: {error}"

    def _try(self, write: Callable[[], None], must: bool = False) -> bool:
        def declared() -> None:
            try:
                write()
            except OSError as error:
                raise StorageError(f"cannot be written: {error}") from error

        try:
            from_first(declared)
        except StorageError as error:
            if must or self.on_failure == "stop":
                raise
            self._warn(error)
            return False
        return True

    def _warn(self, error: StorageError) -> None:
        _log.warning("the run goes on without what could not be written (training.on_failed_write=continue): %s", error)
