"""How much memory there is, how much this process has of it, and how it keeps what it has."""

import ctypes
import math
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
    """Bytes of a device: a GPU's own, else the machine's memory, or what of it a container or a scheduler's job may
    have, divided among the ranks on it. Free or not."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    try:
        whole = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):  # not every system says
        whole = 8.0 * (1 << 30)
    return min(whole, granted_memory()) / local_count()


def granted_memory(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes that the control groups of this process, of either version, and those above them grant; infinite without.

    Who takes more is killed by the system, however much of the machine is free. groups: a line for each hierarchy,
    NUMBER:CONTROLLERS:PLACE, with no controllers for version 2.
    """
    try:
        lines = groups.read_text(encoding="utf-8").splitlines()
    except OSError:
        return math.inf
    found = [math.inf]
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        group = base / place.lstrip("/")
        # Inside a container the place may be one that only the machine knows; the limit is then at the base.
        found += [_limit(each / name) for each in (group, *group.parents) if each.is_relative_to(base)]
    return min(found)


def _limit(path: Path) -> float:
    try:
        return float(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no such group or controller; "max"
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
