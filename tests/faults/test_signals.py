"""A signal at any place of a run: what is being done is finished or given up, saved, and left with 75 in seconds.

SIGTERM comes from schedulers and torchrun, SIGINT from Ctrl-C, SIGUSR1 from SLURM ahead of the time limit, SIGHUP from
a terminal that is closed.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cjepa.data import TrainingStream
from cjepa.evaluation import monitor
from cjepa.runs import pretraining
from cjepa.training import checkpoint, trainer
from tests.faults.forks import Place, Row, run_script

LONG = 600.0
"""Seconds that a run would take without the signal."""
SECONDS = 20.0
"""Within which it must have left; a second on a quiet machine."""

Patch = Callable[[Path], None]

pytestmark = pytest.mark.timeout(900)  # the script behind the tests; half a minute on a quiet machine


def mark_and_sleep(marker: Path, seconds: float) -> None:
    marker.touch()
    until = time.monotonic() + seconds
    while time.monotonic() < until:  # a sleep alone would be cut short by a handler that returns
        time.sleep(0.05)


def in_a_step(marker: Path) -> None:
    gradient = trainer.Trainer.gradient

    def slow(self, batch):  # type: ignore[no-untyped-def]
        if self.progress.step == 4:
            mark_and_sleep(marker, 0.5)
        return gradient(self, batch)

    trainer.Trainer.gradient = slow  # type: ignore[method-assign]


def in_an_endless_step(marker: Path) -> None:
    trainer.Trainer.gradient = lambda self, batch: mark_and_sleep(marker, LONG)  # type: ignore


def in_the_first_step(marker: Path) -> None:
    gradient = trainer.Trainer.gradient

    def slow(self, batch):  # type: ignore[no-untyped-def]
        mark_and_sleep(marker, 0.5)
        return gradient(self, batch)

    trainer.Trainer.gradient = slow  # type: ignore[method-assign]


def in_evaluation(call: int) -> Patch:
    def patch(marker: Path) -> None:
        measure, calls = monitor.Monitor.measure, iter(range(100))

        def slow(self, model):  # type: ignore[no-untyped-def]
            if next(calls) == call:
                mark_and_sleep(marker, LONG)
            return measure(self, model)

        monitor.Monitor.measure = slow  # type: ignore[method-assign]

    return patch


def in_a_stall(marker: Path) -> None:
    """A disk that does not answer any more, in whichever process reads it."""
    item = TrainingStream.__getitem__

    def stalled(self, step):  # type: ignore[no-untyped-def]
        if step == 4:
            with self.source.notes.reading(0):
                mark_and_sleep(marker, LONG)
        return item(self, step)

    TrainingStream.__getitem__ = stalled  # type: ignore[method-assign]


def in_a_save(marker: Path) -> None:
    write_new = checkpoint.write_new

    def slow(path, content):  # type: ignore[no-untyped-def]
        if "step-00000003" in str(path) and path.name == "optimizer.safetensors":
            mark_and_sleep(marker, 0.5)
        write_new(path, content)

    checkpoint.write_new = slow  # type: ignore[attr-defined]


def while_opening(marker: Path) -> None:
    def slow(*_: object) -> None:
        mark_and_sleep(marker, LONG)

    pretraining.open_source = slow  # type: ignore[assignment]


SCENARIOS: dict[str, tuple[Patch, tuple[signal.Signals, ...], int, int | None]] = {
    "SIGTERM in a step": (in_a_step, (signal.SIGTERM,), 0, 5),
    "SIGINT in a step": (in_a_step, (signal.SIGINT,), 0, 5),
    "SIGUSR1 in a step": (in_a_step, (signal.SIGUSR1,), 0, 5),
    "SIGHUP in a step": (in_a_step, (signal.SIGHUP,), 0, 5),
    "SIGTERM in the first step": (in_the_first_step, (signal.SIGTERM,), 0, 1),
    "SIGTERM in the first evaluation": (in_evaluation(0), (signal.SIGTERM,), 0, None),
    "SIGUSR1 in a later evaluation": (in_evaluation(1), (signal.SIGUSR1,), 0, 3),
    "SIGTERM in a stall": (in_a_stall, (signal.SIGTERM,), 0, 4),
    "SIGINT in a stall of workers": (in_a_stall, (signal.SIGINT,), 2, 4),
    "SIGTERM in a save": (in_a_save, (signal.SIGTERM,), 0, 3),
    "SIGTERM while opening": (while_opening, (signal.SIGTERM,), 0, None),
    "SIGUSR1, then SIGTERM in a step that never ends": (
        in_an_endless_step,
        (signal.SIGUSR1, signal.SIGTERM),
        0,
        0,
    ),
}
"""Where the signal comes, which ones, loader workers, and the step of the checkpoint that is there then."""
CONTINUED = ("SIGINT in a step", "SIGUSR1 in a later evaluation", "SIGINT in a stall of workers", "SIGTERM in a save")
"""Those of which the end is compared."""


def run_scenario(place: Place, number: int, name: str) -> Row:
    patch, signals, workers, _ = SCENARIOS[name]
    run, marker = f"run{number}", place.folder / f"marker{number}"
    change = f"data.workers={workers}"
    child = place.start(run, change, patch=lambda: patch(marker))
    child.wait_for(marker)
    if workers:  # they are ahead of the step that is waited for
        child.wait_for(place.run(run) / "metrics.jsonl", '"step": 4, "split": "train"')
    started = time.monotonic()
    for each in signals:
        os.kill(child.process, each)
        time.sleep(0.1)
    code = child.wait()
    seconds = time.monotonic() - started
    steps = place.steps(run)
    row: Row = {"code": code, "seconds": seconds, "steps": steps, "said": child.said()}
    if name in CONTINUED:
        row |= {"finished": place.start(run).wait(), "content": place.content(run)}
    return row


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Row:
    return run_script(__file__, tmp_path_factory.mktemp("signals"))


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_signal_ends_a_run_resumably(rows: Row, name: str) -> None:
    row, (_, signals, _, step) = rows[name], SCENARIOS[name]
    assert row["code"] == 75, row["said"]
    assert row["seconds"] < SECONDS
    assert (row["steps"][-1] if row["steps"] else None) == step
    assert "Traceback" not in row["said"], row["said"]
    if len(signals) == 1:
        assert f"stopped by {signals[0].name}" in row["said"]
        assert "the same command continues" in row["said"]
    else:
        assert "SIGTERM after SIGUSR1: leaving at once" in row["said"]
    if name in CONTINUED:
        assert row["finished"] == 0
        assert row["content"] == rows["undisturbed"], "continued, it ends with the bits of an undisturbed run"


if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup may have started the tests, and hides it from what they start
    here = Place(Path(sys.argv[1]))
    assert here.start("undisturbed").wait() == 0
    result: Row = {name: run_scenario(here, number, name) for number, name in enumerate(SCENARIOS)}
    print(json.dumps(result | {"undisturbed": here.content("undisturbed")}))
