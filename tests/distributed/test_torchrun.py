"""torchrun itself: a signal to its agent stops every rank after the same step, and the same command continues."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cjepa.runs.doctor import diagnose
from cjepa.training.metrics import read_metrics
from tests.tiny_runs import TINY, write_config, write_images

RANKS, STEPS = 2, 300
LIMIT = 300.0
"""Seconds until the ranks are under way, and until they have stopped."""


def agent(folder: Path, *changes: str) -> subprocess.Popen[str]:
    """torchrun with two ranks of a run in folder/run, as scripts/torchrun.sh starts it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
    command += ["--max-restarts", "3", "--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"]
    command += ["--shutdown-timeout", "60", "-m", "cjepa", "pretrain", str(write_config(folder, TINY)), *changes]
    return subprocess.Popen(
        [*command, "--out", str(folder / "run")],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@contextmanager
def ended(job: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Whatever happens, neither the agent nor a rank of it is left."""
    with job:
        try:
            yield job
        finally:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)


def steps_of(run: Path) -> list[int]:
    path = run / "metrics.jsonl"
    return [row["step"] for row in read_metrics(path) if row["split"] == "train"] if path.exists() else []


@pytest.mark.distributed
@pytest.mark.timeout(3 * LIMIT)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_agent_stops_all_ranks_and_is_continued(tmp_path: Path, number: signal.Signals) -> None:
    write_images(tmp_path / "images")
    changes = [f"training.epochs={STEPS // 3}", "training.evaluate_every=100", "training.checkpoint_every=100"]
    with ended(agent(tmp_path, *changes)) as job:
        deadline = time.monotonic() + LIMIT
        while len(steps_of(tmp_path / "run")) < 3:
            assert job.poll() is None, job.communicate()[1]
            assert time.monotonic() < deadline, "no rank has begun"
            time.sleep(0.05)
        job.send_signal(number)
        _, said = job.communicate(timeout=LIMIT)
    assert job.returncode not in (0, 75), "torchrun says that it was signalled, not what its ranks left with"
    found = diagnose(tmp_path / "run")
    assert found.used == steps_of(tmp_path / "run")[-1] < STEPS, "saved after the last step that was taken"
    assert f"after step {found.used} of {STEPS}" in said
    with ended(agent(tmp_path, *changes)) as again:
        _, said = again.communicate(timeout=LIMIT)
    assert again.returncode == 0, said
    assert diagnose(tmp_path / "run").complete
    assert steps_of(tmp_path / "run") == list(range(1, STEPS + 1))
