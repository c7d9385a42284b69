"""The loop: every run, of any objective, on any device, is this one."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from cjepa.errors import DivergedError, InputError, StoppedEarly
from cjepa.models import JEPA
from cjepa.objectives import Objective
from cjepa.training.checkpoint import Checkpoint, CheckpointStore
from cjepa.training.health import Record, Verdict, judge
from cjepa.training.interruption import Interruption
from cjepa.training.metrics import MetricsWriter
from cjepa.training.optimizer import OptimizerConfig, build_optimizer, moments, restore_moments, set_rates
from cjepa.training.progress import Progress
from cjepa.training.rows import RowLog
from cjepa.training.schedules import MomentumConfig, learning_rate, linear
from cjepa.types import Batch, Loss, Part

_log = logging.getLogger(__name__)

FEW_IMAGES = 100
"""The share of unreadable images is judged once this many were seen."""


class TrainingConfig(Part):
    """How long, how large and how fast."""

    epochs: float = Field(100.0, gt=0)
    """Length of the training, in passes over the training images."""
    batch_size: int = Field(256, ge=2)
    """Images per step over all devices; VICReg's statistics are taken over them."""
    optimizer: OptimizerConfig = Field(default_factory=lambda: OptimizerConfig())
    """AdamW and its schedules."""
    momentum: MomentumConfig = Field(default_factory=lambda: MomentumConfig())
    """Momentum of the target encoder's moving average."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Arithmetic of the forward pass (autocast); weights, targets' average, losses and statistics stay float32."""
    device: str = "auto"
    """Where to train: auto (a GPU if there is one), cpu, cuda, cuda:1, mps."""
    threads: int | None = Field(None, ge=1)
    """CPU threads; by default torch's choice. Runs with different numbers of threads differ in the last bits."""
    log_every: int = Field(10, ge=1)
    """Steps between two rows of metrics.jsonl."""
    evaluate_every: float = Field(1.0, gt=0)
    """Epochs between two evaluations; there is one before the first step and one after the last."""
    checkpoint_every: float = Field(1.0, gt=0)
    """Epochs between two checkpoints; the last two and the best one are kept."""
    most_skipped: int = Field(10, ge=1)
    """Steps in a row whose loss or gradient is not finite before the run gives up; none of them changes a weight."""


@runtime_checkable
class Measures(Protocol):
    """What the trainer asks for at every evaluation."""

    quality: str
    """Name of the value to judge by, an accuracy in percent."""
    count: int
    """Number of images that it is measured on."""

    def measure(self, model: JEPA) -> Mapping[str, float]:
        """The values of a model."""
        ...


@dataclass
class Progressed:
    """What a run knows besides its weights; saved with every checkpoint."""

    step: int = 0
    untrained: dict[str, float] = field(default_factory=dict)
    latest: dict[str, float] = field(default_factory=dict)
    peak_rank: float = 0.0
    best_step: int = 0
    best_quality: float = -math.inf
    skipped: int = 0
    skipped_in_a_row: int = 0
    unreadable: list[int] = field(default_factory=list)


class Trainer:
    """Owns the weights that learn, takes the steps, and saves, measures and judges on the way."""

    def __init__(
        self,
        config: TrainingConfig,
        model: JEPA,
        objective: Objective,
        normalise: Callable[[Tensor], Float[Tensor, "B 3 H W"]],
        images: int,
        max_unreadable_share: float,
        device: torch.device,
    ) -> None:
        self.config = config
        self.model = model.to(device)
        self.objective = objective.to(device)
        self.normalise = normalise
        self.images = images
        self.max_unreadable_share = max_unreadable_share
        self.device = device
        self.total_steps = max(round(config.epochs * images / config.batch_size), 1)
        self.warmup_steps = self._steps(config.optimizer.learning_rate.warmup_epochs, at_least=0)
        if self.warmup_steps >= self.total_steps and self.total_steps > 1:
            raise InputError(
                f"training.optimizer.learning_rate.warmup_epochs: the warm-up of {self.warmup_steps} steps does not "
                f"end before the training of {self.total_steps} steps; shorten it or raise training.epochs"
            )
        self.parameters = self._learned()
        self.optimizer = build_optimizer(config.optimizer, self.parameters)
        self.progress = Progressed()

    def train(
        self,
        batches: Callable[[int], Iterator[Batch]],
        monitor: Measures,
        store: CheckpointStore,
        writers: list[MetricsWriter],
        unreadable: RowLog,
    ) -> Verdict:
        """From where the progress stands to the end; `batches(step)` yields those of step, step + 1, ...

        Raises StoppedEarly after a signal (saved), DivergedError after too many non-finite steps in a row.
        """
        every, saves = self._steps(self.config.evaluate_every), self._steps(self.config.checkpoint_every)
        with Interruption() as interruption, Progress("pretrain", self.total_steps) as line:
            if not self.progress.untrained:
                self._evaluate(monitor, writers)
                self._save(store, writers)
            verdict = self._judge(monitor)
            for batch in batches(self.progress.step):
                loss, norm = self.take_step(batch)
                step = self.progress.step = self.progress.step + 1
                self._record_unreadable(batch, unreadable)
                if step % self.config.log_every == 0 or step == self.total_steps:
                    self._write(writers, "train", self._row(loss, norm))
                line.update(step, self._shown(loss, verdict), len(batch.images))
                improved = False
                if step % every == 0 or step == self.total_steps:
                    improved = self._evaluate(monitor, writers)
                    verdict = self._judge(monitor)
                    _log.info("step %d: %s: %s", step, verdict.state, verdict.evidence)
                if improved or step % saves == 0 or step == self.total_steps or interruption.requested:
                    self._save(store, writers)
                if interruption.requested and step < self.total_steps:
                    raise StoppedEarly(
                        f"stopped by {interruption.requested} after step {step} of {self.total_steps} and saved; "
                        "the same command continues the run"
                    )
        return verdict

    def take_step(self, batch: Batch) -> tuple[Loss, float]:
        """One step of the method; the loss and the norm of its gradient. Nothing changes if they are not finite."""
        step = self.progress.step
        optimizer = self.config.optimizer
        set_rates(
            self.optimizer,
            learning_rate(optimizer.learning_rate, step, self.warmup_steps, self.total_steps),
            linear(optimizer.weight_decay.start, optimizer.weight_decay.final, step, self.total_steps),
        )
        images = self.normalise(batch.images.to(self.device, non_blocking=True))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            embeddings = self.model(images, batch.masks.to(self.device))
        loss: Loss = self.objective(embeddings, step)
        loss.total.backward()
        largest = optimizer.clip_gradient or math.inf
        norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), largest, foreach=True))
        if math.isfinite(norm) and math.isfinite(float(loss.total.detach())):
            self.optimizer.step()
            self.model.update_target(self._momentum(step))
            self.progress.skipped_in_a_row = 0
        else:
            self._skip(step)
        self.optimizer.zero_grad(set_to_none=True)
        return loss, norm

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue exactly where a checkpoint was saved."""
        self.progress = Progressed(**checkpoint.state["progress"])
        self.model.encoder.load_state_dict(checkpoint.tensors("encoder"))
        self.model.target_encoder.load_state_dict(checkpoint.tensors("target_encoder"))
        self.model.predictor.load_state_dict(checkpoint.tensors("predictor"))
        self.objective.load_state_dict(checkpoint.tensors("objective"))
        restore_moments(self.optimizer, self.parameters, checkpoint.tensors("optimizer"))

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Everything that `restore` needs besides the progress, by file."""
        return {
            "encoder": self.model.encoder.state_dict(),
            "target_encoder": self.model.target_encoder.state_dict(),
            "predictor": self.model.predictor.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": moments(self.optimizer, self.parameters),
        }

    def _learned(self) -> dict[str, nn.Parameter]:
        """Encoder, predictor and projector, by name; never the target encoder."""
        parts = {"encoder": self.model.encoder, "predictor": self.model.predictor, "objective": self.objective}
        return {f"{part}.{name}": p for part, module in parts.items() for name, p in module.named_parameters()}

    def _steps(self, epochs: float, at_least: int = 1) -> int:
        return max(round(epochs * self.images / self.config.batch_size), at_least)

    def _momentum(self, step: int) -> float:
        return linear(self.config.momentum.start, self.config.momentum.final, step, self.total_steps)

    def _skip(self, step: int) -> None:
        self.progress.skipped += 1
        self.progress.skipped_in_a_row += 1
        _log.warning("step %d skipped: loss or gradient is not finite; no weight was changed", step)
        if self.progress.skipped_in_a_row >= self.config.most_skipped:
            raise DivergedError(
                f"loss or gradient was not finite in {self.config.most_skipped} steps in a row, up to step {step}; "
                "the last checkpoint is good: lower training.optimizer.learning_rate.peak, set "
                "training.optimizer.clip_gradient=1, or use training.precision=float32, in a new run"
            )

    def _record_unreadable(self, batch: Batch, rows: RowLog) -> None:
        """List newly met unreadable images; stop when there are too many."""
        for image in batch.unreadable:
            if image.index not in self.progress.unreadable:
                self.progress.unreadable.append(image.index)
                rows.append({"step": self.progress.step, "name": image.name, "reason": image.reason})
                _log.warning("unreadable image replaced: %s (%s)", image.name, image.reason)
        seen = min(self.progress.step * self.config.batch_size, self.images)
        bad = len(self.progress.unreadable)
        if batch.unreadable and seen >= min(FEW_IMAGES, self.images) and bad > self.max_unreadable_share * seen:
            raise InputError(
                f"data: {bad} of the first {seen} images could not be read, more than "
                f"data.max_unreadable_share={self.max_unreadable_share}; they are listed in unreadable.jsonl: repair "
                "or remove them, or raise the share"
            )

    def _row(self, loss: Loss, norm: float) -> dict[str, float]:
        step = self.progress.step - 1
        return {
            "loss": float(loss.total.detach()),
            **{name: float(term) for name, term in loss.terms.items()},
            "gradient_norm": norm,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "weight_decay": self.optimizer.param_groups[0]["weight_decay"],
            "momentum": self._momentum(step),
            "epoch": self.progress.step * self.config.batch_size / self.images,
            "skipped": self.progress.skipped,
        }

    def _shown(self, loss: Loss, verdict: Verdict) -> dict[str, str | float]:
        terms = {name: float(term) for name, term in loss.terms.items()}
        return {"loss": float(loss.total.detach()), **terms, "health": verdict.state}

    def _write(self, writers: list[MetricsWriter], split: str, values: Mapping[str, float]) -> None:
        for writer in writers:
            writer.write(self.progress.step, split, values)

    def _evaluate(self, monitor: Measures, writers: list[MetricsWriter]) -> bool:
        """Measure, remember and write; True if this is the best so far."""
        values = dict(monitor.measure(self.model))
        progress = self.progress
        progress.untrained = progress.untrained or values
        progress.latest = values
        progress.peak_rank = max(progress.peak_rank, values["effective_rank"])
        improved = values[monitor.quality] > progress.best_quality
        if improved:
            progress.best_quality, progress.best_step = values[monitor.quality], progress.step
        self._write(writers, "evaluation", values)
        return improved

    def _judge(self, monitor: Measures) -> Verdict:
        progress = self.progress
        return judge(
            Record(
                progress.untrained,
                progress.latest,
                progress.peak_rank,
                progress.best_quality,
                monitor.quality,
                monitor.count,
                progress.step / self.total_steps,
            )
        )

    def _save(self, store: CheckpointStore, writers: list[MetricsWriter]) -> None:
        for writer in writers:
            writer.flush()
        state: dict[str, Any] = {"progress": vars(self.progress)}
        store.save(self.progress.step, self.tensors(), state, protect={self.progress.best_step})
