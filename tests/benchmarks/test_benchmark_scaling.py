"""Laws are those that made the numbers, and the script's pieces add up to one file."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import scaling
from benchmarks.scaling import RESULTS, Law, cases, figure, laws, report

ROOT = Path(__file__).parents[2]


def rows() -> list[dict[str, Any]]:
    """Steps that cost 10 ms and 2 ms an image; an image 1 ms + 0.1 N + 0.001 N^2; 0.5 ms + 0.25 L; and memory."""
    made = [{"axis": "batch", "x": b, "batch_size": b, "seconds": [(10 + 2 * b) / 1e3]} for b in scaling.BATCHES]
    sides = [(side // 8) ** 2 for side in scaling.SIDES]
    made += [
        {"axis": "patches", "x": n, "batch_size": 8, "seconds": [8 * (1 + 0.1 * n + 0.001 * n * n) / 1e3]}
        for n in sides
    ]
    made += [
        {"axis": "depth", "x": d, "batch_size": 16, "seconds": [16 * (0.5 + 0.25 * d) / 1e3]} for d in scaling.DEPTHS
    ]
    made += [{"axis": "ranks", "x": r, "batch_size": 16 * r, "seconds": [0.4 + 0.1 * r] * 3} for r in scaling.RANKS]
    made += [{"axis": "ranks", "x": scaling.APART, "batch_size": 16, "seconds": [0.5] * 3}]
    return made + [
        {
            "axis": "memory",
            "of": axis,
            "x": x,
            "batch_size": case.batch_size,
            "before": 5e6,
            "peak": 5e6 + 1e6 * (7 + x),
        }
        for axis in scaling.TIMED
        for x, case in cases(axis).items()
    ]


def test_laws_are_found_again() -> None:
    found = laws(rows())
    assert found["batch"].coefficients == pytest.approx((0.01, 0.002))
    assert found["batch"].bend() == pytest.approx(5)
    assert found["patches"].coefficients == pytest.approx((0.001, 0.0001, 0.000001))
    assert found["patches"].bend() == pytest.approx(100)
    assert found["depth"].coefficients == pytest.approx((0.0005, 0.00025))
    assert found["memory, depth"].coefficients == pytest.approx((7e6, 1e6))
    assert all(law.worst < 1e-6 for law in found.values())


def test_a_law_says_how_far_it_is_off() -> None:
    assert Law.of([1, 2, 4], [1.0, 2.0, 6.0], (0, 1)).worst > 0.1
    assert Law.of([1, 2, 4], [3.0, 3.0, 3.0], (0, 1)).bend() is None


def test_the_report_says_laws_and_efficiency() -> None:
    text = report(rows())
    assert "- batch: 10 + 2 B ms, at most 0 % off; the last term is the larger from B = 5 on" in text
    assert "- patches: 1 + 0.1 N + 0.001 N^2 ms" in text
    assert "- weak scaling: 83 % of twice the images per second for two ranks" in text
    assert "- weak scaling: 100 % of twice the images per second for two jobs of one rank" in text
    assert "| ranks | 2 | 32 | 3 | 37.50 (37.50 to 37.50) |  |" in text
    assert "| depth | 4 | 16 | 1 | 1.50 (1.50 to 1.50) | 1.50 |" in text


def test_one_thing_varies_at_a_time() -> None:
    base = scaling.BASE
    assert {(case.image_size, case.encoder) for case in cases("batch").values()} == {(base.image_size, base.encoder)}
    assert {x: case.encoder.depth for x, case in cases("depth").items()} == {depth: depth for depth in scaling.DEPTHS}
    assert all(case.config.grid[0] * case.config.grid[1] == x for x, case in cases("patches").items())


def test_the_figure(tmp_path: Path) -> None:
    figure(rows(), tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


def test_bursts_of_an_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "BATCHES", (2, 4))
    monkeypatch.setattr(scaling, "BURST", 0.01)
    made = scaling.timed("batch", 2, 1, "cpu")
    assert [row["x"] for row in made] == [2, 4]
    assert all(len(row["seconds"]) == 2 for row in made)
    assert made[1]["seconds"][0] > 0.5 * made[0]["seconds"][0]


@pytest.mark.slow
def test_ranks_and_memory(tmp_path: Path) -> None:
    out = tmp_path / "scaling.json"
    command = [sys.executable, "-m", "benchmarks.scaling", "--axes", "ranks", "memory", "--bursts", "1"]
    subprocess.run([*command, "--out", str(out)], check=True, cwd=ROOT, capture_output=True)
    made = json.loads(out.read_text())["rows"]
    assert {row["x"] for row in made if row["axis"] == "ranks"} == {1, 2, scaling.APART}
    assert all(row["peak"] > row["before"] for row in made if row["axis"] == "memory")


def test_the_committed_result_can_be_reported() -> None:
    if not RESULTS.exists():
        pytest.skip("not measured yet: python -m benchmarks.scaling")
    assert report(json.loads(RESULTS.read_text())["rows"])
