"""The composition root: from a RunConfig to objects. Nothing else sees the whole config."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from cjepa.config import RunConfig
from cjepa.config_io import differences, parse
from cjepa.config_yaml import dump_yaml, load_yaml
from cjepa.data import Splits, TrainingStream, iterate, open_source
from cjepa.errors import InputError
from cjepa.evaluation.monitor import Monitor
from cjepa.masking import build_sampler
from cjepa.models import JEPA, VisionTransformer
from cjepa.models.pretrained import PretrainedEncoder, normalise
from cjepa.objectives import build_objective
from cjepa.training.checkpoint import Checkpoint, CheckpointStore
from cjepa.training.environment import describe_environment
from cjepa.training.health import Verdict
from cjepa.training.metrics import MetricsWriter, open_writers
from cjepa.training.rows import RowLog
from cjepa.training.run_folder import RunFolder
from cjepa.training.trainer import Trainer
from cjepa.types import Batch

_log = logging.getLogger(__name__)

CONFIG, DATA, CHECKPOINTS, UNREADABLE = "config.yaml", "data.json", "checkpoints", "unreadable.jsonl"
FREE_KEYS = ("data.workers:", "data.source.path:", "training.device:", "training.threads:", "logging.")
"""Keys that may change when a run continues: they name the machine, not the run."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its verdict, and the values of the untrained and of the trained encoder."""

    verdict: Verdict
    untrained: dict[str, float]
    trained: dict[str, float]
    best_step: int
    steps: int


def pretrain(config: RunConfig, folder: Path) -> Outcome:
    """Train in `folder`, or continue the run that it holds. Raises the errors of cjepa.errors."""
    with RunFolder(folder) as run, _log_file(folder / "train.log"):
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
        if checkpoint is not None:
            _log.info("continuing after step %d of %d", checkpoint.step, trainer.total_steps)
            trainer.restore(checkpoint)
        _describe(run, config, splits)
        last = -1 if checkpoint is None else checkpoint.step
        unreadable = RowLog(folder / UNREADABLE)
        unreadable.truncate_after(last)
        monitor = Monitor(config.monitor, config.data, splits, stream, device, config.training.precision)
        with closing_all(open_writers(config.logging, folder, last, config.model_dump(mode="json"))) as writers:
            verdict = trainer.train(_batches(stream, trainer, config), monitor, store, writers, unreadable)
        progress = trainer.progress
        return Outcome(verdict, progress.untrained, progress.latest, progress.best_step, trainer.total_steps)


def build_stream(config: RunConfig, splits: Splits) -> TrainingStream:
    """The batches of a run, with their masks."""
    batch_size = config.training.batch_size
    sampler = build_sampler(config.masking, config.grid, config.seed, batch_size)
    return TrainingStream(splits.train, config.data, sampler, batch_size, config.seed)


def build_trainer(config: RunConfig, images: int, device: torch.device) -> Trainer:
    """Model, objective and optimizer of a run at their untrained start."""
    model = build_model(config)
    objective = build_objective(config.objective, config.model.encoder.width, config.seed)
    return Trainer(
        config.training,
        model,
        objective,
        partial(normalise, mean=config.data.mean, std=config.data.std),
        images,
        config.data.max_unreadable_share,
        device,
    )


def build_model(config: RunConfig) -> JEPA:
    """The untrained model of a run: its weights are a function of the seed."""
    model = JEPA(config.model, config.grid)
    model.initialise(config.seed)
    return model


def choose_device(name: str) -> torch.device:
    """The device of a name; auto takes a GPU if there is one. InputError when it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"training.device={name} cannot be used here: {reason}; use auto or cpu") from error
    return device


def read_config(run: Path) -> RunConfig:
    """The resolved config of a run folder."""
    path = run / CONFIG
    if not path.is_file():
        raise InputError(f"{run} is not a run folder: it has no {CONFIG}; give the folder that --out named")
    return parse(RunConfig, load_yaml(path))


def load_encoder(
    path: str | Path,
    *,
    encoder: Literal["target", "context"] = "target",
    checkpoint: Literal["last", "best", "untrained"] = "last",
) -> PretrainedEncoder:
    """The encoder of a run folder: images [B, 3, H, W] -> patch embeddings [B, N, D]; `.embed` -> [B, D].

    Images are uint8, or floats that `normalise` has prepared; any size that the patch size divides. encoder: the
    target encoder, which is what the paper evaluates, or the context encoder. checkpoint: the last one, the one with
    the best health metric, or untrained for the random start. Raises InputError without a run or checkpoint and
    NoValidCheckpointError when none verifies.
    """
    run = Path(path)
    config = read_config(run)
    if checkpoint == "untrained":
        weights = build_model(config).encoder
    else:
        weights = VisionTransformer(config.model.encoder)
        saved = _find_checkpoint(CheckpointStore(run / CHECKPOINTS), run, checkpoint)
        weights.load_state_dict(saved.tensors("encoder" if encoder == "context" else "target_encoder"))
    return PretrainedEncoder(weights.requires_grad_(False).eval(), config.data.size, config.data.mean, config.data.std)


def _find_checkpoint(store: CheckpointStore, run: Path, which: Literal["last", "best"]) -> Checkpoint:
    newest = store.newest()
    if newest is None:
        raise InputError(f"{run} has no checkpoint yet; wait for the first one, or start the run again")
    return newest if which == "last" else store.load(newest.state["progress"]["best_step"])


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


def _describe(run: RunFolder, config: RunConfig, splits: Splits) -> None:
    for note in splits.notes:
        _log.info("%s", note)
    train = splits.train
    data = {"images": len(train), "classes": list(train.classes), "fingerprint": train.fingerprint}
    run.write(CONFIG, dump_yaml(config))
    run.write(DATA, json.dumps(data, indent=2, ensure_ascii=False) + "\n")
    run.write("environment.json", json.dumps(describe_environment(), indent=2) + "\n")


@contextmanager
def closing_all(writers: list[MetricsWriter]) -> Iterator[list[MetricsWriter]]:
    """Close every writer at the end, also after an error."""
    with ExitStack() as stack:
        for writer in writers:
            stack.callback(writer.close)
        yield writers


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """Everything the package logs also goes into the run's train.log."""
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    package = logging.getLogger("cjepa")
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)
        handler.close()
