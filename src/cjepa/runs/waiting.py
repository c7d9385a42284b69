"""How long a training waits for its images: the part of the time in which nothing learns."""

from collections.abc import Generator
from contextlib import closing
from time import monotonic

from cjepa.types import Batch


class Waiting:
    """Seconds that were waited for batches, and those since the first one was asked for."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began: float | None = None

    def timed(self, batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
        """The same batches; the time until each of them comes is added up."""
        with closing(batches):
            while True:
                asked = monotonic()
                self._began = self._began or asked
                try:
                    batch = next(batches, None)
                finally:
                    self.seconds += monotonic() - asked
                if batch is None:
                    return
                yield batch

    @property
    def share(self) -> float:
        """Of the time since the first batch was asked for; 0 before."""
        return 0.0 if self._began is None else self.seconds / max(monotonic() - self._began, 1e-9)
