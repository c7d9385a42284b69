"""Runs that are killed and whose checkpoints are damaged end with the bits of one that was left alone.

The long version is `make torture`; what it found is in benchmarks/results/torture.json.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.torture.torture import DAMAGES, RESULTS

ROOT = Path(__file__).parents[2]


def torture(*arguments: object) -> str:
    """In a process of its own: this one must not fork."""
    command = [sys.executable, "-m", "tests.torture.torture", *map(str, arguments)]
    answer = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


@pytest.mark.timeout(900)  # a minute on a quiet machine
def test_a_few_kills_and_every_damage() -> None:
    shown = torture("--kills", 4, "--sabotages", len(DAMAGES), "--real", 1)
    assert int(shown.split(" SIGKILLs")[0].rpartition(" ")[2]) >= 4
    assert "5 sabotaged checkpoints" in shown
    for name in ("encoder", "target_encoder", "predictor", "objective", "optimizer"):
        assert f"{name}.safetensors" in shown
    assert "state.json" in shown
    assert "metrics.jsonl" in shown


@pytest.mark.torture
@pytest.mark.timeout(7200)
def test_fifty_kills_and_twenty_damages(capsys: pytest.CaptureFixture[str]) -> None:
    shown = torture("--kills", 50, "--sabotages", 20, "--real", 10, "--out", RESULTS)
    with capsys.disabled():
        print(f"\n{shown}")


def test_the_committed_result_is_that_of_the_long_version() -> None:
    result = json.loads(RESULTS.read_text())["result"]
    assert result["kills"] >= 50
    assert result["sabotages"] == 20
    assert result["killed_real_command_lines"] >= 10
    assert result["killed_in"]["save"] >= 5
    assert result["killed_in"]["evaluation"] >= 1
    assert "optimizer.safetensors" in result["identical_files"]
