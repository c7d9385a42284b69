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
WAITING = 'touch "$READY"; while true; do sleep 0.05; done\n'
REPORTS = [f"exitcode  : {code} (pid: 31)" for code in (2, 3, 4, 75, 1)]


def submit(folder: Path, torchrun: str, warn: bool = False, **slurm: str) -> tuple[int, str, str]:
    """Exit code of the script, what scontrol was asked for, and torchrun's arguments."""
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "torchrun": f'echo "$@" > "$ARGUMENTS"\n{torchrun}'}.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}")
        (folder / name).chmod(0o755)
    asked, ready, arguments = folder / "asked", folder / "ready", folder / "arguments"
    environment = {
        **{"PATH": f"{folder}:{os.environ['PATH']}", "TMPDIR": str(folder), "ASKED": str(asked), "READY": str(ready)},
        **{"ARGUMENTS": str(arguments), "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2"},
        **{"SLURM_JOB_ID": "77"},
        **slurm,
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
        ("echo '  exitcode  : 3 (pid: 31)' >&2; sleep 0.2; exit 1", 1, False),
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


@pytest.mark.parametrize(("slurm", "told"), [({"SLURM_CPUS_PER_TASK": "64"}, "64"), ({}, "unset")])
def test_a_task_has_the_cores_that_the_job_asked_for(tmp_path: Path, slurm: dict[str, str], told: str) -> None:
    """srun reads that variable alone since SLURM 22.05."""
    _, _, arguments = submit(tmp_path, 'echo "${SRUN_CPUS_PER_TASK-unset}" >> "$ARGUMENTS"\n', **slurm)
    assert arguments.splitlines()[-1] == told


@pytest.mark.parametrize("report", ["Signals.SIGUSR1 death signal", "failed (exitcode: 3) local_rank: 0", *REPORTS])
def test_the_warning_before_the_time_is_over_reaches_torchrun_and_requeues(tmp_path: Path, report: str) -> None:
    """Unless a rank ended meanwhile with what another try would end with too; a restart of earlier is none."""
    waiting = f"trap 'echo \"  {report}\" >&2; sleep 0.2; exit 1' USR1\n{WAITING}"
    code, asked, _ = submit(tmp_path, waiting, warn=True)
    hopeless = report in REPORTS[:3]
    assert (code, asked) == (1, "" if hopeless else "requeue 77\n")
