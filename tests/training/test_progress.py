import errno
import io
import re
import sys
import time
import types
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cjepa.training import progress as module
from cjepa.training.progress import Progress

VALUES: dict[str, str | int | float] = {
    "loss": 0.123456,
    "prediction": 0.1,
    "invariance": 0.2,
    "variance": 0.9,
    "covariance": 0.0123,
    "health": "healthy",
}
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class LogFile(io.TextIOWrapper):
    """What is written to it; an io.StringIO lacks some of what the type checks expect of a TextIO."""

    mode, name = "w", "log"

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", newline="")

    def getvalue(self) -> str:
        self.flush()
        self.seek(0)
        return self.read()


class Terminal(LogFile):
    def isatty(self) -> bool:
        return True

    def drawn(self) -> list[str]:
        """Each state of the line, without control sequences."""
        return [line for line in re.split(r"[\r\n]+", ESCAPE.sub("", self.getvalue())) if line]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "monotonic", clock)
    return clock


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    yield
    assert Progress._open == []


class TestLogFile:
    def test_a_line_now_and_then_and_the_last(self, clock: Clock) -> None:
        stream = LogFile()
        with Progress("pre-training", 300, stream, interval=10.0) as progress:
            for step in range(1, 301):
                clock.now += 0.1
                progress.update(step, VALUES, images=64)
        lines = stream.getvalue().splitlines()
        assert len(lines) == 4, lines
        assert lines[0].startswith("pre-training 1/300  loss 0.1235  prediction 0.1  ")
        assert lines[1].startswith("pre-training 101/300  ")
        assert lines[1].endswith("covariance 0.0123  640 images/s  0:20 left  healthy")
        assert lines[3].endswith("640 images/s  took 0:30  healthy")
        assert "\x1b" not in stream.getvalue()

    def test_nothing_reported_nothing_shown(self, clock: Clock) -> None:
        stream = LogFile()
        with Progress("features", 10, stream):
            pass
        assert stream.getvalue() == ""

    def test_resumed_run_starts_in_the_middle(self, clock: Clock) -> None:
        stream = LogFile()
        with Progress("pre-training", 1000, stream, interval=1.0) as progress:
            for step in range(901, 911):
                clock.now += 1.0
                progress.update(step, {})
        assert "910/1000" in stream.getvalue()
        assert stream.getvalue().splitlines()[-2].endswith("1:30 left")

    def test_rate_follows_the_last_half_minute(self, clock: Clock) -> None:
        stream = LogFile()
        with Progress("pre-training", 10_000, stream, interval=10.0) as progress:
            for step in range(1, 401):
                clock.now += 1.0 if step > 200 else 0.1
                progress.update(step, {}, images=10)
        lines = stream.getvalue().splitlines()
        assert any("100 images/s" in line for line in lines[:3])
        assert "10 images/s" in lines[-1]

    def test_changed_clock_of_the_machine_does_not_matter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(time, "time", lambda: 0.0)
        stream = LogFile()
        with Progress("pre-training", 2, stream, interval=0.0) as progress:
            progress.update(1, {}, images=1)
            progress.update(2, {}, images=1)
        assert "left" in stream.getvalue()

    def test_error_inside_still_shows_how_far_it_came(self, clock: Clock) -> None:
        stream = LogFile()

        def fail() -> None:
            with Progress("pre-training", 100, stream) as progress:
                progress.update(1, {})
                progress.update(37, {})
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert "37/100" in stream.getvalue().splitlines()[-1]


class TestTerminal:
    def test_one_line_that_fits(self, clock: Clock) -> None:
        terminal = Terminal()
        with Progress("pre-training", 123_456, terminal) as progress:
            for step in range(60_000, 60_100):
                clock.now += 0.5
                progress.update(step, VALUES, images=2048)
        drawn = terminal.drawn()
        assert len(drawn) > 90
        assert max(map(len, drawn)) <= 80
        for line in drawn[5:-2]:
            assert line.startswith("pre-training 60")
            for part in ("/123456  loss 0.123  ", "4096 img/s", " left", "healthy"):
                assert part in line
        assert terminal.getvalue().count("\n") == 1, "rewritten in place, one line end at the close"

    def test_wide_terminal_shows_everything(self, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "200")
        terminal = Terminal()
        with Progress("pre-training", 100, terminal) as progress:
            progress.update(1, VALUES)
        for name in VALUES:
            assert name in terminal.drawn()[-1] or name == "health"

    def test_drawn_at_most_ten_times_a_second(self, clock: Clock) -> None:
        terminal = Terminal()
        with Progress("pre-training", 10_000, terminal) as progress:
            for step in range(10_000):
                clock.now += 0.001
                progress.update(step, VALUES)
        assert 80 < len(terminal.drawn()) < 110

    def test_cursor_comes_back(self, clock: Clock) -> None:
        terminal = Terminal()
        with Progress("pre-training", 10, terminal) as progress:
            progress.update(1, VALUES)
        assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex("\x1b[?25l")

    def test_nested(self, clock: Clock) -> None:
        terminal = Terminal()
        with Progress("pre-training", 100, terminal) as outer:
            outer.update(1, {"loss": 1.0})
            with Progress("features", 5, terminal) as inner:
                for done in range(1, 6):
                    clock.now += 1.0
                    inner.update(done, {}, images=10)
            for step in (2, 3):
                clock.now += 1.0
                outer.update(step, {"loss": 2.0}, images=7)
        drawn = terminal.drawn()
        assert any(line.startswith("features 5/5  10 images/s") for line in drawn)
        assert drawn[-1].startswith("pre-training 3/100  loss 2  7 images/s"), "the inner work does not count"
        before, _ = terminal.getvalue().split("features 1/5")
        assert "\n" in before[before.rindex("pre-training 1/100") :], "each has a line of its own"

    def test_prints_do_not_break_the_line(self, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        with Progress("pre-training", 100) as progress:
            progress.update(1, {})
            print("a warning", file=sys.stderr)
            clock.now += 1
            progress.update(2, {})
        assert "a warning" in terminal.drawn()

    @settings(max_examples=100, deadline=None)
    @given(
        st.integers(20, 120),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30),
        st.integers(0, 10**9),
        st.dictionaries(
            st.text(st.characters(min_codepoint=97, max_codepoint=122), min_size=1, max_size=25),
            st.floats() | st.sampled_from(["healthy", "partial collapse"]),
            max_size=9,
        ),
    )
    def test_never_wider_than_the_terminal(
        self, columns: int, description: str, total: int, values: dict[str, float | str]
    ) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("COLUMNS", str(columns))
            clock = Clock()
            patch.setattr(module, "monotonic", clock)
            terminal = Terminal()
            with Progress(description, total, terminal) as progress:
                for step in range(3):
                    clock.now += 7.0
                    progress.update(step, values, images=step * 100)
            assert max(map(len, terminal.drawn())) <= columns


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0:00"), (59.6, "1:00"), (200.0, "3:20"), (3599.9, "1:00:00"), (11_523.0, "3:12:03"), (183_600.0, "2d 03h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert module._clock(seconds) == text


class _Notebook(LogFile):
    """What a Jupyter kernel has for a standard error: no terminal, of a class of ipykernel's."""


_Notebook.__module__ = "ipykernel.iostream"


@pytest.fixture
def cells(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, bool]]:
    """What is displayed in a notebook: text, id of the output, whether it replaces what was there."""
    shown: list[tuple[str, str, bool]] = []

    def display(content: dict[str, str], *, raw: bool, display_id: str, update: bool) -> None:
        assert raw
        shown.append((content["text/plain"], display_id, update))

    package, fake = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    fake.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", fake)
    return shown


def test_in_a_notebook_one_output_is_rewritten(clock: Clock, cells: list[tuple[str, str, bool]]) -> None:
    stream = _Notebook()
    with Progress("pretrain", 100, stream) as outer:
        for step in range(1, 11):
            clock.now += 0.5
            outer.update(step, VALUES, 8)
        with Progress("evaluate", 2, stream) as inner:
            clock.now += 1.0
            inner.update(2, {}, 4)
    assert stream.getvalue() == "", "nothing between what the notebook's user prints"
    texts = [text for text, _, _ in cells]
    assert 5 <= len([text for text in texts if text.startswith("pretrain")]) <= 8, "at most one a second"
    assert all(len(text) <= 100 and text == ESCAPE.sub("", text) for text in texts)
    assert texts[-1].startswith("pretrain 10/100")
    assert "took 0:06" in texts[-1]
    ids = dict.fromkeys(name for _, name, _ in cells)
    assert len(ids) == 2, "one output for each line"
    for each in ids:
        assert [update for _, name, update in cells if name == each][:2] in ([False, True], [False])


@pytest.mark.parametrize("kind", [LogFile, Terminal])
@pytest.mark.parametrize("closed", [False, True], ids=["gone", "closed"])
@pytest.mark.parametrize("shown", [0, 1])
def test_a_stream_that_cannot_be_written_any_more_ends_no_work(
    kind: type[LogFile], closed: bool, shown: int, clock: Clock
) -> None:
    stream = kind()

    def gone(_: str) -> int:
        raise OSError(errno.EIO, "Input/output error")  # what a terminal says that was closed

    with Progress("pretrain", 3, stream, interval=0.0) as line:
        for done in range(1, 4):
            if done > shown:
                stream.close() if closed else setattr(stream, "write", gone)
            line.update(done, VALUES)
            clock.now += 1.0
