"""How much memory a process may have, and that freed memory stays in it where glibc can be told so."""

import math
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cjepa.training import device_memory as device_memory_module
from cjepa.training.device_memory import device_memory, granted_memory

PROGRAM = """
import resource
import torch
from cjepa.training.device_memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        torch.zeros(1 << 24).add_(1.0)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def fewest():
    return min(faults() for _ in range(4))

mapped = fewest()
assert keep_freed_memory()
print(mapped, fewest())
"""


@pytest.mark.parametrize(
    ("groups", "limits", "granted"),
    [
        (
            "0::/slurm/job_1/step_0\n",
            {"slurm/job_1/memory.max": "4096\n", "slurm/job_1/step_0/memory.max": "max\n"},
            4096,
        ),
        ("0::/\n", {"memory.max": "512"}, 512),
        (
            "5:cpu,cpuacct:/a\n4:memory:/docker/of-the-machine\n0::/a\n",
            {"memory/memory.limit_in_bytes": "1024\n", "cpu,cpuacct/a/memory.max": "1"},
            1024,
        ),
        ("0::/user.slice\n", {"user.slice/memory.max": "max\n"}, math.inf),
        ("0::/gone\n", {}, math.inf),
    ],
    ids=["a job's", "a container's", "version 1", "no limit", "not mounted"],
)
def test_what_the_scheduler_grants_is_the_memory_of_a_process(
    tmp_path: Path, groups: str, limits: dict[str, str], granted: float
) -> None:
    """A node of 512 GB, of which a job has 16: a micro-batch for the node would be killed."""
    (tmp_path / "cgroup").write_text(groups)
    for name, limit in limits.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(limit)
    assert granted_memory(tmp_path / "cgroup", tmp_path / "fs") == granted


def test_nothing_is_planned_for_more_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_memory_module, "granted_memory", lambda: 1000.0)
    assert device_memory(torch.device("cpu")) == 1000.0


def test_without_control_groups_nothing_is_limited(tmp_path: Path) -> None:
    assert granted_memory(tmp_path / "none") == math.inf


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_large_tensors_do_not_touch_new_pages() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    mapped, kept = map(int, done.stdout.split())
    assert mapped > 3000
    # Of four times three the best: the heap is extended now and then, and systems take pages back that rest.
    assert kept < mapped / 2
