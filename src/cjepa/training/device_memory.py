"""How much memory there is, how much this process has of it, and how it keeps what it has."""

import ctypes
import os
import platform
from pathlib import Path

import torch

from cjepa.ranks import local_count

USABLE = 0.8
"""Share of a device's memory that a run is planned for; allocators leave gaps, and images have to be loaded."""

CUDA_CONTEXT = 0.7 * (1 << 30)
"""Bytes that a process holds on a GPU besides tensors: assumed, not measured here."""

_TRIM_ABOVE, _MOST_MAPPED = -1, -4  # glibc's M_TRIM_THRESHOLD and M_MMAP_MAX; -1 for the first means never


def device_memory(device: torch.device) -> float:
    """Bytes of a device: a GPU's own, else the machine's memory divided among the ranks on it. Free or not."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) / local_count()
    except (ValueError, OSError, AttributeError):  # not every system says
        return 8.0 * (1 << 30)


def occupied_memory(device: torch.device) -> float:
    """Bytes of a device that this process has before it holds a model: what is in the machine's memory is on no GPU."""
    return CUDA_CONTEXT if device.type == "cuda" else resident_memory()


def resident_memory(peak: bool = False) -> float:
    """Bytes that this process has in memory, or had at most; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    name = "VmHWM:" if peak else "VmRSS:"
    return next((int(line.split()[1]) * 1024.0 for line in lines if line.startswith(name)), 0.0)


def keep_freed_memory() -> bool:
    """Let glibc keep what tensors free instead of giving it back to the system after each; True where that is done.

    Tensors of more than 32 MiB are otherwise mapped and unmapped one by one, and each page of each is filled with zeros
    when it is touched first: on a CPU a part of every training step. The peak stays; what is freed after it is kept for
    the next step. It concerns the whole process, so the command line calls it, not the library.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    set_option = ctypes.CDLL(None).mallopt
    return bool(set_option(_MOST_MAPPED, 0)) and bool(set_option(_TRIM_ABOVE, -1))
