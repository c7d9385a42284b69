"""How much memory there is, how much this process has of it, and how it keeps what it has."""

import ctypes
import math
import os
import platform
from pathlib import Path, PurePosixPath

import torch

from cjepa.ranks import local_count

USABLE = 0.8
"""Share of a device's memory that a run is planned for; allocators leave gaps, and images have to be loaded."""

CUDA_CONTEXT = 0.7 * (1 << 30)
"""Bytes that a process holds on a GPU besides tensors: assumed, not measured here."""

_TRIM_ABOVE, _MOST_MAPPED = -1, -4  # glibc's M_TRIM_THRESHOLD and M_MMAP_MAX; -1 for the first means never


def device_memory(device: torch.device) -> float:
    """Bytes of a device: a GPU's own, else what is granted of the machine's, for each rank on it. Free or not."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    try:
        machine = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):  # not every system says
        machine = 8.0 * (1 << 30)
    return min(machine, granted_memory()) / local_count()


def granted_memory(groups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes that a container or a scheduler's job may have; infinity where Linux says of no limit.

    Who takes more is killed without a word. groups, mounted: where the system says in which control groups this process
    is, and where those are. The limit of a group holds for all that are in it, so that the smallest counts.
    """
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return math.inf
    limits = [math.inf]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        # Version 1 of control groups names the controllers of a hierarchy, version 2 has one hierarchy for all.
        folder, name = (mounted / "memory", "memory.limit_in_bytes") if controllers else (mounted, "memory.max")
        group = PurePosixPath(path.lstrip("/"))
        # In a container its own group is at the top, whatever the path says.
        limits += [_limit(folder / each / name) for each in (group, *group.parents, PurePosixPath())]
    return min(limits)


def _limit(path: Path) -> float:
    try:
        return float(int(path.read_text()))
    except (OSError, ValueError):  # none there, or the word max
        return math.inf


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
