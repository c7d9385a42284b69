import json
from pathlib import Path

from benchmarks import data


def test_every_kind_gives_the_same_images(tmp_path: Path) -> None:
    results = data.run(40, 1, tmp_path)
    assert set(results["images per second of CPU"]) == set(data.KINDS)
    assert data.report(results).count("\n") == 1 + len(data.KINDS)


def test_the_committed_result_can_be_reported() -> None:
    results = json.loads(data.RESULTS.read_text())
    assert all(kind in data.report(results) for kind in data.KINDS)
