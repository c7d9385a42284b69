"""Signals that ask a run to stop: the step is finished and saved, then the process leaves."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from types import FrameType

from cjepa.errors import StoppedEarly
from cjepa.ranks import largest, launched, world_size

# SIGUSR1 is what SLURM sends ahead of the time limit (--signal=USR1@180), SIGHUP what comes when a terminal is closed;
# Windows has neither.
_NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
_ECHO = 5.0
"""Seconds in which the same request reaches a rank again: by the terminal or the scheduler, and by torchrun."""


class Interrupted(BaseException):
    """A signal asked to stop where stopping is safe.

    No Exception, as KeyboardInterrupt is none: whoever turns the errors of damaged images into reports must not
    take a signal for one.
    """


class Interruption:
    """While open, the first signal sets `requested`; a second one leaves at once with exit code 75.

    Within `promptly` the first signal also raises Interrupted, there and then: for waiting and measuring, which may
    take long and change nothing that is saved. Everywhere else, in a step or a save, call `check` when it is done.
    At once means os._exit: nothing is cleaned up, because cleaning up may be what hangs, and nothing has to be,
    because a half-written checkpoint is never used. Outside the main thread, where Python allows no handlers, it
    does nothing.

    With several ranks a signal to one of them is a signal to all, and stops them after the same step: `check` asks
    every rank, so all must call it together. Nothing is prompt then, since the others would wait for the one that left;
    except within `ending`, for work of one rank whose errors reach the others anyway.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        """The name of the signal that asked to stop, such as SIGTERM; None so far."""
        self._prompt = False
        self._at = 0.0
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in signal.Signals:
                if number.name in _NAMES and not _of_nohup(number):
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, previous in self._previous.items():
            # None: the handler was not set by Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if previous is None else previous)  # type: ignore[arg-type]
        self._previous.clear()

    def check(self) -> None:
        """Raise Interrupted if a signal has come, to any of the ranks."""
        [number] = largest([0 if self.requested is None else signal.Signals[self.requested]])
        if number:
            raise Interrupted(signal.Signals(number).name)

    @contextmanager
    def promptly(self) -> Iterator[None]:
        """Within, a signal raises Interrupted at once; one that came before raises it at the start."""
        if world_size() > 1:
            yield
            return
        with self._raising(True):
            yield

    @contextmanager
    def ending(self, advice: str) -> Iterator[None]:
        """Within, a signal to this rank ends in StoppedEarly at once: where errors of one rank become those of all."""
        with _resumable(advice), self._raising(True):
            yield

    @contextmanager
    def later(self) -> Iterator[None]:
        """Within, signals wait although it is `promptly` or `ending` around: for what asks `requested` itself."""
        with self._raising(False):
            yield

    @contextmanager
    def _raising(self, prompt: bool) -> Iterator[None]:
        before, self._prompt = self._prompt, prompt
        try:
            self._raise_if_prompt()
            yield
        finally:
            self._prompt = before
        self._raise_if_prompt()

    def _raise_if_prompt(self) -> None:
        if self._prompt and self.requested is not None:
            raise Interrupted(self.requested)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if launched() > 1 and self.requested is not None and monotonic() - self._at < _ECHO:
            return
        if self.requested is None:
            self.requested, self._at = name, monotonic()
            self._raise_if_prompt()
            return
        # os.write: print may be in the middle of something else. The live line had hidden the cursor.
        cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
        with suppress(OSError):  # the terminal may be what is gone
            os.write(2, f"{cursor}\n{name} after {self.requested}: leaving at once\n".encode())
        os._exit(StoppedEarly.exit_code)


def _of_nohup(number: signal.Signals) -> bool:
    """Whether it is the signal of a closed terminal and to be ignored, as nohup asks of what it starts."""
    return number.name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN


@contextmanager
def stopping_at_once(advice: str) -> Iterator[None]:
    """A signal within ends in StoppedEarly: for work that nothing is lost of, such as opening the images.

    Ranks that a launcher started are simply ended by it, as all of them have to be.
    """
    if launched() > 1:
        yield
        return
    with Interruption() as interruption, interruption.ending(advice):
        yield


@contextmanager
def _resumable(advice: str) -> Iterator[None]:
    try:
        yield
    except Interrupted as stop:
        raise StoppedEarly(f"stopped by {stop}; {advice}") from None
