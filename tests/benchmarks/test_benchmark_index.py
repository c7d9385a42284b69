"""The synthetic index is one that a run can open, and the figures are those of the result file."""

import json
from pathlib import Path

import pytest

from benchmarks import index
from cjepa.data import ShardsConfig
from cjepa.data.shards import open_shards


def test_the_synthetic_index_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "PER_SHARD", 300)
    index.make_index(tmp_path, 1000)
    source = open_shards(ShardsConfig(path=tmp_path), 10_000).train
    assert len(source) == 1000
    assert source.names[999] == "000000000999.png"
    assert source.classes == tuple(map(str, range(1000)))
    assert source.labels[998] == 998
    measured = index.measure(tmp_path)
    assert measured["images"] == 1000
    assert measured["bytes pickled for a worker"] < 10_000


def test_the_tree_has_as_many_files(tmp_path: Path) -> None:
    index.make_tree(tmp_path, 1200)
    assert sum(path.is_file() for path in tmp_path.rglob("*")) == 1200


def test_the_committed_result_can_be_reported() -> None:
    results = json.loads(index.RESULTS.read_text())
    assert results["index"]["runs"][0]["images"] == 10**8
    assert "index of 100,000,000 images (n = 3)" in index.report(results)
