"""A run that hangs says where, and leaves: a silent stall would hold its machine until somebody looks."""

import faulthandler
import math
import os
import threading
from time import monotonic

from cjepa.errors import StorageError

_LEAVES_WITH = StorageError.exit_code  # 75: resumable, from the last checkpoint


class Watchdog:
    """While open, ends the process with exit code 75 when `alive` was not called for so many seconds.

    Before that, the stack of every thread is printed: what it waits for. A thread looks after it; where the whole
    interpreter is stuck in a call that never gives it back, faulthandler prints and leaves (exit code 1) a little
    later. None seconds: it does nothing.
    """

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._last = monotonic()
        self._armed = -math.inf
        self._over = threading.Event()

    def __enter__(self) -> "Watchdog":
        if self.seconds is not None:
            self.alive()
            threading.Thread(target=self._watch, args=(self.seconds,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self.seconds is not None:
            faulthandler.cancel_dump_traceback_later()

    def alive(self) -> None:
        """Something was done: a step, an evaluation, a save."""
        self._last = monotonic()
        if self.seconds is not None and self._last - self._armed > 1.0:  # a thread each time, so not each step
            self._armed = self._last
            faulthandler.dump_traceback_later(1.25 * self.seconds + 5.0, exit=True, file=2)

    def _watch(self, seconds: float) -> None:
        while not self._over.wait(max(self._last + seconds - monotonic(), 0.05)):
            if monotonic() - self._last >= seconds:
                self._leave(seconds)

    def _leave(self, seconds: float) -> None:
        message = (
            f"\nnothing was done for {seconds:g} seconds (training.hang_after): no step, no evaluation, no save. Every "
            "thread waits here:\n"
        )
        # os.write: whoever hangs may hold the lock of a stream.
        os.write(2, message.encode())
        faulthandler.dump_traceback(2, all_threads=True)
        os.write(2, b"leaving; the same command continues from the last checkpoint\n")
        os._exit(_LEAVES_WITH)
