"""Whole runs on several ranks: the numbers of one process, and what has to be agreed on."""

from itertools import chain
from pathlib import Path

import pytest
import torch
from numpy.testing import assert_allclose

from cjepa.errors import CjepaError, InputError, WorkerError
from cjepa.runs.caching import CACHE
from cjepa.runs.report import REPORT
from cjepa.runs.snapshots import SnapshotStore
from cjepa.training.checkpoint import CheckpointStore
from cjepa.training.metrics import read_metrics
from tests.distributed import runs
from tests.distributed.harness import on_ranks
from tests.distributed.runs import BATCH, STEPS, digest, logged

CLOSE = 1e-5
"""Relative, of losses in float32 after up to 12 steps: sums over other numbers of ranks round differently."""
LONG = 1e-3
"""The same after 200 steps of AdamW, which divides by small second moments."""


def values(folder: Path) -> list[dict[str, float]]:
    return [row for row in read_metrics(folder / "metrics.jsonl") if row["split"] == "evaluation"]


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.distributed)])
def test_two_ranks_log_what_one_process_logs(tmp_path: Path, images: Path, single: Path, parallel: str) -> None:
    ended = on_ranks(2, runs.run, images, tmp_path / "run", {"parallel": parallel, "micro_batch": 4})
    assert [each.code for each in ended] == [0, 0]
    for name in ("loss", "gradient_norm"):
        assert_allclose(logged(tmp_path / "run", name), logged(single, name), rtol=CLOSE)
    for found, right in zip(values(tmp_path / "run"), values(single), strict=True):
        assert found.keys() == right.keys()
        assert_allclose([found[k] for k in right if k != "split"], [right[k] for k in right if k != "split"], rtol=1e-3)
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files == {path.name for path in single.iterdir()}
    assert_same_snapshots(tmp_path / "run", single)


def assert_same_snapshots(run: Path, single: Path) -> None:
    """What the report draws: an encoder that lies in shards is put together for it."""
    drawn, right = (SnapshotStore(folder / REPORT).load_all() for folder in (run, single))
    assert [each.step for each in drawn] == [each.step for each in right] != []
    for one, other in zip(drawn, right, strict=True):
        torch.testing.assert_close(one.patches, other.patches, rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(one.attention_context, other.attention_context, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("parallel", "then", "ranks"),
    [
        ("ddp", "fsdp", 3),
        pytest.param("ddp", "auto", 1, marks=pytest.mark.distributed),
        pytest.param("ddp", "ddp", 3, marks=pytest.mark.distributed),
        pytest.param("ddp", "fsdp", 4, marks=pytest.mark.distributed),
        pytest.param("fsdp", "auto", 1, marks=pytest.mark.distributed),
        pytest.param("fsdp", "fsdp", 3, marks=pytest.mark.distributed),
        pytest.param("fsdp", "ddp", 4, marks=pytest.mark.distributed),
    ],
)
def test_a_run_continues_on_other_ranks_and_engines(
    tmp_path: Path, images: Path, single: Path, parallel: str, then: str, ranks: int
) -> None:
    """Stopped by a signal to one of two ranks after step 5, and continued by `ranks` of them with another engine."""
    folder = tmp_path / "run"
    stopped = on_ranks(2, runs.run, images, folder, {"parallel": parallel}, "signal")
    assert [each.code for each in stopped] == [75, 75]
    assert all("SIGUSR1 after step 5" in (each.error or "") for each in stopped), "all stop after the same step"
    assert CheckpointStore(folder / "checkpoints").steps()[-1] == 5
    continued = on_ranks(ranks, runs.run, images, folder, {"parallel": then})
    assert [each.code for each in continued] == [0] * ranks
    assert_allclose(logged(folder), logged(single), rtol=CLOSE)
    alone = runs.run(images, tmp_path / "again", {})
    for step in range(STEPS):
        parts = [each.samples[step] for each in stopped] if step < 5 else [e.samples[step - 5] for e in continued]
        assert list(chain(*parts)) == alone.samples[step], "the same images in the same order"


@pytest.mark.distributed
@pytest.mark.parametrize(("ranks", "parallel"), [(2, "ddp"), (2, "fsdp"), (4, "ddp"), (4, "fsdp")])
def test_on_the_same_ranks_a_continued_run_is_bit_equal(
    tmp_path: Path, images: Path, ranks: int, parallel: str
) -> None:
    """With four ranks the order of a sum depends on how the engine packs gradients, which must not change in a run."""
    undisturbed, stopped = tmp_path / "undisturbed", tmp_path / "stopped"
    on_ranks(ranks, runs.run, images, undisturbed, {"parallel": parallel})
    on_ranks(ranks, runs.run, images, stopped, {"parallel": parallel}, "signal")
    on_ranks(ranks, runs.run, images, stopped, {"parallel": parallel})
    assert digest(stopped, STEPS) == digest(undisturbed, STEPS)
    assert logged(stopped) == logged(undisturbed)


@pytest.mark.distributed
@pytest.mark.parametrize(("ranks", "parallel"), [(2, "ddp"), (2, "fsdp"), (3, "ddp"), (4, "ddp"), (4, "fsdp")])
def test_two_hundred_steps_stay_close(tmp_path: Path, images: Path, ranks: int, parallel: str) -> None:
    runs.long_run(images, tmp_path / "one", {})
    on_ranks(ranks, runs.long_run, images, tmp_path / "many", {"parallel": parallel})
    one, many = torch.tensor(logged(tmp_path / "one")), torch.tensor(logged(tmp_path / "many"))
    assert len(one) == len(many) == 200
    assert float(((one - many) / one).abs().max()) < LONG


def test_a_step_that_is_not_finite_on_one_rank_is_skipped_by_all(tmp_path: Path, images: Path) -> None:
    ended = on_ranks(2, runs.run, images, tmp_path / "run", {"parallel": "ddp"}, "not finite")
    assert [each.code for each in ended] == [0, 0]
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["split"] == "train"]
    assert [row["skipped"] for row in rows] == [0] * 4 + [1] * 8


def test_ranks_that_drift_apart_are_noticed_before_anything_is_saved(tmp_path: Path, images: Path) -> None:
    """One unit in the last place of one weight of one rank."""
    ended = on_ranks(2, runs.run, images, tmp_path / "run", {"parallel": "ddp"}, "drift")
    assert [each.code for each in ended] == [75, 75]
    assert "copies of" in str(ended[0].error)
    assert CheckpointStore(tmp_path / "run" / "checkpoints").steps()[-1] == 4


def test_an_error_of_one_rank_is_an_error_of_all(tmp_path: Path, images: Path) -> None:
    for ended in on_ranks(2, runs.run_with_unreadable_input, images, tmp_path / "data"):
        said = "data: all gone. Stopped after step 4 of 12 and saved; the same command continues the run"
        assert (ended.code, ended.error) == (2, said)
    assert CheckpointStore(tmp_path / "data" / "checkpoints").steps()[-1] == 4
    for ended in on_ranks(2, runs.run_on_a_full_disk, images, tmp_path / "full"):
        assert ended.code == 75
        assert "No space left" in str(ended.error)


def test_what_one_rank_could_read_again_counts_as_unreadable_on_none() -> None:
    assert on_ranks(2, runs.images_that_stay_unreadable) == [[2], [2]]


@pytest.mark.parametrize("fault", [WorkerError, InputError])
def test_a_fault_of_one_rank_in_an_evaluation_saves_the_run_of_all(
    tmp_path: Path, images: Path, fault: type[CjepaError]
) -> None:
    for ended in on_ranks(2, runs.run_with_a_fault_in_an_evaluation, images, tmp_path, fault):
        assert ended.code == fault.exit_code
        assert ended.error == (
            "data worker 0 was killed. Stopped after step 4 of 12 and saved; the same command continues the run"
        )
    assert CheckpointStore(tmp_path / "checkpoints").steps()[-1] == 4


def test_no_machine_keeps_decoded_images_of_a_run_that_is_done(tmp_path: Path, images: Path) -> None:
    ended = on_ranks(2, runs.run_on_machines_of_their_own, images, tmp_path, local=1)
    assert [each.code for each in ended] == [0, 0]
    first, second = ({each.name for each in (tmp_path / f"machine-{rank}" / "run").iterdir()} for rank in range(2))
    assert "config.yaml" in first
    assert CACHE not in first
    assert second == set(), "the first rank alone writes, but for the decoded images"


def test_a_batch_that_cannot_be_dealt_out_is_refused_before_anything_starts(tmp_path: Path, images: Path) -> None:
    for ended in on_ranks(3, runs.run, images, tmp_path / "run", {"batch_size": 16}):
        assert ended.code == 2
        assert "batch_size=16 cannot be divided among 3 ranks; use 15 or 18" in str(ended.error)
        assert ended.losses == []
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("share", "changes", "expected"),
    [(2, {"parallel": "fsdp"}, (2, "fsdp")), (0, {"micro_batch": 3}, (3, "fsdp"))],
)
def test_ranks_of_unequal_machines_take_as_many_parts_by_the_same_engine(
    images: Path, share: int, changes: dict[str, object], expected: tuple[int, str]
) -> None:
    """Shards are asked for in every part: a rank that took fewer would leave the others waiting."""
    found = on_ranks(2, runs.plan_beside_a_smaller_machine, images, share, changes)
    assert found == [expected, expected]


def test_the_average_is_sharded_like_the_encoder(tmp_path: Path, images: Path) -> None:
    for found in on_ranks(2, runs.shards_equal_their_start, {"parallel": "fsdp"}, images):
        assert all(equal for _, equal, _ in found)
        assert all(part for _, _, part in found)
    right = runs.weights_after_updates({}, images)
    for found in on_ranks(2, runs.weights_after_updates, {"parallel": "fsdp"}, images):
        assert found.keys() == right.keys()
        for name, tensor in right.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


def test_the_batch_of_this_file_suits_all_ranks() -> None:
    assert all(BATCH % ranks == 0 for ranks in (1, 2, 3, 4))
