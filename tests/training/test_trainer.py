"""The loop: exact resume, steps that must not count, bad images, and verdicts on runs that really go wrong."""

from pathlib import Path

import pytest
import torch

from cjepa.build import build_stream, build_trainer
from cjepa.data import Splits, iterate
from cjepa.data.decoding import UnreadableImageError
from cjepa.errors import DivergedError, InputError, StoppedEarly
from cjepa.models import Model
from cjepa.training.batch_loss import on_host
from cjepa.training.checkpoint import CheckpointSaveError
from cjepa.training.metrics import read_metrics
from cjepa.training.rows import read_rows
from cjepa.training.state import Taken
from cjepa.types import Batch, Loss
from tests.training.conftest import Textures, tiny_config, training
from tests.training.harness import CPU, Run, assert_same_bits, everything


@pytest.mark.parametrize("objective", ["cjepa", "cjepa-context", "cjepa-sigreg", "vicreg", "simsiam"])
def test_a_stopped_run_ends_with_the_bits_of_an_undisturbed_one(tmp_path: Path, objective: str) -> None:
    config = tiny_config(objective={"name": objective})
    whole = Run(config, tmp_path / "whole")
    whole.train()
    stopped = Run(config, tmp_path / "stopped")
    with pytest.raises(StoppedEarly, match="after step 5 of 24"):
        stopped.train(signal_at=5)
    resumed = Run(config, tmp_path / "stopped")
    assert resumed.trainer.progress.step == 5
    resumed.train()
    assert_same_bits(everything(whole.trainer), everything(resumed.trainer))
    assert read_metrics(tmp_path / "whole/metrics.jsonl") == read_metrics(tmp_path / "stopped/metrics.jsonl")


def test_a_verdict_is_as_early_as_what_it_rests_on(tmp_path: Path) -> None:
    """A run that was stopped between two evaluations begins again with the verdict it had."""
    run = Run(tiny_config(), tmp_path)
    run.trainer.progress.untrained = run.trainer.progress.latest = {
        **{"effective_rank": 9.0, "spread": 0.5, "explained_variance": 0.1},
        run.monitor.quality: 50.0,
    }
    run.trainer.progress.step, run.trainer.progress.evaluated = 7, 0
    assert run.trainer._judge(run.monitor).state == "too early"


def test_the_untrained_encoder_is_measured_before_the_first_step(tmp_path: Path) -> None:
    run = Run(tiny_config(), tmp_path)
    run.train()
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if row["split"] == "evaluation"]
    assert [row["step"] for row in rows] == [0, 8, 16, 24]
    assert {"effective_rank", "std_smallest", "explained_variance", "knn_20_centred"} <= rows[0].keys()


def test_the_best_checkpoint_stays_beside_the_last_two(tmp_path: Path) -> None:
    run = Run(tiny_config(training=training(epochs=6)), tmp_path)
    qualities = iter([50.0, 60.0, 90.0, 70.0, 65.0, 60.0, 55.0])
    measure = run.monitor.measure
    run.monitor.measure = lambda model: measure(model) | {run.monitor.quality: next(qualities)}  # type: ignore[method-assign]
    run.train()
    assert run.store.steps() == [16, 40, 48]
    newest = run.store.newest()
    assert newest is not None
    assert newest.state["progress"]["best_step"] == 16


def test_a_checkpoint_that_could_not_be_written_is_not_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the run goes on without it, the best is one that is there, and it stays."""
    run = Run(tiny_config(training=training(epochs=6)), tmp_path)
    qualities = iter([50.0, 60.0, 90.0, 70.0, 65.0, 60.0, 55.0])
    measure, save = run.monitor.measure, run.store.save
    run.monitor.measure = lambda model: measure(model) | {run.monitor.quality: next(qualities)}  # type: ignore[method-assign]

    def full_at_16(step, *others, **options):  # type: ignore[no-untyped-def]
        if step == 16:
            raise CheckpointSaveError("no space left")
        return save(step, *others, **options)

    monkeypatch.setattr(run.store, "save", full_at_16)
    run.train(on_failed_write="continue")
    assert run.store.steps() == [24, 40, 48]
    newest = run.store.newest()
    assert newest is not None
    assert newest.state["progress"]["best_step"] == 24


def test_a_step_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    run = Run(tiny_config(), tmp_path)
    batches = iterate(run.stream, 0, 3, 0)
    run.trainer.take_step(next(batches))
    before = everything(run.trainer)
    with torch.no_grad():
        run.trainer.normalise = lambda images: torch.full(images.shape, torch.nan)
    run.trainer.take_step(next(batches))
    assert_same_bits(before, everything(run.trainer))
    assert run.trainer.progress.skipped == 1


def test_too_many_such_steps_in_a_row_end_the_run(tmp_path: Path) -> None:
    run = Run(tiny_config(), tmp_path)
    run.trainer.normalise = lambda images: torch.full(images.shape, torch.inf)
    with pytest.raises(DivergedError, match="10 steps in a row"):
        run.train()


class Damaged(Textures):
    """Textures of which every n-th cannot be read."""

    def __init__(self, every: int) -> None:
        super().__init__(per_class=64)
        self.every = every

    def load(self, index: int):  # type: ignore[no-untyped-def]
        if index % self.every == 0:
            raise UnreadableImageError("cut short")
        return super().load(index)


def test_unreadable_images_are_replaced_and_listed_once(tmp_path: Path) -> None:
    Run(tiny_config(), tmp_path, Damaged(every=64)).train()
    rows = read_rows(tmp_path / "unreadable.jsonl")
    assert len(rows) == len({row["name"] for row in rows}) == 4
    assert rows[0]["reason"] == "cut short"


def test_too_many_unreadable_images_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="max_unreadable_share"):
        Run(tiny_config(), tmp_path, Damaged(every=8)).train()


def test_images_that_were_mended_meanwhile_count_no_more(tmp_path: Path) -> None:
    source = Damaged(every=64)
    run = Run(tiny_config(), tmp_path, source)
    take_step = run.trainer.take_step

    def mending(batch: Batch) -> Taken:
        if run.trainer.progress.step == 8:  # an epoch later
            assert sorted(run.trainer.progress.unreadable) == [0, 64, 128, 192]
            source.every = len(source)
        return take_step(batch)

    run.trainer.take_step = mending  # type: ignore[method-assign]
    run.train()
    assert run.trainer.progress.unreadable == [0]
    assert len(read_rows(tmp_path / "unreadable.jsonl")) == 4


class Vanishing(Textures):
    """Textures on a disk that goes away at some time."""

    gone = False

    def load(self, index: int):  # type: ignore[no-untyped-def]
        if self.gone:
            raise UnreadableImageError("no such file")
        return super().load(index)


def test_images_that_are_gone_cost_no_step(tmp_path: Path) -> None:
    run = Run(tiny_config(), tmp_path, Vanishing(per_class=64))
    take_step = run.trainer.take_step

    def vanishing(batch: Batch) -> Taken:
        run.stream.source.gone = run.trainer.progress.step == 4  # type: ignore[attr-defined]
        return take_step(batch)

    run.trainer.take_step = vanishing  # type: ignore[method-assign]
    message = r"images in a row could not be read.* Stopped after step 5 of \d+ and saved; the same command continues"
    with pytest.raises(InputError, match=message):
        run.train()
    assert run.store.steps()[-1] == 5
    weights = everything(run.trainer)
    again = Run(tiny_config(), tmp_path)
    assert_same_bits(weights, everything(again.trainer))
    assert again.train().state != "collapse"


def test_images_that_are_gone_when_they_are_measured_cost_no_step(tmp_path: Path) -> None:
    run = Run(tiny_config(), tmp_path, Vanishing(per_class=64))
    measure = run.monitor.measure

    def vanishing(model: Model) -> dict[str, float]:
        run.stream.source.gone = run.trainer.progress.step == 16  # type: ignore[attr-defined]
        return measure(model)

    run.monitor.measure = vanishing  # type: ignore[method-assign]
    with pytest.raises(InputError, match=r"could not be read.* Stopped after step 16 of 24 and saved; the same"):
        run.train()
    assert run.store.steps()[-1] == 16
    again = Run(tiny_config(), tmp_path)
    assert_same_bits(everything(run.trainer), everything(again.trainer))
    again.train()
    steps = [row["step"] for row in read_rows(tmp_path / "metrics.jsonl") if row["split"] == "evaluation"]
    assert steps == [0, 8, 16, 24]


def test_the_warm_up_must_end_within_the_training() -> None:
    config = tiny_config(training=training(epochs=0.5))
    with pytest.raises(InputError, match="warmup_epochs"):
        build_trainer(config, 256, CPU)


def test_only_encoder_predictor_and_projector_learn() -> None:
    trainer = build_trainer(tiny_config(objective={"name": "cjepa"}), 256, CPU)
    optimised = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    learned = [trainer.model.encoder, trainer.model.predictor, trainer.objective]
    assert optimised == {id(p) for module in learned for p in module.parameters()}
    assert not any(p.requires_grad for p in trainer.model.target_encoder.parameters())


def test_vectors_are_not_decayed() -> None:
    trainer = build_trainer(tiny_config(), 256, CPU)
    decayed, free = (group["params"] for group in trainer.optimizer.param_groups)
    assert all(p.ndim >= 2 for p in decayed)
    assert all(p.ndim < 2 for p in free)
    assert trainer.optimizer.param_groups[1]["weight_decay"] == 0.0


def test_the_numbers_of_a_loss_come_to_the_host_as_they_are() -> None:
    loss = Loss(
        torch.tensor(1.5, requires_grad=True), {"prediction": torch.tensor(0.1), "variance": torch.tensor(3e-9)}
    )
    brought = on_host(loss)
    assert brought.terms.keys() == loss.terms.keys()
    assert torch.equal(brought.total, torch.tensor(1.5))
    assert all(torch.equal(brought.terms[name], term) for name, term in loss.terms.items())
    assert all(not term.requires_grad for term in (brought.total, *brought.terms.values()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")  # torch, whenever it is set
def test_after_the_gradient_a_step_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    trainer = build_trainer(config, 64, torch.device("cuda"))
    batch = next(iterate(build_stream(config, Splits(Textures(per_class=64), Textures(per_class=16))), 0, 1, 0))
    trainer.take_step(batch)
    original = trainer.gradient

    def gradient(given: Batch) -> tuple[Loss, float]:
        found = original(given)
        torch.cuda.set_sync_debug_mode("error")
        return found

    monkeypatch.setattr(trainer, "gradient", gradient)
    try:
        taken = trainer.take_step(batch)
        shown = [float(taken.loss.total), *(float(term) for term in taken.loss.terms.values())]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(shown) > 1


# Verdicts on runs that really go wrong, and on one that does not.


def test_without_average_and_stop_gradient_a_run_collapses(tmp_path: Path) -> None:
    config = tiny_config(
        objective={"name": "ijepa"},
        model=tiny_config().model.model_dump() | {"target": {"normalization": "none", "gradient": True}},
        training=training(epochs=12, peak=1e-2, momentum=0.0),
    )
    verdict = Run(config, tmp_path).train()
    assert verdict.state == "collapse"
    last = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert last["spread"] < 0.02


def test_constant_images_are_called_a_collapse(tmp_path: Path) -> None:
    images = Textures(per_class=64, constant=True)
    verdict = Run(tiny_config(), tmp_path, images, test=images).train()
    assert verdict.state == "collapse"


def test_plain_ijepa_with_small_patches_loses_what_its_start_had(tmp_path: Path) -> None:
    config = tiny_config(objective={"name": "ijepa"}, training=training(epochs=10, peak=1.5e-3, momentum=0.9))
    run = Run(config, tmp_path)
    verdict = run.train()
    assert verdict.state == "partial collapse"
    progress = run.trainer.progress
    assert 0.1 < progress.latest["spread"] / progress.untrained["spread"] < 0.3


def test_vicreg_on_the_context_learns_the_same_images(tmp_path: Path) -> None:
    run = Run(tiny_config(training=training(epochs=30)), tmp_path)
    verdict = run.train()
    assert verdict.state == "healthy"
    progress = run.trainer.progress
    assert progress.latest["knn_20_centred"] > progress.untrained["knn_20_centred"] + 20
