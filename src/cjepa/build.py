"""The composition root: from a RunConfig, or from the run folder that holds one, to objects."""

from functools import partial
from pathlib import Path
from typing import Literal

import torch

from cjepa.config import RunConfig, load_yaml, parse
from cjepa.data import Splits, TrainingStream
from cjepa.errors import InputError
from cjepa.masking import build_sampler
from cjepa.models import JEPA, VisionTransformer
from cjepa.models.pretrained import PretrainedEncoder, normalise
from cjepa.objectives import build_objective
from cjepa.training.checkpoint import Checkpoint, CheckpointStore
from cjepa.training.state import Progressed
from cjepa.training.trainer import Trainer

CONFIG, CHECKPOINTS = "config.yaml", "checkpoints"

Which = Literal["target", "context"]
When = Literal["last", "best"]


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
        raise InputError(f"device {name} cannot be used here: {reason}; use auto or cpu") from error
    return device


def read_config(run: Path) -> RunConfig:
    """The resolved config of a run folder."""
    path = run / CONFIG
    if not path.is_file():
        raise InputError(f"{run} is not a run folder: it has no {CONFIG}; give the folder that --out named")
    return parse(RunConfig, load_yaml(path))


def find_checkpoint(run: Path, when: When) -> Checkpoint:
    """The last checkpoint of a run folder, or the one with the best health metric."""
    store = CheckpointStore(run / CHECKPOINTS)
    newest = store.newest()
    if newest is None:
        raise InputError(f"{run} has no checkpoint yet; wait for the first one, or start the run again")
    return newest if when == "last" else store.load(Progressed.of(newest).best_step)


def build_encoder(config: RunConfig, checkpoint: Checkpoint | None, which: Which = "target") -> PretrainedEncoder:
    """The encoder of a checkpoint, or without one the untrained encoder, ready to be used."""
    if checkpoint is None:
        weights = build_model(config).encoder
    else:
        weights = VisionTransformer(config.model.encoder)
        name = "encoder" if which == "context" else "target_encoder"
        weights.load_state_dict(checkpoint.tensors(name, like=weights.state_dict()))
    encoder = PretrainedEncoder(weights, config.data.size, config.data.mean, config.data.std)
    return encoder.requires_grad_(False).eval()


def load_encoder(
    path: str | Path, *, encoder: Which = "target", checkpoint: Literal["last", "best", "untrained"] = "last"
) -> PretrainedEncoder:
    """The encoder of a run folder: images [B, 3, H, W] -> patch embeddings [B, N, D]; `.embed` -> [B, D].

    Images are uint8, or floats that `normalise` has prepared; any size that the patch size divides. encoder: the
    target encoder, which is what the paper evaluates, or the context encoder. checkpoint: the last one, the one with
    the best health metric, or untrained for the random start. Raises InputError without a run or checkpoint and
    NoValidCheckpointError when none verifies.
    """
    run = Path(path)
    config = read_config(run)
    found = None if checkpoint == "untrained" else find_checkpoint(run, checkpoint)
    return build_encoder(config, found, encoder)
