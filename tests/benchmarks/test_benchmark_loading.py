"""Loading, masks and waiting are measured on what a run does, and the figures are those of the result files."""

import json
from pathlib import Path

import pytest

from benchmarks import loading, masks, waiting
from tests.tiny_runs import write_config, write_images

TINY = (
    loading.Setup("photographs", 500, 375, 24, 4, 1),
    loading.Setup("small", 32, 32, 32, 4, 1),
)


@pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities:DeprecationWarning")
def test_every_way_is_measured(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    results = loading.run(18, 2, tmp_path, TINY)
    rows = results["images per second of CPU"]
    assert {name: set(rates) for name, rates in rows.items()} == {setup.name: set(setup.ways) for setup in TINY}
    assert all(len(values) == 2 and min(values) > 0 for rates in rows.values() for values in rates.values())
    table = loading.report(results).splitlines()
    assert len(table) == 2 + sum(len(setup.ways) for setup in TINY)
    assert {line.count("|") for line in table} == {6}
    assert loading.report_parts(results).count("\n") == 5
    assert not list(tmp_path.iterdir())


def test_ratios_are_those_of_turns() -> None:
    rates = {loading.STANDARD: [1.0, 2.0, 4.0], loading.CACHE: [3.0, 6.0, 12.0]}
    table = loading.report({"images per second of CPU": {"name": rates}})
    assert f"| name | {loading.CACHE} | 3 | 6 (4 to 9) | 3.00 (3.00 to 3.00) |" in table


def test_masks_of_two_thousand_images() -> None:
    results = masks.run(1)
    assert [row["grid"] for row in results["rows"]] == [list(grid) for grid in masks.GRIDS]
    assert masks.report(results).count("\n") == 1 + len(masks.GRIDS)


def test_steps_of_a_run_say_how_long_they_waited(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    row = waiting.measure(str(write_config(tmp_path)), tmp_path / "images", 2, [], tmp_path)
    assert row["fits_the_default"]
    assert row["cache_bytes"] == 48 * 3 * 16 * 16
    for way in (waiting.ANEW, waiting.ONCE):
        assert len(row["seconds"][way]) == 2
        assert all(0 < step["waited"] < step["whole"] for step in row["seconds"][way])
    table = waiting.report([row | {"preset": "tiny"}]).splitlines()
    assert table[2].startswith("| tiny | decoded anew | 2 |")
    assert table[3].startswith("| tiny | decoded once, 0 MB | 2 |")


@pytest.mark.parametrize("module", [masks, loading, waiting], ids=["masks", "loading", "waiting"])
def test_the_committed_result_can_be_reported(module: object) -> None:
    if not module.RESULTS.exists():
        pytest.skip(f"not measured yet: python -m {module.__name__}")
    assert module.report(json.loads(module.RESULTS.read_text()))


def test_masks_take_less_than_a_millisecond_for_128_images() -> None:
    """By the committed measurement, on the grids of the presets."""
    if not masks.RESULTS.exists():
        pytest.skip("not measured yet: python -m benchmarks.masks")
    for row in json.loads(masks.RESULTS.read_text())["rows"]:
        assert sorted(row["milliseconds_for_128"])[len(row["milliseconds_for_128"]) // 2] < 1.0
