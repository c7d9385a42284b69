"""`cjepa pretrain`: from a config and an empty folder, or the run that the folder holds, to a trained encoder."""

import copy
import json
import logging
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cjepa.build import CONFIG, build_probe, build_stream, build_trainer, choose_device, in_precision, start_weights
from cjepa.config import RunConfig, dump_yaml
from cjepa.data import Splits, TrainingStream, ViewsStream, device_images, iterate, open_source
from cjepa.errors import DivergedError, InputError, enough_memory
from cjepa.evaluation.monitor import QUALITIES, Monitor
from cjepa.models import Model
from cjepa.models.kernels import has_fast_bfloat16
from cjepa.ranks import collect, from_first, is_first, joined, local_rank, slots, world_size
from cjepa.runs.advice import advised
from cjepa.runs.caching import CACHE, cached, remove_cache
from cjepa.runs.continuing import (
    DATA,
    precision_of,
    refuse_another_config,
    refuse_new_run_among_images,
    refuse_other_images,
    refuse_unknown_keys,
)
from cjepa.runs.gathering import Gathered
from cjepa.runs.recording import Recorder
from cjepa.runs.report import write_report
from cjepa.runs.waiting import Waiting
from cjepa.training.checkpoint import Checkpoint, CheckpointStore
from cjepa.training.device_memory import device_memory
from cjepa.training.divergence import RolledBack
from cjepa.training.environment import describe_environment, essentials
from cjepa.training.health import Verdict
from cjepa.training.interruption import stopping_at_once
from cjepa.training.metrics import MetricsWriter, open_writers
from cjepa.training.records import Records
from cjepa.training.rows import RowLog
from cjepa.training.run_folder import RunFolder
from cjepa.training.state import differing
from cjepa.training.trainer import Trainer
from cjepa.types import Batch

_log = logging.getLogger(__name__)

LOG, UNREADABLE, DIVERGED, START = "train.log", "unreadable.jsonl", "diverged", "start.json"
MADE_WITH = "made_with"
"""Key of a checkpoint's state: versions, device, threads, ranks, and the images of a rank that it took at a time."""

_SMALLER_STEP = (
    "lower training.micro_batch or set training.checkpoint_activations=true, which may change on the way; the command "
    "then continues from the last checkpoint"
)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its verdict, and the values of the untrained and of the trained encoder.

    quality: the name of the value that decided the best checkpoint, which is the one of `best_step`.
    """

    folder: Path
    verdict: Verdict
    quality: str
    untrained: dict[str, float]
    trained: dict[str, float]
    best_step: int
    steps: int


def pretrain(config: RunConfig, folder: Path, allow_change: Collection[str] = ()) -> Outcome:
    """Train in `folder`, or continue the run that it holds. Raises the errors of cjepa.errors.

    Started by torchrun, every rank calls it; the first one alone reads and writes the folder, but for each machine's
    decoded images. allow_change: config keys, or groups of them, that may differ from those that the run began with,
    and IMAGES.
    """
    refuse_unknown_keys(allow_change)
    device, run = choose_device(config.training.device), RunFolder(folder)
    with joined(device), stopping_at_once("the same command continues"), _held(run), enough_memory(_SMALLER_STEP):
        slots(config.training.batch_size)  # refuses a batch that cannot be dealt out, before anything starts
        config = in_precision(config, from_first(partial(precision_of, config, folder, device)))
        from_first(partial(refuse_another_config, config, folder, allow_change))
        if config.training.threads is not None:
            torch.set_num_threads(config.training.threads)
        splits = open_source(config.data, config.seed)
        from_first(lambda: refuse_new_run_among_images(config.data, folder))
        _refuse_different_images(splits)
        from_first(lambda: refuse_other_images(splits, folder, allow_change))
        stream = build_stream(config, splits)
        trainer = build_trainer(config, len(splits.train), device)
        store = CheckpointStore(run.checkpoints)
        from_first(store.remove_leftovers)
        _announce(config, splits, trainer, folder)
        probe = build_probe(config, splits)
        monitor = Monitor(config.monitor, config.data, splits, probe, device, trainer.precision)
        verdict = None
        while verdict is None:
            checkpoint = from_first(store.newest)
            if checkpoint is None:
                _start(run, config, trainer)
            else:
                _restore(trainer, checkpoint)
                _refuse_another_quality(trainer.progress.untrained, monitor.quality)
            from_first(lambda: _describe(run, config, splits, monitor, trainer))
            try:
                verdict = _train(config, run, trainer, stream, monitor, store)
            except RolledBack:
                continue
            except DivergedError:
                if config.logging.report and is_first():
                    _report_the_end(run)
                raise
        if local_rank() == 0:  # each machine has decoded images of its own where the folder is not shared
            remove_cache(folder)
        done = trainer.progress
        return Outcome(
            folder,
            advised(verdict, config),
            monitor.quality,
            done.untrained,
            done.latest,
            done.best_step,
            trainer.total_steps,
        )


def _start(run: RunFolder, config: RunConfig, trainer: Trainer) -> None:
    """Put the weights that `model.start` names into the untrained model, and their hash into the run folder."""
    rate = config.training.optimizer.learning_rate
    if rate.start > rate.peak and trainer.warmup_steps:
        _log.warning(
            "the warm-up goes down: training.optimizer.learning_rate.start=%g is above its peak=%g; lower it too",
            rate.start,
            rate.peak,
        )
    weights = start_weights(config)
    if weights is None:
        return
    trainer.start_from(weights.context, weights.target)
    digest = weights.digest()
    origin = {"path": str(config.model.start), "format": weights.format, "sha256": digest}
    from_first(lambda: run.write(START, json.dumps(origin, indent=2) + "\n"))
    _log.info("start: encoder and target encoder from %s (%s, sha256 %s)", config.model.start, weights.format, digest)


def _restore(trainer: Trainer, checkpoint: Checkpoint) -> None:
    _log.info("continuing after step %d of %d", checkpoint.step, trainer.total_steps)
    trainer.restore(checkpoint)
    changed = differing(checkpoint.state.get(MADE_WITH, {}), _made_with(trainer))
    if changed:
        _log.warning(
            "this is not what the checkpoint was made with, so the result may differ in its last bits from that of an "
            "undisturbed run: %s",
            "; ".join(changed),
        )


def _made_with(trainer: Trainer) -> dict[str, Any]:
    """What the last bits depend on. The parts of a batch that null leaves open depend on the memory that there is."""
    share = len(slots(trainer.config.batch_size))
    return {**essentials(trainer.device), "micro_batch": min(trainer.config.micro_batch or share, share)}


def _refuse_another_quality(untrained: Mapping[str, float], quality: str) -> None:
    """An accuracy compares with itself alone, and images that got or lost their labels on the way give another one."""
    if untrained and quality not in untrained:
        before = next((name for name in QUALITIES if name in untrained), "another accuracy")
        raise InputError(
            f"the run is judged by {before} so far, and these images would have it judged by {quality}: continue it "
            "with images that have labels, or have none, as those had, or start a new run from it with model.start"
        )


def _train(
    config: RunConfig,
    run: RunFolder,
    trainer: Trainer,
    stream: TrainingStream,
    monitor: Monitor,
    store: CheckpointStore,
) -> Verdict:
    """From where the trainer stands to the end; what was written of later steps is removed."""
    last = trainer.progress.step if trainer.progress.untrained else -1
    unreadable = RowLog(run.path / UNREADABLE)
    from_first(lambda: unreadable.truncate_after(last))
    about = {"seed": config.seed, MADE_WITH: _made_with(trainer)}
    # Shards are no encoder that the first rank could look at on its own.
    gathered = Gathered(monitor, config) if config.logging.report and trainer.batch_loss.engine.sharded else None
    model = trainer.model if gathered is None else gathered.whole
    waiting = Waiting()
    with _writers(config, run.path, last, trainer.progress.evaluated, model, monitor, waiting) as writers:
        dumps = CheckpointStore(run.path / DIVERGED)
        records = Records(store, dumps, writers, unreadable, about, config.training.on_failed_write)
        batches = _batches(stream, trainer, config, run.path / CACHE, waiting)
        verdict = trainer.train(batches, gathered or monitor, records)
        _log.info("of the time of training, %.1f %% was waiting for images", 100 * waiting.share)
        return verdict


def _batches(
    stream: TrainingStream, trainer: Trainer, config: RunConfig, folder: Path, waiting: Waiting
) -> Callable[[int], Generator[Batch, None, None]]:
    """What the trainer asks for batches; the images are decoded when it does, so that a signal may interrupt that."""

    def batches(step: int) -> Generator[Batch, None, None]:
        if step >= trainer.total_steps:
            return
        data, ready = config.data, copy.copy(stream)
        ready.source = cached(stream.source, data.cache.expanduser() if data.cache else folder, data.cache_bytes)
        workers = data.processes
        crops = not isinstance(stream, ViewsStream)  # whose augmentations are made image by image
        on_gpu = trainer.device.type == "cuda"
        if crops and (on_gpu or not workers):
            ready.on_device = device_images(ready.source, data, trainer.device, device_memory(trainer.device))
            workers = 0 if ready.on_device else workers
        yield from waiting.timed(iterate(ready, step, trainer.total_steps, workers, data.worker_timeout, on_gpu))

    return batches


def _announce(config: RunConfig, splits: Splits, trainer: Trainer, folder: Path) -> None:
    """What is about to happen, for the terminal and the run's log."""
    for note in splits.notes:
        _log.info("%s", note)
    images = f"{len(splits.train):,} images"
    images += f" and {len(splits.test):,} to test on" if splits.test else ""
    classes = len(splits.train.classes)
    labels = f"{classes} classes, used to evaluate only" if classes else "no labels"
    _log.info("data: %s, %s", images, labels)
    rows, columns = config.grid
    parts = ", ".join(f"{name} of {_parameters(part)} parameters" for name, part in trainer.model.learned.items())
    _log.info("model: %s, %d x %d patches of %d px", parts, rows, columns, config.model.encoder.patch_size)
    training = config.training
    threads = f", threads: {torch.get_num_threads()}" if trainer.device.type == "cpu" else ""
    ranks = f" on each of {world_size()} ranks" if world_size() > 1 else ""
    _log.info(
        "training: objective %s, %d steps of %d images (%g epochs) in %s on %s%s%s",
        config.objective.name,
        trainer.total_steps,
        training.batch_size,
        training.epochs,
        trainer.precision,
        trainer.device,
        threads,
        ranks,
    )
    if trainer.precision == "bfloat16" and not has_fast_bfloat16(trainer.device):
        _log.warning(
            "%s has no instructions for bfloat16: a step may take many times as long as in float32; for a new run "
            "set training.precision=auto",
            trainer.device,
        )
    _log.info("run folder: %s", folder)


def _parameters(module: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()):,}"


def _describe(run: RunFolder, config: RunConfig, splits: Splits, monitor: Monitor, trainer: Trainer) -> None:
    train, steps = splits.train, trainer.total_steps
    data = {"images": len(train), "classes": list(train.classes), "fingerprint": train.fingerprint, "steps": steps}
    data |= {"quality": monitor.quality, "tested": monitor.count}
    run.write(CONFIG, dump_yaml(config))
    run.write(DATA, json.dumps(data, indent=2, ensure_ascii=False) + "\n")
    if trainer.progress.step < steps:  # else it was trained elsewhere, or by another version
        run.write("environment.json", json.dumps(describe_environment(), indent=2) + "\n")


def _report_the_end(run: RunFolder) -> None:
    """The page of a run that gave up: the one that was written last does not know it."""
    try:
        write_report({run.path.resolve().name: run.path})
    except Exception as error:  # as for every page while a run trains: what ended the run is what has to be said
        _log.warning("report not written (%s: %s)", type(error).__name__, error)


@contextmanager
def _held(run: RunFolder) -> Iterator[None]:
    """The first rank holds the folder and writes its log; the others go on if it could."""
    with ExitStack() as stack:

        def hold() -> None:
            stack.enter_context(run)
            stack.enter_context(_log_file(run.path / LOG))

        from_first(hold)
        yield


def _refuse_different_images(splits: Splits) -> None:
    found = collect(splits.train.fingerprint)
    if len(set(found)) > 1:
        other = next(rank for rank, fingerprint in enumerate(found) if fingerprint != found[0])
        raise InputError(
            f"data: ranks 0 and {other} do not see the same training images (their names or sizes differ); give every "
            "machine the same ones"
        )


@contextmanager
def _writers(
    config: RunConfig,
    folder: Path,
    last: int,
    evaluated: int,
    model: Model | None,
    monitor: Monitor,
    waiting: Waiting,
) -> Iterator[list[MetricsWriter]]:
    """The first rank's writers, closed at the end, also after an error; the others have none.

    last, evaluated: the steps that were taken, and of those the last one whose evaluation counts. model: whose encoders
    the report shows, whole.
    """
    with ExitStack() as stack:
        writers: list[MetricsWriter] = []

        def start() -> None:
            opened = open_writers(config.logging, folder, last, config.model_dump(mode="json"), evaluated)
            if config.logging.report and model is not None:  # after the others: the page shows what they have written
                opened.append(Recorder(folder, config, model, monitor, waiting, last))
            for writer in opened:
                stack.callback(writer.close)
                writers.append(writer)

        from_first(start)
        yield writers


class _LogFile(logging.FileHandler):
    """The run's log; a disk that is full must not cost more than the line."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  the name is logging's
        """Say nothing: what cannot be written is said by what else is written there."""

    def close(self) -> None:
        """Close, also where the last lines do not fit any more."""
        with suppress(OSError):
            super().close()


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """Everything the package logs also goes into the run's train.log, whoever else listens."""
    handler = _LogFile(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    package = logging.getLogger("cjepa")
    level = package.level
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    finally:
        package.setLevel(level)
        package.removeHandler(handler)
        handler.close()
