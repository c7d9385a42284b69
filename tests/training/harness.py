"""A trainer with everything around it, for tests that look into it."""

import os
import signal
from collections.abc import Generator
from pathlib import Path
from typing import Literal

import torch

from cjepa.build import build_stream, build_trainer
from cjepa.config import RunConfig
from cjepa.data import Splits, TrainingStream, iterate
from cjepa.evaluation.monitor import Monitor
from cjepa.training.checkpoint import CheckpointStore
from cjepa.training.health import Verdict
from cjepa.training.metrics import MetricsLog
from cjepa.training.records import Records
from cjepa.training.rows import RowLog
from cjepa.training.trainer import Trainer
from cjepa.types import Batch
from tests.training.conftest import Textures

CPU = torch.device("cpu")


class Run:
    """A trainer with everything around it, in a folder, on textures."""

    def __init__(
        self, config: RunConfig, folder: Path, source: Textures | None = None, test: Textures | None = None
    ) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        source = source or Textures(per_class=64)
        splits = Splits(source, test or Textures(per_class=16, seed=1))
        self.stream: TrainingStream = build_stream(config, splits)
        self.trainer: Trainer = build_trainer(config, len(source), CPU)
        self.store = CheckpointStore(folder / "checkpoints")
        newest = self.store.newest()
        if newest is not None:
            self.trainer.restore(newest)
        self.monitor = Monitor(config.monitor, config.data, splits, self.stream, CPU, "float32")
        self.log = MetricsLog(folder / "metrics.jsonl")
        self.log.truncate_after(-1 if newest is None else newest.step)

    def train(self, signal_at: int | None = None, on_failed_write: Literal["stop", "continue"] = "stop") -> Verdict:
        def batches(first: int) -> Generator[Batch, None, None]:
            for step, batch in enumerate(iterate(self.stream, first, self.trainer.total_steps, 0), first):
                if step == signal_at:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

        rows, dumps = RowLog(self.folder / "unreadable.jsonl"), CheckpointStore(self.folder / "diverged")
        records = Records(self.store, dumps, [self.log], rows, {"seed": 0}, on_failed_write)
        return self.trainer.train(batches, self.monitor, records)


def everything(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Copies of all weights, averages and moments."""
    return {f"{part}/{name}": t.clone() for part, saved in trainer.tensors().items() for name, t in saved.items()}


def assert_same_bits(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different
