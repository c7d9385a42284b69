"""The runs in docs/runs: small, the one of the table of evaluations, and enough for a whole report."""

import json
import logging
from pathlib import Path

import pytest

from benchmarks import evaluations, pictures
from cjepa.runs import write_report

RUNS = {name: pictures.RUNS / run for name, run in pictures.NAMES.items()}


def test_the_report_of_the_committed_runs_is_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        page = write_report(RUNS, tmp_path / "index.html").read_text(encoding="utf-8")
    assert caplog.records == []
    for text in (
        "Linear probe accuracy (%)",
        "Linear evaluation (%)",
        "Attention",
        "I-JEPA, target",
        "C-JEPA, context",
    ):
        assert text in page
    assert "no pictures of the representation" not in page


def test_their_evaluations_are_those_of_the_table_in_the_documents() -> None:
    rows = [row for row in json.loads(evaluations.RESULTS.read_text())["rows"] if row["checkpoint"] == "demo"]
    lines = [json.loads(line) for line in (RUNS["C-JEPA"] / "evaluations.jsonl").read_text().splitlines()]
    assert len(lines) == 8
    for line in lines:
        [row] = [row for row in rows if (row["features"], row["protocol"]) == (line["encoder"], line["protocol"])]
        assert (row["step"], row["values"]) == (line["step"], line["values"])


def test_they_are_small_and_hold_no_weights() -> None:
    files = [path for path in pictures.RUNS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5 << 20
    assert not [path for path in files if "checkpoints" in path.parts]
