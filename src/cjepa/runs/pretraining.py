"""`cjepa pretrain`: from a config and an empty folder, or the run that the folder holds, to a trained encoder."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from cjepa.build import CONFIG, build_stream, build_trainer, choose_device, read_config
from cjepa.config import RunConfig, differences, dump_yaml
from cjepa.data import Splits, TrainingStream, iterate, open_source
from cjepa.errors import InputError
from cjepa.evaluation.monitor import Monitor
from cjepa.runs.recording import Recorder
from cjepa.training.checkpoint import CheckpointStore
from cjepa.training.environment import describe_environment
from cjepa.training.health import Verdict
from cjepa.training.metrics import MetricsWriter, open_writers
from cjepa.training.rows import RowLog
from cjepa.training.run_folder import RunFolder
from cjepa.training.trainer import Trainer
from cjepa.types import Batch

_log = logging.getLogger(__name__)

DATA, LOG, UNREADABLE = "data.json", "train.log", "unreadable.jsonl"
FREE_KEYS = ("data.workers:", "data.source.path:", "training.device:", "training.threads:", "logging.")
"""Keys that may change when a run continues: they name the machine, not the run."""


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


def pretrain(config: RunConfig, folder: Path) -> Outcome:
    """Train in `folder`, or continue the run that it holds. Raises the errors of cjepa.errors."""
    with RunFolder(folder) as run, _log_file(folder / LOG):
        _refuse_another_config(config, folder)
        device = choose_device(config.training.device)
        if config.training.threads is not None:
            torch.set_num_threads(config.training.threads)
        splits = open_source(config.data, config.seed)
        _refuse_other_images(splits, folder)
        stream = build_stream(config, splits)
        trainer = build_trainer(config, len(splits.train), device)
        store = CheckpointStore(run.checkpoints)
        store.remove_leftovers()
        checkpoint = store.newest()
        _announce(config, splits, trainer, folder)
        if checkpoint is not None:
            _log.info("continuing after step %d of %d", checkpoint.step, trainer.total_steps)
            trainer.restore(checkpoint)
        monitor = Monitor(config.monitor, config.data, splits, stream, device, config.training.precision)
        _describe(run, config, splits, monitor, trainer.total_steps)
        last = -1 if checkpoint is None else checkpoint.step
        unreadable = RowLog(folder / UNREADABLE)
        unreadable.truncate_after(last)
        writers = open_writers(config.logging, folder, last, config.model_dump(mode="json"))
        if config.logging.report:  # after the others, because the page shows what they have written
            writers.append(Recorder(folder, config, trainer.model, monitor, last))
        with _closing_all(writers):
            verdict = trainer.train(_batches(stream, trainer, config), monitor, store, writers, unreadable)
        done = trainer.progress
        return Outcome(
            folder, verdict, monitor.quality, done.untrained, done.latest, done.best_step, trainer.total_steps
        )


def _batches(stream: TrainingStream, trainer: Trainer, config: RunConfig) -> Callable[[int], Iterator[Batch]]:
    return lambda step: iterate(stream, step, trainer.total_steps, config.data.workers)


def _refuse_another_config(config: RunConfig, folder: Path) -> None:
    if not (folder / CONFIG).exists():
        return
    changed = [line for line in differences(read_config(folder), config) if not line.startswith(FREE_KEYS)]
    if changed:
        raise InputError(
            f"{folder} holds a run of another configuration:\n  "
            + "\n  ".join(changed)
            + "\nContinue it with its own settings, or choose another folder with --out"
        )


def _refuse_other_images(splits: Splits, folder: Path) -> None:
    path = folder / DATA
    if path.exists() and json.loads(path.read_text())["fingerprint"] != splits.train.fingerprint:
        raise InputError(
            f"{folder}: the training images are not those that the run began with ({path} has their fingerprint); "
            "bring them back, or choose another folder with --out"
        )


def _announce(config: RunConfig, splits: Splits, trainer: Trainer, folder: Path) -> None:
    """What is about to happen, for the terminal and the run's log."""
    for note in splits.notes:
        _log.info("%s", note)
    images = f"{len(splits.train):,} images"
    images += f" and {len(splits.test):,} to test on" if splits.test else ""
    classes = len(splits.train.classes)
    labels = f"{classes} classes, used to evaluate only" if classes else "no labels"
    _log.info("data: %s, %s", images, labels)
    encoder, model = config.model.encoder, trainer.model
    rows, columns = config.grid
    _log.info(
        "model: encoder of %s parameters on %d x %d patches of %d px, predictor of %s",
        _parameters(model.encoder),
        rows,
        columns,
        encoder.patch_size,
        _parameters(model.predictor),
    )
    training = config.training
    threads = f", threads: {torch.get_num_threads()}" if trainer.device.type == "cpu" else ""
    _log.info(
        "training: objective %s, %d steps of %d images (%g epochs) in %s on %s%s",
        config.objective.name,
        trainer.total_steps,
        training.batch_size,
        training.epochs,
        training.precision,
        trainer.device,
        threads,
    )
    _log.info("run folder: %s", folder)


def _parameters(module: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()):,}"


def _describe(run: RunFolder, config: RunConfig, splits: Splits, monitor: Monitor, steps: int) -> None:
    train = splits.train
    data = {"images": len(train), "classes": list(train.classes), "fingerprint": train.fingerprint, "steps": steps}
    data |= {"quality": monitor.quality, "tested": monitor.count}
    run.write(CONFIG, dump_yaml(config))
    run.write(DATA, json.dumps(data, indent=2, ensure_ascii=False) + "\n")
    run.write("environment.json", json.dumps(describe_environment(), indent=2) + "\n")


@contextmanager
def _closing_all(writers: list[MetricsWriter]) -> Iterator[None]:
    """Close every writer at the end, also after an error."""
    with ExitStack() as stack:
        for writer in writers:
            stack.callback(writer.close)
        yield


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """Everything the package logs also goes into the run's train.log, whoever else listens."""
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
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
