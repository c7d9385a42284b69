"""What a process may have, and that freed memory stays in it where glibc can be told so."""

import math
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cjepa.training import device_memory
from cjepa.training.device_memory import granted_memory

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_large_tensors_do_not_touch_new_pages() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    mapped, kept = map(int, done.stdout.split())
    assert mapped > 3000
    # Of four times three the best: the heap is extended now and then, and systems take pages back that rest.
    assert kept < mapped / 2


@pytest.mark.parametrize(
    ("groups", "limits", "granted"),
    [
        ("0::/slurm/job_7/step_0\n", {"slurm/job_7/memory.max": "4096\n", "slurm/memory.max": "max\n"}, 4096),
        ("0::/a/b\n", {"a/memory.max": "4096", "a/b/memory.max": "8192"}, 4096),
        ("0::/\n", {"memory.max": "4096"}, 4096),
        ("4:cpu:/b\n2:memory:/docker/1f\n", {"memory/memory.limit_in_bytes": "4096"}, 4096),
        ("4:cpu,memory:/j\n", {"memory/j/memory.limit_in_bytes": "4096", "cpu/j/memory.max": "1"}, 4096),
        ("0::/../..\n", {"memory.max": "4096"}, 4096),
        ("0::/a\n", {"a/memory.max": "max"}, math.inf),
        ("0::/a\n", {}, math.inf),
        (None, {}, math.inf),
    ],
)
def test_a_container_or_a_job_has_less_than_the_machine(
    tmp_path: Path, groups: str | None, limits: dict[str, str], granted: float
) -> None:
    if groups is not None:
        (tmp_path / "cgroup").write_text(groups)
    for name, text in limits.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert granted_memory(tmp_path / "cgroup", tmp_path / "fs") == granted


def test_a_run_is_planned_for_what_its_process_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_memory, "granted_memory", lambda: 4096.0)
    assert device_memory.device_memory(torch.device("cpu")) == 4096.0
    monkeypatch.setattr(device_memory, "granted_memory", lambda: math.inf)
    assert 4096.0 < device_memory.device_memory(torch.device("cpu")) < math.inf
