"""Operations are counted as what they are, and a step's shares make up a whole."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.trace import KINDS, kind_of, measure, shares, table
from tests.benchmarks.test_benchmark_step import TINY


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("aten::addmm", "products"),
        ("aten::add_", "sums"),
        ("mkldnn::_linear_pointwise", "products"),
        ("aten::_softmax_backward_data", "attention"),
        ("aten::index", "copies"),
        ("aten::empty", "other"),
    ],
)
def test_kinds(operation: str, kind: str) -> None:
    assert kind_of(operation) == kind


def test_shares_are_of_the_whole() -> None:
    found = shares([("aten::mm", 2.0), ("aten::addmm", 1.0), ("aten::gelu", 3.0), ("aten::empty", 2.0)])
    assert {kind: share for kind, share in found.items() if share} == {"products": 0.375, "GELU": 0.375, "other": 0.25}


def test_a_step_consists_of_known_operations(tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    row = measure(TINY, torch.device("cpu"), trace)
    assert sum(row["shares"].values()) == pytest.approx(1)
    assert all(row["shares"][kind] > 0 for kind in KINDS)
    assert json.loads(trace.read_text())["traceEvents"]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"rows": [row]}))
    assert table(path).splitlines()[-1].startswith("| tiny | ")
