"""One line that says how far long work is: rewritten on a terminal or in a notebook, printed now and then to a log."""

import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from time import monotonic
from typing import ClassVar, Protocol, TextIO
from uuid import uuid4

from rich.console import Console
from rich.live import Live
from rich.text import Text

from cjepa.ranks import is_first

_WINDOW = 30.0  # seconds over which speed is averaged
_REFRESH = 0.1  # seconds between two drawings on a terminal
_NOTEBOOK_REFRESH = 1.0  # seconds between two drawings in a notebook, each of which is a message to the browser
_NOTEBOOK_WIDTH = 100
_SHORT_NAME = 4  # letters


@dataclass(frozen=True)
class _Sample:
    time: float
    done: int
    images: int


class Progress:
    """Shows `description done/total`, values, images/s and time left, while used as a context manager.

    On a terminal: one line that is cut to its width, names shortened and values left out from the end, numbers
    before words. In a Jupyter notebook: the same in an output of its own. Elsewhere: a whole line at most every
    `interval` seconds, and the last one. Where the stream cannot be written any more, it is silent and the work goes
    on. Durations come from the monotonic clock, so a changed clock does not disturb them. May be nested: the inner one
    has the line.
    """

    _open: ClassVar[list["Progress"]] = []

    def __init__(self, description: str, total: int, stream: TextIO | None = None, interval: float = 10.0) -> None:
        self._description = description
        self._total = total
        self._stream = sys.stderr if stream is None else stream
        self._interval = interval
        self._console = Console(file=self._stream, force_terminal=self._stream.isatty(), highlight=False)
        self._silent = not is_first()
        shown = self._stream.isatty() and not self._silent
        self._live = Live(console=self._console, auto_refresh=False) if shown else None
        self._output = _NotebookOutput() if not self._silent and _of_a_notebook(self._stream) else None
        self._samples: deque[_Sample] = deque()
        self._values: Mapping[str, str | int | float] = {}
        self._now = _Sample(monotonic(), 0, 0)
        self._shown: float | None = None

    def __enter__(self) -> "Progress":
        for outer in Progress._open[-1:]:
            outer._pause()
        Progress._open.append(self)
        self._started = monotonic()
        self._resume()
        return self

    def __exit__(self, *_: object) -> None:
        self._show(final=True)
        self._pause()
        Progress._open.remove(self)
        for outer in Progress._open[-1:]:
            outer._resume()

    def update(self, done: int, values: Mapping[str, str | int | float], images: int = 0) -> None:
        """Report `done` of the total, values to show in order of importance, and the images since the last call.

        A number is shown with its name, a word (such as the health verdict) alone.
        """
        self._now = _Sample(monotonic(), done, self._now.images + images)
        self._values = values
        if not self._samples or self._now.time - self._samples[-1].time >= _REFRESH:
            self._samples.append(self._now)
        while len(self._samples) > 2 and self._now.time - self._samples[0].time > _WINDOW:
            self._samples.popleft()
        pause = (
            _REFRESH if self._live is not None else _NOTEBOOK_REFRESH if self._output is not None else self._interval
        )
        if self._shown is None or self._now.time - self._shown >= pause:
            self._show()

    def _pause(self) -> None:
        if self._live is not None:
            self._draw(self._live.stop)

    def _resume(self) -> None:
        self._samples.clear()  # speed is measured anew: what happened meanwhile was other work
        if self._live is not None:
            self._draw(self._live.start)

    def _draw(self, write: Callable[[], object]) -> None:
        """Write to the stream; never again where that fails, since a line is not worth the work that it reports."""
        try:
            write()
        except (OSError, ValueError):  # a terminal that is gone, a pipe without a reader, a full disk; a closed stream
            self._silent, self._live, self._output = True, None, None

    def _show(self, final: bool = False) -> None:
        if self._silent or (self._shown is None and not self._samples):
            return  # another rank reports, or nothing was ever reported
        self._shown = self._now.time
        time = f"took {_clock(monotonic() - self._started)}" if final else self._time_left()
        line = _Line(
            head=f"{self._description} {self._now.done}/{self._total}",
            numbers={name: value for name, value in self._values.items() if not isinstance(value, str)},
            rate=self._images_per_second(),
            time=time,
            words=tuple(value for value in self._values.values() if isinstance(value, str)),
        )
        self._draw(lambda: self._write(line))

    def _write(self, line: "_Line") -> None:
        if self._live is not None:
            text = Text(line.fit(self._console.width), no_wrap=True, overflow="crop")
            self._live.update(text, refresh=True)
        elif self._output is not None:
            self._output.show(line.fit(_NOTEBOOK_WIDTH))
        else:
            print(line.full(), file=self._stream, flush=True)

    def _images_per_second(self) -> float | None:
        first = self._samples[0] if self._samples else self._now
        images, seconds = self._now.images - first.images, self._now.time - first.time
        return images / seconds if images and seconds else None

    def _time_left(self) -> str | None:
        first = self._samples[0] if self._samples else self._now
        done = self._now.done - first.done
        if done <= 0:
            return None
        return f"{_clock((self._total - self._now.done) * (self._now.time - first.time) / done)} left"


class _Display(Protocol):
    """IPython's function of that name, as far as it is used."""

    def __call__(self, *objects: object, raw: bool, display_id: str, update: bool) -> object:
        """Show something, or replace what has this id."""
        ...


def _of_a_notebook(stream: TextIO) -> bool:
    """Whether what is written goes to a Jupyter kernel, which then has IPython; it says that it is no terminal."""
    return type(stream).__module__.startswith("ipykernel.")


class _NotebookOutput:
    """A line in a cell's output that can be replaced. Carriage returns would do, were nothing else printed there."""

    def __init__(self) -> None:
        self._id = uuid4().hex
        self._shown = False

    def show(self, line: str) -> None:
        display: _Display = import_module("IPython.display").display
        display({"text/plain": line}, raw=True, display_id=self._id, update=self._shown)
        self._shown = True


@dataclass(frozen=True)
class _Line:
    head: str
    numbers: Mapping[str, int | float]
    rate: float | None
    time: str | None
    words: tuple[str, ...]

    def full(self) -> str:
        """Everything, however long."""
        numbers = [f"{name} {value:.4g}" for name, value in self.numbers.items()]
        return _join([self.head, *numbers, self._rate("images/s"), self.time, *self.words])

    def fit(self, width: int) -> str:
        """The most that fits into `width` characters: shortened first, then without the least important items."""
        numbers = [f"{name[:_SHORT_NAME]} {value:.3g}" for name, value in self.numbers.items()]
        rate = self._rate("img/s")
        fewer = [numbers[:count] for count in range(len(numbers), 0, -1)] or [[]]
        candidates = [
            self.full(),
            *(_join([self.head, *kept, rate, self.time, *self.words]) for kept in fewer),
            _join([self.head, *fewer[-1], self.time, *self.words]),
            _join([self.head, *fewer[-1], *self.words]),
            _join([self.head, *self.words]),
        ]
        return next((line for line in candidates if len(line) <= width), self.head)

    def _rate(self, unit: str) -> str | None:
        if self.rate is None:
            return None
        return f"{self.rate:.0f} {unit}" if self.rate >= 10 else f"{self.rate:.2g} {unit}"


def _join(items: list[str | None]) -> str:
    return "  ".join(item for item in items if item)


def _clock(seconds: float) -> str:
    """A duration as 0:07, 12:03, 3:12:03 or 2d 03h."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24}d {hours % 24:02d}h"
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
