"""Evaluations on several ranks: the numbers of one process, each written once, the work of extraction divided."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cjepa.evaluation.shares import share
from cjepa.training.rows import read_rows
from tests.distributed.evaluations import QUICK, Found, evaluated, interrupted
from tests.distributed.harness import on_ranks


@pytest.fixture
def run(single: Path, tmp_path: Path) -> Path:
    """The run of one process, its encoder shown five images at a time."""
    folder = Path(shutil.copytree(single, tmp_path / "run"))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["monitor"]["batch_size"] = 5
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.distributed)])
def test_ranks_find_what_one_process_finds(run: Path, tmp_path: Path, ranks: int) -> None:
    alone_in = Path(shutil.copytree(run, tmp_path / "alone"))
    alone = evaluated(alone_in, QUICK)
    together: list[Found] = on_ranks(ranks, evaluated, run, QUICK)
    assert all(each.values == alone.values for each in together), "the same bits, on every rank"
    assert sum(each.images for each in together) == alone.images
    assert all(0 < each.images < 0.7 * alone.images for each in together), "a share each, of whole batches"
    lines = read_rows(run / "evaluations.jsonl")
    assert lines == read_rows(alone_in / "evaluations.jsonl"), "written once"
    assert not (run / ".unfinished").exists()
    again: list[Found] = on_ranks(ranks, evaluated, run, QUICK)
    assert [each.images for each in again] == [0] * ranks, "what has a line is not computed again"
    assert read_rows(run / "evaluations.jsonl") == lines


def test_an_error_on_one_rank_is_an_error_of_all(run: Path) -> None:
    for found in on_ranks(2, evaluated, run, QUICK[:1], 1):
        assert found.error == "the second machine has no such image"


def test_a_signal_to_one_rank_ends_all(run: Path) -> None:
    assert on_ranks(2, interrupted, run) == ["stopped by SIGTERM; the same command continues"] * 2
    assert not [row for row in read_rows(run / "evaluations.jsonl") if row["encoder"] in ("untrained", "target")]


@pytest.mark.distributed
def test_the_command_under_torchrun_prints_and_writes_once(run: Path, tmp_path: Path) -> None:
    alone_in = Path(shutil.copytree(run, tmp_path / "alone"))
    values = evaluated(alone_in, QUICK[:1]).values
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *command, "-m", "cjepa", "evaluate", "knn", str(run), "k=[1,3]", "--device", "cpu"],
        capture_output=True,
        text=True,
        timeout=250,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("evaluations.jsonl") == 1
    assert [row["values"] for row in read_rows(run / "evaluations.jsonl")] == values


@pytest.mark.parametrize(("count", "batch_size"), [(0, 4), (3, 4), (4, 4), (17, 4), (100, 7)])
def test_shares_are_consecutive_whole_batches(monkeypatch: pytest.MonkeyPatch, count: int, batch_size: int) -> None:
    monkeypatch.setattr("cjepa.evaluation.shares.world_size", lambda: 3)
    shares = [share(count, batch_size, rank) for rank in range(3)]
    assert [index for each in shares for index in each] == list(range(count))
    assert all(each.start % batch_size == 0 or not each for each in shares)
    assert max(map(len, shares)) - min(map(len, shares)) <= 2 * batch_size
