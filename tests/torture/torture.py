"""Kill a run again and again, damage what it saved, and compare what it ends with to a run that nobody touched.

    python -m tests.torture.torture --kills 50 --sabotages 20 --real 10 --out FILE

The run is `cjepa pretrain` on tiny images. A part of its lives are fresh processes of the real command line; the others
are forked from this process, which has imported torch already, and call the same command. Each life is a process group
of its own that is first stopped, so that it can be seen where it stood, and then killed, at a random time.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch._dynamo  # what the first optimizer of a process imports, seconds of it

from cjepa import cli, cli_text, runs
from cjepa.training.checkpoint import CheckpointStore
from cjepa.training.environment import describe_environment
from tests.tiny_runs import TINY, write_config, write_images

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "torture.json"
STEPS_A_LIFE = 30
EVALUATE_EVERY = 6
LONGEST = 1.0
"""Seconds that a life lasts at most after it began to train; a new one is drawn each time."""
AT_THE_START = 0.1
"""Share of the kills at any time after the start, most of them before the first step."""


assert all((torch._dynamo, cli_text)), "imported before the forks"

# --- damage ---------------------------------------------------------------------------------------------------------


def truncate(checkpoint: Path, chance: random.Random) -> None:
    path = chance.choice(sorted(checkpoint.iterdir()))
    os.truncate(path, chance.randrange(path.stat().st_size))


def flip_one_bit(checkpoint: Path, chance: random.Random) -> None:
    path = chance.choice(sorted(checkpoint.iterdir()))
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def remove_a_file(checkpoint: Path, chance: random.Random) -> None:
    chance.choice(sorted(checkpoint.iterdir())).unlink()


def empty_json(checkpoint: Path, chance: random.Random) -> None:
    (checkpoint / chance.choice(["state.json", "manifest.json"])).write_text("{}")


def half_written_folder(checkpoint: Path, chance: random.Random) -> None:
    """A later step, of which some files are there: what a save without a rename would leave."""
    step = int(checkpoint.name.removeprefix("step-"))
    later = checkpoint.with_name(f"step-{step + 3:08d}")
    later.mkdir()
    files = sorted(checkpoint.iterdir())
    for path in chance.sample(files, chance.randrange(1, len(files))):
        shutil.copy(path, later)


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (
    truncate,
    flip_one_bit,
    remove_a_file,
    empty_json,
    half_written_folder,
)


# --- lives ----------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """A run folder, the command that continues it, and what it went through."""

    folder: Path
    command: list[str]
    log: Path
    killed_in: Counter[str] = field(default_factory=Counter)
    damaged_by: Counter[str] = field(default_factory=Counter)
    real: int = 0
    finished_early: int = 0

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def store(self) -> CheckpointStore:
        return CheckpointStore(self.folder / "checkpoints")

    def start(self, real: bool, workers: int) -> int:
        """A process in a group of its own; its id."""
        arguments = [*self.command, f"data.workers={workers}"]
        if real:
            with self.log.open("ab") as log:
                command = [sys.executable, "-m", "cjepa", *arguments]
                return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True).pid
        child = os.fork()
        if child == 0:
            run_forked(arguments, self.log)
        return child

    def position(self) -> str:
        """Where a stopped process stands, by what it has written."""
        entries = [entry.name for entry in self.store.folder.iterdir()] if self.store.folder.exists() else []
        if any(name.startswith((".tmp-", ".old-")) for name in entries):
            return "save"
        lines = self.metrics.read_bytes().split(b"\n") if self.metrics.exists() else []
        if len(lines) < 2:
            return "start"
        row = json.loads(lines[-2])
        return "evaluation" if row["split"] == "train" and row["step"] % EVALUATE_EVERY == 0 else "step"


def run_forked(arguments: list[str], log: Path) -> None:
    """The command in a forked child; never returns."""
    code = 1
    try:
        os.setsid()
        with log.open("ab") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
        sys.argv = ["cjepa", *arguments]
        runs.draw_pictures = lambda *_: []  # seconds after the last step, and nothing of a run depends on them
        cli.main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait_until_it_trains(run: Run, child: int) -> bool:
    """False if it ended before it wrote a row."""
    before = run.metrics.stat().st_mtime_ns if run.metrics.exists() else None
    while True:
        if has_ended(child):
            return False
        if run.metrics.exists() and run.metrics.stat().st_mtime_ns != before:
            return True
        time.sleep(0.002)


def has_ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def stop(child: int) -> None:
    """Stop a life. One that is just starting a program waits for that, which is stopped too, so it is not awaited."""
    os.killpg(child, signal.SIGSTOP)
    deadline = time.monotonic() + LONGEST
    while os.waitid(os.P_PID, child, os.WSTOPPED | os.WNOHANG) is None and time.monotonic() < deadline:
        time.sleep(0.002)


def live_and_die(run: Run, chance: random.Random, real: bool) -> None:
    """One life: started, killed at a random time, counted where it stood."""
    child = run.start(real, workers=chance.choice([0, 0, 1]))
    at_the_start = chance.random() < AT_THE_START
    trains = at_the_start or wait_until_it_trains(run, child)
    time.sleep(chance.uniform(0.0, 3.0 if at_the_start else LONGEST))
    if not trains or has_ended(child):
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code == 0, f"a life ended by itself with {code}:\n{run.log.read_text()[-3000:]}"
        run.finished_early += 1
        return
    stop(child)
    position = run.position()
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    run.killed_in["start" if at_the_start and position == "step" else position] += 1
    run.real += real


def sabotage(run: Run, chance: random.Random, damage: Callable[[Path, random.Random], None]) -> bool:
    """Damage the newest checkpoint where another valid one is left; False where that cannot be."""
    valid = [step for step in run.store.steps() if not run.store.verify(step)]
    if len(valid) < 2:
        return False
    newest = run.store.folder / f"step-{valid[-1]:08d}"
    damage(newest, chance)
    used = run.store.newest()
    assert used is not None
    expected = valid[-1] if damage is half_written_folder else valid[-2]
    assert used.step == expected, (damage.__name__, used.step, valid)
    run.damaged_by[damage.__name__] += 1
    return True


def finish(run: Run) -> None:
    """Let it run to its end."""
    child = run.start(real=False, workers=0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 0, f"the run ended with {code}:\n{run.log.read_text()[-3000:]}"


def content(run: Run) -> dict[str, str]:
    """The sha256 of everything that a finished run must have in common with any other of its configuration."""
    newest = run.store.newest()
    assert newest is not None
    files = [*sorted(newest.path.iterdir()), run.metrics]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# --- all of it ------------------------------------------------------------------------------------------------------


@contextmanager
def scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    yield folder
    shutil.rmtree(folder)  # kept when something failed


def torture(kills: int, sabotages: int, real: int, seed: int) -> dict[str, Any]:
    """Both runs; the result when they are equal to the bit, AssertionError when not."""
    chance, started = random.Random(seed), time.monotonic()
    epochs = STEPS_A_LIFE * (kills + sabotages) // 3
    with scratch() as folder:
        images, config = write_images(folder / "images"), write_config(folder, TINY)
        command = ["pretrain", str(config), f"data={images}", f"training.epochs={epochs}"]
        command += [f"training.evaluate_every={EVALUATE_EVERY / 3}", "training.checkpoint_every=1"]
        runs = [
            Run(folder / name, [*command, "--out", str(folder / name)], folder / f"{name}.log")
            for name in ("undisturbed", "tortured")
        ]
        undisturbed, run = runs
        finish(undisturbed)
        lives = [True] * real + [False] * (kills - real)
        chance.shuffle(lives)
        waiting = [DAMAGES[number % len(DAMAGES)] for number in range(sabotages)]
        while lives or waiting:
            live_and_die(run, chance, lives.pop() if lives else False)
            assert run.finished_early == 0, "the run was too short for so many kills"
            due = waiting and (not lives or chance.random() < 1.5 * len(waiting) / (len(lives) + 1))
            if due and sabotage(run, chance, waiting[-1]):
                waiting.pop()
        finish(run)
        expected, found = content(undisturbed), content(run)
        different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        assert not different, f"different after {run.killed_in.total()} kills: {', '.join(different)} in {folder}"
        last = run.store.newest()
        assert last is not None
        return {
            "kills": run.killed_in.total(),
            "killed_in": dict(sorted(run.killed_in.items())),
            "killed_real_command_lines": run.real,
            "sabotages": run.damaged_by.total(),
            "sabotaged_by": dict(sorted(run.damaged_by.items())),
            "identical_files": sorted(expected),
            "steps": last.step,
            "seed": seed,
            "seconds": round(time.monotonic() - started, 1),
        }


def summary(result: dict[str, Any]) -> str:
    """One line."""
    kills = ", ".join(f"{count} in {name}" for name, count in result["killed_in"].items())
    damages = ", ".join(f"{count} {name}" for name, count in result["sabotaged_by"].items())
    return (
        f"torture: {result['kills']} SIGKILLs ({kills}; {result['killed_real_command_lines']} of fresh processes) and "
        f"{result['sabotages']} sabotaged checkpoints ({damages}) over {result['steps']} steps, then bit-identical to "
        f"an undisturbed run: {', '.join(result['identical_files'])} ({result['seconds']:.0f} s)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--sabotages", type=int, default=20)
    parser.add_argument("--real", type=int, default=10, help="kills of fresh processes of the real command line")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="the result file")
    arguments = parser.parse_args()
    result = torture(arguments.kills, arguments.sabotages, arguments.real, arguments.seed)
    print(summary(result))
    if arguments.out is not None:
        whole = {"summary": summary(result), "result": result, "environment": describe_environment()}
        arguments.out.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
