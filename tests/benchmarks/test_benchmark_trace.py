"""Operations are counted as what they are, and a step's shares make up a whole."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd.profiler_util import Interval

from benchmarks import trace, trace_figure
from benchmarks.trace import KINDS, kind_of, measure, own_time, shares, table
from benchmarks.trace_figure import Span, merged
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
    written = tmp_path / "trace.json"
    row = measure(TINY, torch.device("cpu"), written)
    assert sum(row["shares"].values()) == pytest.approx(1)
    assert all(row["shares"][kind] > 0 for kind in KINDS)
    assert json.loads(written.read_text())["traceEvents"]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"rows": [row]}))
    assert table(path).splitlines()[-1].startswith("| tiny | ")


def test_own_time_is_what_lies_between_the_parts() -> None:
    child = SimpleNamespace(time_range=Interval(2, 5))
    event = SimpleNamespace(time_range=Interval(1, 7), cpu_children=[SimpleNamespace(time_range=Interval(5, 7)), child])
    assert [(each.start, each.end) for each in own_time(event)] == [(1, 2)]  # type: ignore[arg-type]


def test_spans_that_follow_are_one() -> None:
    assert merged([(5.0, 1.0), (0.0, 2.0), (2.1, 1.0)], gap=0.2) == [(0.0, 3.1), (5.0, 1.0)]


def test_the_figure_has_all_parts_and_as_much_of_each_kind_as_the_table(tmp_path: Path) -> None:
    drawn: dict[str, Any] = {}

    def draw(title: str, phases: dict[str, Span], lanes: dict[str, list[Span]], path: Path) -> None:
        drawn.update(phases=phases, lanes=lanes)
        trace_figure.draw(title, phases, lanes, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "draw", draw)
        row = measure(TINY, torch.device("cpu"), figure=tmp_path / "step.png")
    assert (tmp_path / "step.png").stat().st_size > 5000
    assert list(drawn["phases"]) == ["context", "predictor", "target", "objective", "backward", "optimizer", "average"]
    ends = [begin + lasted for begin, lasted in drawn["phases"].values()]
    begins = [begin for begin, _ in drawn["phases"].values()]
    assert all(end <= begin + 1e-6 for end, begin in zip(ends[:-1], begins[1:], strict=True))
    whole = sum(lasted for spans in drawn["lanes"].values() for _, lasted in spans)
    for kind, spans in drawn["lanes"].items():
        assert sum(lasted for _, lasted in spans) / whole == pytest.approx(row["shares"][kind], abs=0.02)
