"""What a run leaves on the disk while it trains: rows, unreadable images, checkpoints, and the dump of a divergence."""

import logging
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from cjepa.errors import StorageError
from cjepa.training.checkpoint import CheckpointStore
from cjepa.training.metrics import MetricsWriter
from cjepa.training.rows import RowLog
from cjepa.types import Unreadable

_log = logging.getLogger(__name__)

Tensors = Mapping[str, Mapping[str, Tensor]]


class Records:
    """The places that a run writes to.

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
        try:
            for writer in self.writers:
                writer.write(step, split, values)
        except (StorageError, OSError) as error:
            self._failed(error)

    def bad_image(self, step: int, image: Unreadable) -> None:
        """List an image that could not be read."""
        _log.warning("unreadable image replaced: %s (%s)", image.name, image.reason)
        try:
            self.unreadable.append({"step": step, "name": image.name, "reason": image.reason})
        except (StorageError, OSError) as error:
            self._failed(error)

    def save(self, step: int, tensors: Tensors, state: Mapping[str, Any], best: int, last: bool) -> None:
        """Save a checkpoint once all rows are on the disk; the one of step `best` is kept."""
        try:
            for writer in self.writers:
                writer.flush()
            self.checkpoints.save(step, tensors, {**self.about, **state}, protect={best})
        except (StorageError, OSError) as error:
            if last:
                raise
            self._failed(error)

    def dump(self, step: int, tensors: Tensors, state: Mapping[str, Any]) -> str:
        """Keep the state before a step that cannot be taken; where it is, or why it is not there."""
        try:
            return f"what is needed to repeat it is in {self.dumps.save(step, tensors, {**self.about, **state}).path}"
        except StorageError as error:
            return f"what is needed to repeat it could not be kept: {error}"

    def _failed(self, error: StorageError | OSError) -> None:
        if self.on_failure == "stop":
            raise error if isinstance(error, StorageError) else StorageError(f"cannot be written: {error}")
        _log.warning("the run goes on without what could not be written (training.on_failed_write=continue): %s", error)
