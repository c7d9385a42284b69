"""Children of a script that has imported torch: each in a process group of its own, with a time limit, and patched.

pytest itself must not fork, so a test file that uses this is also the script, run once for all its tests.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch._dynamo  # what the first optimizer of a process imports, seconds of it

from cjepa import cli, cli_text, runs
from cjepa.training.checkpoint import CheckpointStore
from tests.tiny_runs import write_config, write_images

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0
"""Seconds after which a child is killed and the test fails."""

Row = dict[str, Any]

assert all((torch._dynamo, cli_text)), "imported before the forks"


def run_script(file: str, folder: Path, *before: str) -> Row:
    """What the script of a test file prints; `before`: a command that starts it."""
    name = ".".join(Path(file).relative_to(ROOT).with_suffix("").parts)
    answer = subprocess.run(
        [*before, sys.executable, "-m", name, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=800,
    )
    assert answer.returncode == 0, answer.stdout[-2000:] + answer.stderr[-6000:]
    result: Row = json.loads(answer.stdout.splitlines()[-1])
    return result


@dataclass
class Child:
    """A forked process and the file that takes its output."""

    process: int
    output: Path

    def ended(self) -> bool:
        return os.waitid(os.P_PID, self.process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def wait(self) -> int:
        """Its exit code."""
        deadline = time.monotonic() + PATIENCE
        while not self.ended():
            if time.monotonic() > deadline:
                os.killpg(self.process, signal.SIGKILL)
                os.waitpid(self.process, 0)
                raise AssertionError(f"it did not end:\n{self.said()[-3000:]}")
            time.sleep(0.01)
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])

    def wait_for(self, path: Path, text: str = "") -> None:
        """Wait until it has made a file, and written a text into it."""
        deadline = time.monotonic() + PATIENCE
        while not (path.exists() and text in path.read_text()):
            assert not self.ended(), self.said()[-3000:]
            assert time.monotonic() < deadline, self.said()[-3000:]
            time.sleep(0.005)

    def said(self) -> str:
        return self.output.read_text(errors="replace")


def fork(work: Callable[[], object], output: Path) -> Child:
    """Start `work` in a child, whose exit code is that of a SystemExit, 0 when it returns, 1 for an error."""
    process = os.fork()
    if process:
        return Child(process, output)
    code = 1
    try:
        os.setsid()
        with output.open("ab") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
        work()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def command(*arguments: object) -> None:
    """A command line in this process, without the pictures at its end."""
    runs.draw_pictures = lambda *_: []  # type: ignore[assignment]
    sys.argv = ["cjepa", *map(str, arguments)]
    cli.main()


class Place:
    """Images, a config and a run folder for the children of a script. Six steps, evaluations after 0, 3 and 6."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.images = write_images(folder / "images")
        self.config = write_config(folder)

    def pretrain(self, name: str, *changes: str) -> None:
        """The command line of a run in this process."""
        command("pretrain", self.config, f"data={self.images}", "training.epochs=2", *changes, "--out", self.run(name))

    def start(self, name: str, *changes: str, patch: Callable[[], object] | None = None) -> Child:
        """The same in a child, after a patch."""

        def work() -> None:
            if patch is not None:
                patch()
            self.pretrain(name, *changes)

        return fork(work, self.folder / f"{name.replace('/', '-')}.out")  # not on the disk that fills up

    def run(self, name: str) -> Path:
        return self.folder / name

    def steps(self, name: str) -> list[int]:
        """The steps with a valid checkpoint."""
        store = CheckpointStore(self.run(name) / "checkpoints")
        return [step for step in store.steps() if not store.verify(step)]

    def content(self, name: str) -> dict[str, str]:
        """What equal runs have in common, hashed: the last checkpoint and the metrics."""
        newest = CheckpointStore(self.run(name) / "checkpoints").newest()
        assert newest is not None
        files = [*sorted(newest.path.iterdir()), self.run(name) / "metrics.jsonl"]
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
