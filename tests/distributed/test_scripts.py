"""The SLURM script with stand-ins for srun, torchrun and scontrol: when is the job requeued?"""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "slurm.sbatch"
SRUN = 'exec "$@"\n'
SCONTROL = 'if [ "$1" = show ]; then echo node1; echo node2; else echo "$@" >> "$ASKED"; fi\n'
WAITING = "trap 'exit 1' USR1; touch \"$READY\"; while true; do sleep 0.05; done\n"


def submit(folder: Path, torchrun: str, warn: bool = False) -> tuple[int, str, str]:
    """Exit code of the script, what scontrol was asked for, and torchrun's arguments."""
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "torchrun": f'echo "$@" > "$ARGUMENTS"\n{torchrun}'}.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}")
        (folder / name).chmod(0o755)
    asked, ready, arguments = folder / "asked", folder / "ready", folder / "arguments"
    environment = {
        **{"PATH": f"{folder}:{os.environ['PATH']}", "TMPDIR": str(folder), "ASKED": str(asked), "READY": str(ready)},
        **{"ARGUMENTS": str(arguments), "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2"},
        **{"SLURM_JOB_ID": "77"},
    }
    job = subprocess.Popen(["bash", SCRIPT, "demo", "--out", "RUN"], env=environment, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while warn and not ready.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        if warn:
            job.send_signal(signal.SIGUSR1)
        code = job.wait(timeout=20)
    finally:
        job.kill()
    return code, asked.read_text() if asked.exists() else "", arguments.read_text()


@pytest.mark.parametrize(
    ("torchrun", "code", "requeued"),
    [
        ("exit 0", 0, False),
        ("exit 2", 2, False),
        ("echo '  exitcode  : 2 (pid: 75)' >&2; exit 1", 1, False),
        ("echo '  exitcode  : 75 (pid: 31)' >&2; sleep 0.2; exit 1", 1, True),
        ("exit 75", 75, True),
    ],
)
def test_a_resumable_end_is_requeued(tmp_path: Path, torchrun: str, code: int, requeued: bool) -> None:
    found, asked, arguments = submit(tmp_path, torchrun)
    assert found == code
    assert asked == ("requeue 77\n" if requeued else "")
    assert arguments.endswith("-m cjepa pretrain demo --out RUN\n")
    assert "--rdzv-endpoint node1:29500 --rdzv-id 77-0" in arguments


def test_the_warning_before_the_time_is_over_reaches_torchrun_and_requeues(tmp_path: Path) -> None:
    code, asked, _ = submit(tmp_path, WAITING, warn=True)
    assert (code, asked) == (1, "requeue 77\n")
