"""A step without one fast path is the same step, and really does without it."""

import json
from collections.abc import Iterator
from dataclasses import replace
from unittest import mock

import pytest
import torch

from benchmarks import levers
from benchmarks.levers import LEVERS, MEMORY, levers_of, measure, table
from benchmarks.peers import Ours
from benchmarks.step import Case, typical_batch
from cjepa.models import kernels
from tests.benchmarks.test_benchmark_step import TINY

CPU = torch.device("cpu")
BFLOAT16 = replace(TINY, precision="bfloat16")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """What a lever changes for the whole process is put back."""
    yield
    mock.patch.stopall()


def operations(ours: Ours, case: Case) -> dict[str, int]:
    batch = typical_batch(case)
    ours.step(batch)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profiled:
        ours.step(batch)
    return {each.key: each.count for each in profiled.key_averages()}


@pytest.mark.parametrize("case", [TINY, BFLOAT16], ids=["float32", "bfloat16"])
def test_every_step_is_the_same_step(case: Case) -> None:
    batch = typical_batch(case)
    whole = Ours(case.config, CPU)
    losses = [whole.step(batch) for _ in range(2)]
    for name in levers_of(case):
        without = Ours(case.config, CPU)
        LEVERS[name](without.trainer)
        found = [without.step(batch) for _ in range(2)]
        mock.patch.stopall()
        assert found == pytest.approx(losses, rel=1e-5 if case is TINY else 5e-3), name


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("oneDNN", "mkldnn::_linear_pointwise"),
        ("explicit attention", "aten::baddbmm"),
        ("fused AdamW", "aten::_fused_adamw_"),
        ("average at once", "aten::_foreach_lerp_"),
    ],
)
def test_without_a_path_its_operation_is_gone(name: str, gone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_mkl_is_slower", lambda: True)
    monkeypatch.setattr(kernels, "SMALL", 0)
    case = BFLOAT16 if name == "explicit attention" else TINY
    assert gone in operations(Ours(case.config, CPU), case)
    without = Ours(case.config, CPU)
    LEVERS[name](without.trainer)
    assert gone not in operations(without, case)


def test_without_the_short_last_block_it_computes_the_context_too() -> None:
    rows: list[int] = []
    ours, batch = Ours(TINY.config, CPU), typical_batch(TINY)
    ours.trainer.model.learned["predictor"].blocks[-1].mlp.register_forward_hook(
        lambda _, given, output: rows.append(output.shape[1])
    )
    ours.step(batch)
    LEVERS["last block short"](ours.trainer)
    ours.step(batch)
    target = batch.masks.targets.shape[2]
    assert rows == [target, target + batch.masks.context.shape[1]]


def test_every_precision_has_its_own() -> None:
    assert "explicit attention" not in levers_of(TINY)
    assert "oneDNN" not in levers_of(BFLOAT16)
    assert MEMORY in levers_of(TINY)


def test_a_row_and_its_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levers, "FEWEST", 1)
    monkeypatch.setattr(levers, "ALLOWED", 1.0)
    monkeypatch.setattr(levers, "levers_of", lambda _: ["last block short"])
    row = json.loads(json.dumps(measure(TINY, 0.1, 1)))
    assert row["rounds"] > 0
    assert 0.1 < row["longer_without"]["last block short"]["median"] < 10
    head, _, line = table([row]).splitlines()
    cells = dict(zip(head.split(" | "), line.split(" | "), strict=True))
    assert cells["last block short"].startswith(f"{row['longer_without']['last block short']['median']:.3g} (")
    assert not cells["oneDNN"]
    assert table([row | {"longer_without": None}])
