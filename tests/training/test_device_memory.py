"""Freed memory stays in the process where glibc can be told so; running out of it says what to lower."""

import platform
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch

from cjepa.errors import InputError, OutOfMemoryError
from cjepa.training.device_memory import enough_memory

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


CUDA = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 4.00 GiB"


def fail(error: Exception) -> Callable[[], object]:
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize(
    ("work", "amount"),
    [
        (fail(torch.OutOfMemoryError(CUDA)), " (20.00 GiB could not be had)"),
        (fail(RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later")), ""),
        (fail(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")), ""),
        (fail(MemoryError()), ""),
        (lambda: torch.empty(1 << 60), " (4611686018427387904 bytes could not be had)"),
        (lambda: np.empty(1 << 60, np.uint8), " (1.00 EiB could not be had)"),
    ],
)
def test_running_out_of_memory_says_what_to_lower(work: Callable[[], object], amount: str) -> None:
    with pytest.raises(OutOfMemoryError) as caught, enough_memory("lower KEY"):
        work()
    assert str(caught.value) == f"out of memory{amount}; lower KEY"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("error", [RuntimeError("a fault of ours"), InputError("bad"), OutOfMemoryError("lower OTHER")])
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, enough_memory("lower KEY"):
        raise error
    assert caught.value is error


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_large_tensors_do_not_touch_new_pages() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    mapped, kept = map(int, done.stdout.split())
    assert mapped > 3000
    # Of four times three the best: the heap is extended now and then, and systems take pages back that rest.
    assert kept < mapped / 2
