import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.guard import ALLOWED, GRAIN, Reading, Spread, peak_memory, used_by_others

pytestmark = pytest.mark.skipif(not Path("/proc/stat").exists(), reason="guarded timings are for Linux")

START = Reading(clock=100.0, own=7.0, busy=1000.0, cores=2)


def after(clock: float, own: float, busy: float) -> Reading:
    return Reading(START.clock + clock, START.own + own, START.busy + busy, START.cores)


class TestUsedByOthers:
    def test_own_work_does_not_count(self) -> None:
        assert used_by_others(START, after(clock=1.0, own=2.0, busy=2.0)) == 0.0

    def test_an_idle_machine_is_undisturbed(self) -> None:
        assert used_by_others(START, after(clock=1.0, own=0.0, busy=0.0)) == 0.0

    def test_the_share_is_one_of_all_cores(self) -> None:
        assert used_by_others(START, after(clock=1.0, own=1.0, busy=1.5 + GRAIN)) == pytest.approx(0.25)

    def test_coarse_accounting_is_no_disturbance(self) -> None:
        assert used_by_others(START, after(clock=0.3, own=0.6, busy=0.6 + GRAIN)) == pytest.approx(0.0)
        assert used_by_others(START, after(clock=0.3, own=0.6, busy=0.6 - GRAIN)) == 0.0

    def test_a_process_that_computes_is_noticed(self) -> None:
        busy = [sys.executable, "-c", "while True: pass"]
        with subprocess.Popen(busy) as other:
            try:
                before = Reading.now()
                time.sleep(1.0)
                assert used_by_others(before, Reading.now()) > ALLOWED
            finally:
                other.kill()

    def test_work_of_this_process_is_told_from_that_of_others(self) -> None:
        before = Reading.now()
        while time.process_time() - before.own < 0.5:
            pass
        now = Reading.now()
        assert now.own - before.own == pytest.approx(0.5, abs=0.1)
        assert now.busy - before.busy >= now.own - before.own - GRAIN


class TestSpread:
    def test_one_value(self) -> None:
        assert Spread.of([3.0]) == Spread(3.0, 3.0, 3.0)

    def test_quartiles(self) -> None:
        values = list(np.random.default_rng(0).normal(size=40))
        spread = Spread.of(values)
        assert spread.median == pytest.approx(statistics.median(values))
        assert (spread.low, spread.high) == pytest.approx(tuple(np.quantile(values, [0.25, 0.75])))


PEAK = """
from benchmarks.guard import peak_memory
before = peak_memory()
block = bytearray(64 << 20)
del block
print(before, peak_memory())
"""


def test_peak_memory_is_of_the_process_alone() -> None:
    """What is freed again counts; what the parent holds does not, as it would with ru_maxrss."""
    held = bytearray(256 << 20)
    root = Path(__file__).parents[2]
    output = subprocess.run([sys.executable, "-c", PEAK], cwd=root, capture_output=True, text=True, check=True).stdout
    before, peak = map(int, output.split())
    assert before < 128 << 20 < len(held) < peak_memory()
    assert peak - before == pytest.approx(64 << 20, rel=0.1)
