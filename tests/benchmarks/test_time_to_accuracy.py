import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import time_to_accuracy
from benchmarks.time_to_accuracy import QUALITY, measured, report, seconds_to, study
from tests.tiny_runs import write_config, write_images


def write_run(run: Path, points: list[tuple[float, float]]) -> Path:
    """A run that was evaluated at these (seconds, accuracy)."""
    run.mkdir()
    metrics = [{"step": step, "split": "evaluation", QUALITY: value} for step, (_, value) in enumerate(points)]
    clock = [{"step": step, "seconds": seconds} for step, (seconds, _) in enumerate(points)]
    for name, rows in (
        ("metrics.jsonl", [{"step": 1, "split": "train", "loss": 1.0}, *metrics]),
        ("timing.jsonl", clock),
    ):
        (run / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def test_between_two_evaluations_by_a_straight_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [(1.0, 30.0), (101.0, 40.0), (201.0, 60.0), (301.0, 50.0)])
    assert seconds_to(run, QUALITY, 45.0) == pytest.approx(126.0)
    assert seconds_to(run, QUALITY, 30.0) == 1.0
    assert seconds_to(run, QUALITY, 60.0) == pytest.approx(201.0)
    assert seconds_to(run, QUALITY, 61.0) is None
    assert measured(run, 45.0) | {"seconds_to_accuracy": 0} == {
        "accuracy": 45.0,
        "seconds_to_accuracy": 0,
        "seconds": 301.0,
        "best": 60.0,
        "last": 50.0,
    }


def row(variant: str, seed: int, seconds: float | None) -> dict[str, Any]:
    return {
        **{"preset": "demo", "variant": variant, "seed": seed, "accuracy": 44.0},
        **{"seconds_to_accuracy": seconds, "seconds": 99.0, "best": 50.0},
    }


def test_ratios_are_seed_by_seed() -> None:
    rows = [row("before", 0, 60.0), row("after", 0, 30.0), row("after", 1, 25.0), row("before", 1, 100.0)]
    table = report(rows).splitlines()
    assert table[2].startswith("| demo | before | 2 | 44 %: 80 (60 to 100) | 1 (1 to 1) |")
    assert table[3].startswith("| demo | after | 2 | 44 %: 27.5 (25 to 30) | 3 (2 to 4) |")
    other = [each | {"preset": "cifar10", "seconds_to_accuracy": 9.0} for each in rows]
    assert report(rows + other).splitlines()[:4] == table, "presets are compared with their own first variant"
    assert "not by all seeds" in report([*rows, row("never", 0, None)])


def test_variants_are_trained_by_the_command_of_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "images")
    config = write_config(tmp_path)
    config.write_text(config.read_text().replace("{report: false}", "{report: true, report_share: 0}"))

    class Options:
        out, scratch, changes = tmp_path / "out.json", tmp_path, [f"data={tmp_path / 'images'}"]

    root = Path(time_to_accuracy.__file__).parents[1]
    study(str(config), {"plain": (root, [])}, 1.0, 1, Options)
    [found] = json.loads(Options.out.read_text())["rows"]
    assert found["variant"] == "plain"
    assert found["seconds_to_accuracy"] > 0
    assert found["cpu_seconds"] > 0
    assert found["environment"]["cpu"]["cores"] > 0
    study(str(config), {"plain": (root, [])}, 1.0, 1, Options)
    assert len(json.loads(Options.out.read_text())["rows"]) == 1
