"""Running out of memory, as every library says it, is one error that says what to lower."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from cjepa.errors import InputError, OutOfMemoryError, enough_memory

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
