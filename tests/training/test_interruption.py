import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cjepa.training.interruption import Interruption

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP]


@pytest.fixture(autouse=True)
def _started_at_a_terminal() -> Iterator[None]:
    """nohup may have started the tests, and hides its signal from them."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_first_signal_only_sets_the_flag(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with Interruption() as interruption:
        assert interruption.requested is None
        os.kill(os.getpid(), number)
        assert interruption.requested == number.name
    assert [signal.getsignal(each) for each in SIGNALS] == before
    assert interruption.requested == number.name, "still to be read afterwards"


def test_handlers_come_back_after_an_error() -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(KeyError), Interruption():
        raise KeyError
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_ignored_signals_are_ignored_again() -> None:
    previous = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with Interruption():
            pass
        os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_a_run_that_nohup_started_outlives_its_terminal() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGHUP)
            assert interruption.requested is None
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_inert_outside_the_main_thread() -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    seen: list[object] = []

    def work() -> None:
        with Interruption() as interruption:
            seen.append((interruption.requested, [signal.getsignal(each) for each in SIGNALS]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, before)]


@pytest.mark.parametrize(("first", "second"), [(signal.SIGTERM, signal.SIGTERM), (signal.SIGUSR1, signal.SIGINT)])
def test_second_signal_leaves_at_once(first: signal.Signals, second: signal.Signals) -> None:
    script = """
import time
from cjepa.training.interruption import Interruption
with Interruption() as interruption:
    print("ready", flush=True)
    while interruption.requested is None:
        time.sleep(0.01)
    print(interruption.requested, flush=True)
    try:
        time.sleep(60)
    finally:
        print("cleaned up", flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=Path(__file__).parent,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(first)
        assert process.stdout.readline() == f"{first.name}\n"
        process.send_signal(second)
        output, errors = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == 75
    assert output == "", "nothing may delay it"
    assert f"{second.name} after {first.name}: leaving at once" in errors
