"""The errors a user can meet, each with the exit code that `cjepa` leaves with (docs/design.md)."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

_SIGNS = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
"""What a RuntimeError says that is one of memory: torch's own of a GPU, CUDA's, its libraries', torch's of a CPU."""


class CjepaError(Exception):
    """Base of all declared errors; its message says what happened and what to do."""

    exit_code = 1


class InputError(CjepaError, ValueError):
    """Bad input or configuration: nothing was started, nothing was lost."""

    exit_code = 2


class OutOfMemoryError(CjepaError):
    """The device or the machine has too little memory: what was saved is untouched, and less at once may fit."""

    exit_code = 2


class DivergedError(CjepaError):
    """Loss or gradients stayed non-finite: the last good checkpoint is still there."""

    exit_code = 3


class NoValidCheckpointError(CjepaError):
    """Checkpoints exist but none passes verification; starting over silently would hide that."""

    exit_code = 4


class StorageError(CjepaError):
    """A folder cannot be written: what it holds is untouched, and the same command continues."""

    exit_code = 75


class WorkerError(CjepaError):
    """A process that loads images died or hung: the run was saved where it stood and can be continued."""

    exit_code = 75


class RanksError(CjepaError):
    """The ranks of a run no longer hold the same weights: the run can be continued from its last checkpoint."""

    exit_code = 75


class StoppedEarly(CjepaError):  # noqa: N818  a request that was honoured, not a fault
    """A signal asked the run to stop; it was saved and can be resumed by the same command."""

    exit_code = 75


@contextmanager
def enough_memory(advice: str) -> Iterator[None]:
    """Too little memory for what is done within is an OutOfMemoryError that ends in the advice: what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(sign in str(error) for sign in _SIGNS):
            raise
        wanted = re.search(r"allocate (\d[\d.]* \w+)", str(error))
        amount = f" ({wanted[1]} could not be had)" if wanted else ""
        raise OutOfMemoryError(f"out of memory{amount}; {advice}") from error
