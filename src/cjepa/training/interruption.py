"""Signals that ask a run to stop: the step is finished and saved, then the process leaves."""

import os
import signal
import sys
import threading
from types import FrameType

from cjepa.errors import StoppedEarly

# SIGUSR1 is what SLURM sends ahead of the time limit (--signal=USR1@180); Windows does not have it.
_NAMES = ("SIGTERM", "SIGINT", "SIGUSR1")


class Interruption:
    """While open, the first signal only sets `requested`; a second one leaves at once with exit code 75.

    At once means os._exit: nothing is cleaned up, because cleaning up may be what hangs, and nothing has to be,
    because a half-written checkpoint is never used. Poll `requested` between steps and inside anything long
    (evaluation, waiting for data). Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        """The name of the signal that asked to stop, such as SIGTERM; None so far."""
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in signal.Signals:
                if number.name in _NAMES:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, previous in self._previous.items():
            # None: the handler was not set by Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if previous is None else previous)  # type: ignore[arg-type]
        self._previous.clear()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.requested is None:
            self.requested = name
            return
        # os.write: print may be in the middle of something else. The live line had hidden the cursor.
        cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
        os.write(2, f"{cursor}\n{name} after {self.requested}: leaving at once\n".encode())
        os._exit(StoppedEarly.exit_code)
