"""The loop: every run, of any objective, on any device, is this one."""

import logging
import math
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, nullcontext
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from cjepa.errors import CjepaError, DivergedError, InputError, StoppedEarly, WorkerError, enough_memory
from cjepa.models import Model
from cjepa.models.blocks import Block, compile_blocks
from cjepa.models.kernels import chosen_precision
from cjepa.objectives import Objective
from cjepa.ranks import from_first, world_size
from cjepa.training.agreement import in_step, refuse_drift
from cjepa.training.batch_loss import BatchLoss, on_host
from cjepa.training.checkpoint import Checkpoint
from cjepa.training.config import TrainingConfig
from cjepa.training.divergence import RolledBack, Trouble, all_finite, diverged, go_back, remedies
from cjepa.training.health import Record, Verdict, judge
from cjepa.training.interruption import Interrupted, Interruption
from cjepa.training.optimizer import build_optimizer, moments_like, set_rates
from cjepa.training.parallel import start_engine
from cjepa.training.progress import Progress
from cjepa.training.recheck import fixed_order, prepare_fixed_order, recheck
from cjepa.training.records import Records
from cjepa.training.schedules import learning_rate, linear
from cjepa.training.state import Progressed, Reason, Taken
from cjepa.training.unreadable import record_unreadable
from cjepa.training.watchdog import Watchdog
from cjepa.training.whole_state import restore_weights, restore_whole_moments, whole_moments, whole_weights
from cjepa.types import Batch, Loss

_log = logging.getLogger(__name__)

_SMALLER_EVALUATION = "lower monitor.batch_size, with --allow-change monitor.batch_size, and the run continues"


@runtime_checkable
class Measures(Protocol):
    """What the trainer asks for at every evaluation."""

    quality: str
    """Name of the value to judge by, an accuracy in percent."""
    count: int
    """Number of images that it is measured on."""

    def measure(self, model: Model) -> Mapping[str, float]:
        """The values of a model."""
        ...


class Trainer:
    """Owns the weights that learn, takes the steps, and saves, measures and judges on the way."""

    def __init__(
        self,
        config: TrainingConfig,
        model: Model,
        objective: Objective,
        normalise: Callable[[Tensor], Float[Tensor, "B 3 H W"]],
        images: int,
        max_unreadable_share: float,
        device: torch.device,
    ) -> None:
        self.config = config
        if config.deterministic or config.recheck_every is not None:
            prepare_fixed_order(device)
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
        for part in model.learned.values():
            for block in part.blocks:
                assert isinstance(block, Block)
                block.recompute = config.checkpoint_activations
        if config.compile:
            compile_blocks((*model.learned.values(), model.target_encoder))
        engine = start_engine(config.parallel, self.model, self.objective, device)
        self.precision = chosen_precision(config.precision, device)
        bfloat16 = self.precision == "bfloat16"
        self.batch_loss = BatchLoss(
            self.model, self.objective, self._prepared, engine, device, bfloat16, config.micro_batch
        )
        self.learned = nn.ModuleDict({**self.model.learned, "objective": self.objective})
        """What the optimizer changes; never the target encoder."""
        self.parameters = dict(self.learned.named_parameters())
        self.optimizer = build_optimizer(config.optimizer, self.parameters)
        self.progress = Progressed()
        self._saved: tuple[int, int] | None = None  # step and evaluation of the last checkpoint
        self._best_on_disk: tuple[int, float] | None = None  # step and quality
        self._trouble: list[Trouble] = []  # the last steps, without a gap, that changed nothing

    def train(
        self, batches: Callable[[int], Generator[Batch, None, None]], monitor: Measures, records: Records
    ) -> Verdict:
        """From where the progress stands to the end; `batches(step)` yields those of step, step + 1, ...

        Raises StoppedEarly after a signal, WorkerError when no batch comes and InputError when it cannot be read (all
        saved), InputError for too many unreadable images, DivergedError after too many steps in a row that change
        nothing, and RolledBack: then restore the newest checkpoint and train again.
        """
        with (
            Interruption() as interruption,
            Watchdog(self.config.hang_after) as watchdog,
            Progress("pretrain", self.total_steps) as line,
        ):
            try:
                self._evaluate_and_save(monitor, records, interruption)  # the start, or what a stop had cut short
                verdict = self._judge(monitor)
                for batch in self._awaited(batches, interruption, records):
                    taken = self.take_step(batch)
                    self._give_up_or_go_back(taken, batch, records)
                    self.progress.step += 1
                    self._record(taken, batch, records)
                    images = len(batch.images) * world_size()
                    line.update(self.progress.step, self._shown(taken.loss, verdict), images)
                    if self._evaluate_and_save(monitor, records, interruption):
                        verdict = self._judge(monitor)
                        _log.info("step %d: %s: %s", self.progress.step, verdict.state, verdict.evidence)
                        line.update(self.progress.step, self._shown(taken.loss, verdict))
                    watchdog.alive()
            except Interrupted as stop:
                self._save(records, last=True)
                raise StoppedEarly(f"stopped by {stop} {self._where()}; the same command continues the run") from None
            except RolledBack:
                _stop_before_training_again(interruption)
                raise
            except WorkerError as error:
                self._save(records, last=True)
                raise WorkerError(self._saved_for(error)) from error
        return verdict

    def take_step(self, batch: Batch) -> Taken:
        """One step of the method. Nothing changes if loss or gradient are not finite or the step is left out."""
        step = self.progress.step
        optimizer = self.config.optimizer
        set_rates(
            self.optimizer,
            learning_rate(optimizer.learning_rate, step, self.warmup_steps, self.total_steps),
            linear(optimizer.weight_decay.start, optimizer.weight_decay.final, step, self.total_steps),
        )
        loss, norm = self.gradient(batch)
        if self._rechecked(step):
            recheck(self.parameters, lambda: self.gradient(batch), step)
        unchanged = self._reason_to_change_nothing(float(loss.total.detach()), norm)
        if unchanged is None:
            self.optimizer.step()
            self.model.update_target(self._momentum(step))
        self.optimizer.zero_grad(set_to_none=True)
        return Taken(loss, norm, unchanged)

    def gradient(self, batch: Batch) -> tuple[Loss, float]:
        """The loss of the step about to be taken, its gradient in the parameters, and the norm of that.

        The one place of a step that waits for the device: what changes the weights depends on these numbers.
        """
        step = self.progress.step
        with fixed_order(self.device) if self.config.deterministic or self._rechecked(step) else nullcontext():
            loss = self.batch_loss.backward(batch, step)
            largest = self.config.optimizer.clip_gradient or math.inf
            all_at_once = None if self.device.type == "mps" else True  # mps refuses it, shards have to be told
            norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), largest, foreach=all_at_once))
            return on_host(loss), norm

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue exactly where a checkpoint was saved; InputError when it is one of another model."""
        self.progress = Progressed.of(checkpoint)
        for name, module in self._modules().items():
            restore_weights(module, _read(checkpoint, name, module.state_dict()))
        moved = self.progress.weights_moved
        saved = _read(checkpoint, "optimizer", moments_like(self.parameters) if moved else {})
        restore_whole_moments(self.learned, self.optimizer, self.parameters, saved, moved)
        self._saved = (self.progress.step, self.progress.evaluated)
        self._best_on_disk = (self.progress.best_step, self.progress.best_quality)
        self._trouble.clear()

    def start_from(self, context: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
        """Replace the encoders' weights by others of the same names and shapes."""
        restore_weights(self.model.encoder, context)
        restore_weights(self.model.target_encoder, target)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Everything that `restore` needs besides the progress, by file; with several ranks only the first has it."""
        return {
            **{name: whole_weights(module) for name, module in self._modules().items()},
            "optimizer": whole_moments(self.learned, self.optimizer, self.parameters),
        }

    def _modules(self) -> dict[str, nn.Module]:
        return {**self.model.learned, "target_encoder": self.model.target_encoder, "objective": self.objective}

    def _rechecked(self, step: int) -> bool:
        return self.config.recheck_every is not None and step % self.config.recheck_every == 0

    def _prepared(self, images: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        return self.normalise(images.to(self.device, non_blocking=True))

    def _steps(self, epochs: float, at_least: int = 1) -> int:
        return max(round(epochs * self.images / self.config.batch_size), at_least)

    def _momentum(self, step: int) -> float:
        return linear(self.config.momentum.start, self.config.momentum.final, step, self.total_steps)

    def _reason_to_change_nothing(self, loss: float, norm: float) -> Reason | None:
        """Judge a step before the optimizer does anything, and remember the judgement."""
        progress, spikes = self.progress, self.config.spikes
        if progress.step in progress.left_out:
            return "left out"
        finite = math.isfinite(loss) and math.isfinite(norm)
        far = finite and progress.recent.deviation(loss, norm) > spikes.threshold
        progress.spikes += far
        if finite and (not far or spikes.policy == "log"):
            if far:
                _log.warning("step %d: loss %.4g, gradient %.4g: far above those before", progress.step, loss, norm)
            progress.recent.add(loss, norm)
            progress.skipped_in_a_row = 0
            return None
        progress.skipped += 1
        progress.skipped_in_a_row += 1
        what = "far above those before" if finite else "not finite"
        _log.warning("step %d skipped: loss %.4g, gradient %.4g: %s", progress.step, loss, norm, what)
        return "spike" if finite else "not finite"

    def _give_up_or_go_back(self, taken: Taken, batch: Batch, records: Records) -> None:
        if taken.unchanged in (None, "left out"):
            self._trouble.clear()
            return
        self._trouble.append(Trouble.of(self.progress.step, taken, batch))
        if self.progress.skipped_in_a_row >= self.config.most_skipped:
            raise self._diverged(self.tensors(), records)
        if taken.unchanged == "spike" and self.config.spikes.policy == "rollback":
            go_back(self.progress.step, self.config.spikes.left_out, self.config.most_skipped, records)

    def _diverged(self, tensors: Mapping[str, Mapping[str, Tensor]], records: Records) -> DivergedError:
        advice = remedies(self.config.optimizer, self.precision)
        return diverged(self._trouble, tensors, self.progress, records, advice)

    def _awaited(
        self,
        batches: Callable[[int], Generator[Batch, None, None]],
        interruption: Interruption,
        records: Records,
    ) -> Generator[Batch, None, None]:
        """The remaining batches; a signal ends the wait for one, and comes through after a step and what follows.

        Where there are no images any more, what was learned is saved before the InputError that says so.
        """
        with closing(in_step(batches(self.progress.step))) as remaining:
            while self.progress.step < self.total_steps:
                try:
                    with interruption.promptly():
                        batch = next(remaining)
                except InputError as error:
                    self._save(records, last=True)
                    raise InputError(self._saved_for(error)) from error
                yield batch

    def _saved_for(self, error: CjepaError) -> str:
        return f"{error}. Stopped {self._where()}; the same command continues the run"

    def _where(self) -> str:
        done = f"after step {self.progress.step} of {self.total_steps} and saved"
        return done if self.progress.untrained else "before anything was done"

    def _record(self, taken: Taken, batch: Batch, records: Records) -> None:
        step = self.progress.step
        seen = min(step * self.config.batch_size, self.images)
        record_unreadable(batch, self.progress, records, seen, self.images, self.max_unreadable_share)
        if step % self.config.log_every == 0 or step == self.total_steps:
            records.row(step, "train", self._row(taken))

    def _row(self, taken: Taken) -> dict[str, float]:
        step = self.progress.step - 1
        return {
            "loss": float(taken.loss.total.detach()),
            **{name: float(term) for name, term in taken.loss.terms.items()},
            "gradient_norm": taken.gradient_norm,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "weight_decay": self.optimizer.param_groups[0]["weight_decay"],
            "momentum": self._momentum(step),
            "epoch": self.progress.step * self.config.batch_size / self.images,
            "skipped": self.progress.skipped,
            "spikes": self.progress.spikes,
        }

    def _shown(self, loss: Loss, verdict: Verdict) -> dict[str, str | float]:
        terms = {name: float(term) for name, term in loss.terms.items()}
        return {"loss": float(loss.total.detach()), **terms, "health": verdict.state}

    def _evaluate_and_save(self, monitor: Measures, records: Records, interruption: Interruption) -> bool:
        """What is due after a step; True if there was an evaluation. A signal comes through when it is done."""
        step, every = self.progress.step, self._steps(self.config.evaluate_every)
        last = step == self.total_steps
        evaluates = self.progress.evaluated < step and (step % every == 0 or last)
        improved = evaluates and self._evaluate(monitor, records, interruption)
        if improved or step % self._steps(self.config.checkpoint_every) == 0 or last:
            self._save(records, last)
        if not last:
            interruption.check()
        return evaluates

    def _evaluate(self, monitor: Measures, records: Records, interruption: Interruption) -> bool:
        """Measure, remember and write; True if this is the best so far."""
        try:
            with interruption.promptly(), enough_memory(_SMALLER_EVALUATION):
                values = dict(monitor.measure(self.model))
        except InputError as error:  # images that are gone must not take what was learned with them
            self._save(records, last=True)
            raise InputError(self._saved_for(error)) from error
        except DivergedError:
            # Of weights that became so there is more to say than of their embeddings.
            if self.progress.untrained and not all_finite(tensors := self.tensors()):
                raise self._diverged(tensors, records) from None
            raise
        progress = self.progress
        progress.evaluated = progress.step
        progress.untrained = progress.untrained or values
        progress.latest = values
        progress.peak_rank = max(progress.peak_rank, values["effective_rank"])
        improved = values[monitor.quality] > progress.best_quality
        if improved:
            progress.best_quality, progress.best_step = values[monitor.quality], progress.step
        records.row(progress.step, "evaluation", values)
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
                progress.evaluated / self.total_steps,  # not the step: it may have gone on before a stop
            )
        )

    def _save(self, records: Records, last: bool) -> None:
        """Save unless this very state was saved; weights that are not finite would replace good ones."""
        progress = self.progress
        now = (progress.step, progress.evaluated)
        if now == self._saved or not progress.untrained:
            return
        if self.batch_loss.engine.replicated:
            refuse_drift(self.parameters)
        tensors = self.tensors()
        if not all_finite(tensors):
            raise self._diverged(tensors, records)
        progress.rollbacks = 0
        if records.save(progress.step, tensors, {"progress": progress.as_dict()}, progress.best_step, last):
            self._best_on_disk = (progress.best_step, progress.best_quality)
        elif self._best_on_disk is not None:  # who asks for the best checkpoint gets one that is there
            progress.best_step, progress.best_quality = self._best_on_disk
        self._saved = now


def _stop_before_training_again(interruption: Interruption) -> None:
    """A signal that came while the run went back: whoever trains again would not hear of it."""
    try:
        interruption.check()
    except Interrupted as stop:
        raise StoppedEarly(f"stopped by {stop} after going back; the same command continues the run") from None


def _read(checkpoint: Checkpoint, name: str, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a checkpoint, on the first rank alone; what it cannot read is an error of all."""
    found: dict[str, Tensor] = {}
    from_first(lambda: found.update(checkpoint.tensors(name, like=like)))
    return found
