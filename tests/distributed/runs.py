"""Whole runs on the ranks of the tests: started, disturbed, stopped and continued."""

import hashlib
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from cjepa.config import RunConfig, parse
from cjepa.errors import CjepaError, InputError
from cjepa.ranks import rank
from cjepa.runs import pretrain
from cjepa.training.batch_loss import BatchLoss
from cjepa.training.checkpoint import CheckpointStore
from cjepa.training.metrics import read_metrics
from cjepa.training.records import Records
from cjepa.training.rows import RowLog
from cjepa.training.state import Progressed
from cjepa.training.unreadable import record_unreadable
from cjepa.types import Batch, Loss, Masks
from tests.distributed.cases import whole

BATCH, STEPS = 12, 12


def config(images: Path, changes: dict[str, Any]) -> RunConfig:
    """Twelve steps of twelve images."""
    training = {
        "epochs": 3,
        "batch_size": BATCH,
        "precision": "float32",
        "device": "cpu",
        "log_every": 1,
        "optimizer": {"learning_rate": {"start": 1e-3, "peak": 1e-3, "warmup_epochs": 0.25}},
    }
    return parse(
        RunConfig,
        {
            "data": {"source": {"name": "folder", "path": str(images)}, "image_size": 16, "crop_scale": [0.5, 1.0]},
            "model": {
                "encoder": {"width": 16, "depth": 2, "heads": 2, "patch_size": 4},
                "predictor": {"width": 16, "depth": 1},
            },
            "objective": {"name": "cjepa", "beta": 0.1, "projector": {"width": 32}},
            "training": training | changes,
            "monitor": {"train_images": 24, "test_images": 12, "evaluations": []},
        },
    )


@dataclass(frozen=True)
class Ended:
    """How a run ended on one rank: the error and its exit code, or None and 0."""

    error: str | None
    code: int
    losses: list[float]
    samples: list[list[int]]


def run(images: Path, folder: Path, changes: dict[str, Any], disturbance: str | None = None) -> Ended:
    """Pretrain on this rank, disturbed in one of the ways below, and say what came of it."""
    seen: list[tuple[float, list[int]]] = []
    backward = BatchLoss.backward

    def watched(self: BatchLoss, batch: Batch, step: int) -> Loss:
        if disturbance is not None:
            DISTURBANCES[disturbance](self, batch, step)
        loss = backward(self, batch, step)
        seen.append((float(loss.total), batch.samples.tolist()))
        return loss

    error = None
    with patch.object(BatchLoss, "backward", watched):
        try:
            pretrain(config(images, changes), folder)
        except CjepaError as caught:
            error = caught
    code = 0 if error is None else error.exit_code
    return Ended(None if error is None else str(error), code, [each[0] for each in seen], [each[1] for each in seen])


def _signal_to_the_last_rank(loss: BatchLoss, batch: Batch, step: int) -> None:
    import torch.distributed as dist

    if step == 4 and rank() == dist.get_world_size() - 1:
        os.kill(os.getpid(), signal.SIGUSR1)


def _not_finite_on_one_rank(loss: BatchLoss, batch: Batch, step: int) -> None:
    if rank() == 1:
        factor = torch.nan if step == 4 else 1.0
        correct = getattr(loss.prepare, "correct", loss.prepare)
        loss.prepare = lambda images: correct(images) * factor
        loss.prepare.correct = correct  # type: ignore[attr-defined]


def _drift_of_one_rank(loss: BatchLoss, batch: Batch, step: int) -> None:
    if step == 4 and rank() == 1:
        with torch.no_grad():
            weight = loss.model.encoder.norm.weight
            weight[0] = torch.nextafter(weight[0], weight[0] + 1)


DISTURBANCES: dict[str, Callable[[BatchLoss, Batch, int], None]] = {
    "signal": _signal_to_the_last_rank,
    "not finite": _not_finite_on_one_rank,
    "drift": _drift_of_one_rank,
}


def runs(calls: list[tuple[Any, ...]]) -> list[Ended]:
    """Several runs, one after the other."""
    return [run(*call) for call in calls]


def long_run(images: Path, folder: Path, changes: dict[str, Any]) -> Ended:
    """Two hundred steps without evaluations but the first and the last."""
    return run(images, folder, changes | {"epochs": 50, "evaluate_every": 50, "checkpoint_every": 50})


def run_on_machines_of_their_own(images: Path, folder: Path) -> Ended:
    """Each rank names the same folder, on a disk that only it has."""
    return run(images, folder / f"machine-{rank()}" / "run", {"parallel": "ddp"})


def run_with_unreadable_input(images: Path, folder: Path) -> Ended:
    """The second rank's data raise an error at step 4."""
    from cjepa.data import TrainingStream

    read = TrainingStream.__getitem__

    def failing(self: TrainingStream, step: int) -> Batch:
        if step == 4 and rank() == 1:
            raise InputError("data: all gone")
        return read(self, step)

    with patch.object(TrainingStream, "__getitem__", failing):
        return run(images, folder, {})


def images_that_stay_unreadable() -> list[int]:
    """Of 1, 2 and 3 after a step in which the first rank could read 1, and the second one 3."""
    progress = Progressed(unreadable=[1, 2, 3])
    few, samples = torch.zeros(2, 1, dtype=torch.int64), torch.tensor([[1, 5], [3, 7]])[rank()]
    batch = Batch(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), Masks(few, few[:, None]), samples)
    store, rows = CheckpointStore(Path("unused")), RowLog(Path("unused"))
    record_unreadable(batch, progress, Records(store, store, [], rows, {}), 100, 100, 0.05)
    return progress.unreadable


def run_with_a_fault_in_an_evaluation(images: Path, folder: Path, fault: type[CjepaError]) -> Ended:
    """A worker of the second rank dies, or its images are gone, at the second time that the ranks measure."""
    from cjepa.evaluation import monitor

    extract, calls = monitor.extract_features, count()

    def dying(*arguments: Any, **options: Any) -> Tensor:
        if rank() == 1 and next(calls) == 2:  # training and test images, each time
            raise fault("data worker 0 was killed")
        return extract(*arguments, **options)

    with patch.object(monitor, "extract_features", dying):
        return run(images, folder, {})


def run_on_a_full_disk(images: Path, folder: Path) -> Ended:
    """The first rank cannot save; the others must not wait for it."""
    with _disk_full() if rank() == 0 else _nothing():
        return run(images, folder, {})


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _disk_full() -> Iterator[None]:
    import cjepa.training.checkpoint as place

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with patch.object(place, "write_new", full):
        yield


def shards_equal_their_start(changes: dict[str, Any], images: Path) -> list[tuple[str, bool, bool]]:
    """Per parameter of the encoder: is this rank's shard of the average that of the encoder, and is it a part?"""
    from cjepa.build import build_trainer

    trainer = build_trainer(config(images, changes), 48, torch.device("cpu"))
    average = dict(trainer.model.target_encoder.named_parameters())
    found = []
    for name, parameter in trainer.model.encoder.named_parameters():
        own, other = parameter.to_local(), average[name].to_local()
        found.append((name, torch.equal(own, other), own.numel() < parameter.numel()))
    return found


def plan_beside_a_smaller_machine(images: Path, share: int, changes: dict[str, Any]) -> tuple[int | None, str]:
    """Micro-batch and engine of this rank, where the second one has room for no more than `share` images at a time.

    The first has memory for anything. 0 images: not even for one, beside whole copies of the weights.
    """
    import cjepa.build as place

    settings = config(images, changes)
    needs, own = place.footprint_of(settings, "cpu"), BATCH // 2
    small = needs.memory(own, share, shards=2) * 1.001 if share else needs.memory(own, 1) * 0.999
    room = small if rank() == 1 else 2.0**40
    with patch.multiple(place, device_memory=lambda _: room / place.USABLE, occupied_memory=lambda _: 0.0):
        fitted = place._fitted(settings, torch.device("cpu"))
    return fitted.micro_batch, fitted.parallel


def weights_after_updates(changes: dict[str, Any], images: Path) -> dict[str, Tensor]:
    """The average after the encoder moved and five updates were taken, put together from its shards."""
    from cjepa.build import build_trainer

    trainer = build_trainer(config(images, changes), 48, torch.device("cpu"))
    for index in range(5):
        with torch.no_grad():
            for parameter in trainer.model.encoder.parameters():
                parameter.mul_(1.0 + 0.1 * index)
        trainer.model.update_target(0.9)
    return {name: whole(parameter) for name, parameter in trainer.model.target_encoder.named_parameters()}


def digest(folder: Path, step: int) -> dict[str, str]:
    """sha256 of every tensor file of a checkpoint."""
    checkpoint = CheckpointStore(folder / "checkpoints").load(step)
    files = sorted(checkpoint.path.glob("*.safetensors"))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def logged(folder: Path, name: str = "loss") -> list[float]:
    """A value of the training's rows in metrics.jsonl, by step; every step must be there once."""
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if row["split"] == "train"]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row[name] for row in rows]
