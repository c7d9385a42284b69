"""Disks that fill up, become read-only or go away, and two runs into one folder: nothing that was saved is lost.

The disks are real ones (tmpfs), for which the tests must be root.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cjepa.training import trainer
from tests.faults.forks import Place, Row, run_script

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(900)  # the script behind the tests; half a minute on a quiet machine
LONG = ("training.epochs=14", "training.checkpoint_every=1", "training.evaluate_every=14")
"""42 steps, with a checkpoint after every third."""


def slowly() -> None:
    """A patch: steps that leave time to do something meanwhile."""
    take_step = trainer.Trainer.take_step

    def slow(self, batch):  # type: ignore[no-untyped-def]
        time.sleep(0.15)
        return take_step(self, batch)

    trainer.Trainer.take_step = slow  # type: ignore[method-assign]


def mount(folder: Path, size: str) -> None:
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def wait_for_steps(place: Place, name: str, step: int) -> None:
    """Until a run has saved a step."""
    deadline = time.monotonic() + 120
    while not (steps := place.steps(name)) or steps[-1] < step:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def fill_up(place: Place, name: str, *changes: str) -> Row:
    """The disk of a running run is filled to the last byte, then gets larger."""
    disk = place.run(name).parent
    child = place.start(name, *LONG, *changes, patch=slowly)
    wait_for_steps(place, name, 3)
    with (disk / "filler").open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            pass
    code = child.wait()
    steps = place.steps(name)
    (disk / "filler").unlink()
    again = place.start(name, *LONG, *changes).wait()
    return {"code": code, "steps": steps, "said": child.said(), "again": again, "content": place.content(name)}


def make_read_only(place: Place, name: str) -> Row:
    """While it runs, and at the start of the next."""
    disk = place.run(name).parent
    child = place.start(name, *LONG, patch=slowly)
    wait_for_steps(place, name, 3)
    # A file that is open for writing keeps a file system writable: the kernel is told to force it.
    subprocess.run(["mount", "-o", "remount,ro,bind", disk], check=False)
    subprocess.run(["mount", "--bind", disk, disk], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", disk], check=True)
    code, said = child.wait(), child.said()
    opened = place.start(name, *LONG)
    refused = opened.wait()
    subprocess.run(["umount", disk], check=True)
    subprocess.run(["mount", "-o", "remount,rw", disk], check=False)
    again = place.start(name, *LONG)
    row = {"code": code, "said": said, "refused": refused, "refusal": opened.said()[len(said) :]}
    return row | {"again": again.wait(), "content": place.content(name)}


def take_away(place: Place, name: str) -> Row:
    """The run folder is moved while it runs, and later put back."""
    run = place.run(name)
    child = place.start(name, *LONG, patch=slowly)
    wait_for_steps(place, name, 3)
    run.rename(run.with_name("elsewhere"))
    code = child.wait()
    came_back = run.exists()
    run.with_name("elsewhere").rename(run)
    again = place.start(name, *LONG).wait()
    return {
        "code": code,
        "said": child.said(),
        "came_back": came_back,
        "again": again,
        "content": place.content(name),
    }


def start_twice(place: Place, name: str) -> Row:
    """A second run into the folder of a first one, which is then killed."""

    first = place.start(name, *LONG, patch=slowly)
    wait_for_steps(place, name, 3)
    second = place.start(name, *LONG)
    second.output = second.output.with_name(f"{name}.out")
    refused = second.wait()
    os.killpg(first.process, signal.SIGKILL)
    first.wait()
    third = place.start(name, *LONG).wait()
    said = first.said()
    return {"refused": refused, "first": first.process, "said": said, "again": third, "content": place.content(name)}


def turn_back_the_clock(place: Place, name: str) -> Row:
    """time.time goes back an hour at every call, before and after a stop."""

    def patch() -> None:
        slowly()
        now = [2e9]

        def earlier() -> float:
            now[0] -= 3600.0
            return now[0]

        time.time = earlier

    child = place.start(name, *LONG, patch=patch)
    wait_for_steps(place, name, 6)
    os.kill(child.process, signal.SIGTERM)
    code = child.wait()
    for number, step in enumerate(place.steps(name)):  # the oldest looks like the newest
        checkpoint = place.run(name) / "checkpoints" / f"step-{step:08d}"
        os.utime(checkpoint, (2e9 - 1e6 * number,) * 2)
    return {"code": code, "again": place.start(name, *LONG).wait(), "content": place.content(name)}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Row:
    folder = tmp_path_factory.mktemp("disks")
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    return run_script(__file__, folder, "unshare", "-m")  # its mounts are its own and end with it


@pytest.mark.parametrize("name", ["full", "read-only", "away", "twice", "clock", "full, going on"])
def test_the_run_then_ends_with_the_bits_of_an_undisturbed_one(rows: Row, name: str) -> None:
    assert rows[name]["again"] == 0
    expected = dict(rows["undisturbed"])
    if name == "full, going on":  # the rows of the time without room are not there
        for content in (expected, rows[name]["content"]):
            content.pop("metrics.jsonl", None)
    assert rows[name]["content"] == expected


def test_a_full_disk_stops_the_run_with_path_need_and_free_bytes(rows: Row) -> None:
    row = rows["full"]
    assert row["code"] == 75, row["said"]
    assert len(row["steps"]) >= 2, "the two last valid ones are still there"
    assert "Traceback" not in row["said"]
    assert "could not be saved in" in row["said"] or "metrics.jsonl cannot be written" in row["said"]
    assert "make room" in row["said"]


def test_or_it_goes_on_and_says_so(rows: Row) -> None:
    row = rows["full, going on"]
    assert row["code"] == 75, "only the last checkpoint must be written"
    assert "the run goes on without what could not be written" in row["said"]
    assert "pretrain 42/42" in row["said"], "it took every step"
    assert "bytes needed" in row["said"]


def test_a_read_only_folder_is_refused_before_anything_is_built(rows: Row) -> None:
    row = rows["read-only"]
    assert row["code"] == 75, row["said"]
    assert "Read-only file system" in row["said"]
    assert row["refused"] == 2
    assert "cannot be written" in row["refusal"]
    assert "model: encoder" not in row["refusal"]
    assert "Traceback" not in row["refusal"]


def test_a_folder_that_goes_away_does_not_come_back_empty(rows: Row) -> None:
    row = rows["away"]
    assert row["code"] == 75, row["said"]
    assert not row["came_back"]
    assert "Traceback" not in row["said"]


def test_a_second_run_is_refused_by_name_and_a_killed_one_frees_the_folder(rows: Row) -> None:
    row = rows["twice"]
    assert row["refused"] == 2
    assert f"is in use by process {row['first']}" in row["said"]


def test_a_small_dev_shm_ends_in_advice(tmp_path: Path) -> None:
    """Sixteen images of 512 px are 12 MiB a batch, which the worker hands over in shared memory."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs on /dev/shm")
    place = Place(tmp_path)
    arguments = ["pretrain", place.config, f"data={place.images}", "data.image_size=512", "data.workers=1"]
    arguments += ["model.encoder.patch_size=128", "training.epochs=1", "--out", tmp_path / "run"]
    shell = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'
    answer = subprocess.run(
        ["unshare", "-m", "sh", "-c", shell, "sh", sys.executable, "-m", "cjepa", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert answer.returncode == 75, answer.stderr[-3000:]
    assert "data.workers=0" in answer.stderr


if __name__ == "__main__":
    here = Path(sys.argv[1])
    undisturbed = Place(here / "undisturbed")
    assert undisturbed.start("run", *LONG).wait() == 0
    result: Row = {"undisturbed": undisturbed.content("run")}
    for title, scenario in (("away", take_away), ("twice", start_twice), ("clock", turn_back_the_clock)):
        result[title] = scenario(Place(here / title), "run")
    for title in ("full", "full, going on", "read-only"):
        place = Place(here / title)
        place.images, place.config = undisturbed.images, undisturbed.config
        mount(place.folder / "disk", "4m")
        if title == "read-only":
            result[title] = make_read_only(place, "disk/run")
        else:
            policy = ["training.on_failed_write=continue"] if "going" in title else []
            result[title] = fill_up(place, "disk/run", *policy)
    print(json.dumps(result))
