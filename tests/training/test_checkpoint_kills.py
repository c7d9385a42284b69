"""Real processes that die inside a save. They are forked by a script, which is this file: pytest should not fork."""

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from logging.handlers import QueueHandler
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch

from cjepa.training import checkpoint as module
from cjepa.training.checkpoint import CheckpointStore
from cjepa.training.durable import sync_folder, write_new

SCENARIOS = ("new", "replace", "replace_damaged")
Row = dict[str, Any]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Row]]:
    """What the script saw: for each scenario a row for each moment to die at, and one for each random kill."""
    command = [sys.executable, __file__, str(tmp_path_factory.mktemp("kills"))]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert answer.returncode == 0, answer.stderr
    result = json.loads(answer.stdout)
    assert isinstance(result, dict)
    return result


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_at_every_phase_of_a_save(rows: dict[str, list[Row]], scenario: str) -> None:
    assert len(rows[scenario]) >= 24, "there should be dozens of moments to die at"
    allowed = {"new": {2, 3}, "replace": {2}, "replace_damaged": {1, 2}}[scenario]
    for row in rows[scenario]:
        assert row["leftovers"] == [], row
        assert row["valid"] >= (1 if scenario == "replace_damaged" else 2), row
        assert row["next"] == 4, row
    assert {row["newest"] for row in rows[scenario]} == allowed


def test_at_random_times(rows: dict[str, list[Row]]) -> None:
    assert len(rows["random"]) == 12
    assert all(row["warnings"] == 0 and row["leftovers"] == [] for row in rows["random"])
    steps = [row["newest"] for row in rows["random"]]
    assert steps == sorted(steps)
    assert sum(row["interrupted"] for row in rows["random"]) >= 3, "many kills should hit the inside of a save"


def save(store: CheckpointStore, step: int) -> None:
    tensors = {name: {"weight": torch.full((5, 3), float(step))} for name in ("encoder", "training")}
    store.save(step, tensors, {"step": step})


def prepare(folder: Path, scenario: str) -> CheckpointStore:
    folder.mkdir()
    store = CheckpointStore(folder / "checkpoints")
    save(store, 1)
    save(store, 2)
    if scenario == "replace_damaged":
        (store.folder / "step-00000002" / "training.safetensors").write_bytes(b"damaged")
    return store


def die_inside(store: CheckpointStore, step: int, limit: int) -> None:
    """Save, and die at the `limit`-th of all the moments before, inside and after the file operations."""
    count = 0

    def moment() -> None:
        nonlocal count
        count += 1
        if count == limit:
            os._exit(137)

    rmtree, rename = shutil.rmtree, Path.rename

    def dying_write(path: Path, content: bytes) -> None:
        moment()
        path.write_bytes(content[: len(content) // 2])
        moment()
        path.unlink()
        write_new(path, content)
        moment()

    def dying_sync(folder: Path) -> None:
        moment()
        sync_folder(folder)
        moment()

    def dying_rename(path: Path, target: Path) -> Path:
        moment()
        result = rename(path, target)
        moment()
        return result

    def dying_rmtree(path: Path, ignore_errors: bool = False) -> None:
        if path.exists():
            moment()
            next(path.iterdir()).unlink()
            moment()
        rmtree(path, ignore_errors=ignore_errors)
        moment()

    patch = pytest.MonkeyPatch()
    patch.setattr(module, "write_new", dying_write)
    patch.setattr(module, "sync_folder", dying_sync)
    patch.setattr(shutil, "rmtree", dying_rmtree)
    patch.setattr(Path, "rename", dying_rename)
    save(store, step)
    os._exit(0)


def fork(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    return child


def leftovers(store: CheckpointStore) -> list[str]:
    return [entry.name for entry in store.folder.iterdir() if entry.name.startswith(".")]


def die_at_every_phase(folder: Path, scenario: str) -> list[Row]:
    rows: list[Row] = []
    while True:
        store = prepare(folder / f"{scenario}-{len(rows)}", scenario)
        limit = len(rows) + 1
        child = fork(lambda: die_inside(store, 3 if scenario == "new" else 2, limit))  # noqa: B023
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 0:  # it got through: there are no more moments
            return rows
        assert code == 137, code
        store.remove_leftovers()
        newest = store.newest()
        assert newest is not None
        assert (newest.tensors("training")["weight"] == newest.step).all()
        row = {
            "newest": newest.step,
            "valid": sum(not store.verify(step) for step in store.steps()),
            "leftovers": leftovers(store),
        }
        save(store, 4)
        after = store.newest()
        rows.append({**row, "next": after and after.step})


def die_at_random_times(folder: Path, count: int) -> list[Row]:
    """Kill a process that does nothing but save, 24 MB at a time, each time starting from where it was."""
    warnings: SimpleQueue[logging.LogRecord] = SimpleQueue()
    logging.getLogger("cjepa").addHandler(QueueHandler(warnings))
    store = prepare(folder / "random", "new")
    large = {"weight": torch.zeros(3 << 20), "moment": torch.zeros(3 << 20)}

    def save_forever() -> None:
        newest = store.newest()
        assert newest is not None
        for step in range(newest.step + 1, 10**6):
            store.save(step, {"training": large}, {})

    chance = random.Random(0)
    rows: list[Row] = []
    for _ in range(count):
        child = fork(save_forever)
        time.sleep(chance.uniform(0.05, 0.3))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        interrupted = any(name.startswith(".tmp-") for name in leftovers(store))
        store.remove_leftovers()
        newest = store.newest()
        rows.append(
            {
                "newest": newest and newest.step,
                "warnings": warnings.qsize(),
                "leftovers": leftovers(store),
                "interrupted": interrupted,
            }
        )
    return rows


if __name__ == "__main__":
    place = Path(sys.argv[1])
    really_sync = os.fsync
    os.fsync = lambda fd: None  # a killed process, unlike a power cut, loses nothing: be quick
    result = {scenario: die_at_every_phase(place, scenario) for scenario in SCENARIOS}
    os.fsync = really_sync
    print(json.dumps({**result, "random": die_at_random_times(place, 12)}))
