"""Timings that count only when nothing else used the machine.

A foreign load of 40 % slows a training step by far more than 40 %, so a measurement is kept only if the kernel's own
accounting says that other processes hardly ran meanwhile. Linux only: it reads /proc/stat.
"""

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ALLOWED = 0.05
"""Share of the machine that others may use during a measurement that counts."""
GRAIN = 0.03
"""Seconds by which /proc/stat, which counts ticks of 10 ms for each core, may be off; shorter intervals say little."""
_STAT = Path("/proc/stat")
_NOT_BUSY = (3, 4)  # idle and iowait, among user, nice, system, idle, iowait, irq, softirq, steal


@dataclass(frozen=True)
class Reading:
    """Seconds: of the clock, of this process on all cores, and of all cores' work, time stolen from them included."""

    clock: float
    own: float
    busy: float
    cores: int

    @classmethod
    def now(cls) -> "Reading":
        """The state of this moment; RuntimeError where there is no /proc/stat."""
        try:
            lines = _STAT.read_text().splitlines()
        except OSError as error:
            raise RuntimeError("guarded timings need Linux's /proc/stat; run them there") from error
        ticks = [int(field) for field in lines[0].split()[1:9]]
        busy = sum(count for index, count in enumerate(ticks) if index not in _NOT_BUSY) / os.sysconf("SC_CLK_TCK")
        cores = sum(line.startswith("cpu") for line in lines) - 1
        return cls(time.perf_counter(), time.process_time(), busy, cores)


def used_by_others(before: Reading, after: Reading) -> float:
    """Share of all cores that other processes, or other virtual machines, used between two readings."""
    others = (after.busy - before.busy) - (after.own - before.own)
    capacity = (after.clock - before.clock) * after.cores
    return max(others - GRAIN, 0.0) / capacity


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a sample."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def peak_memory() -> int:
    """Most bytes of memory that this process ever held.

    From /proc/self/status: ru_maxrss of a fresh process starts at what its parent held when it was started.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    [peak] = (line for line in lines if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024
