"""The composition root: from a RunConfig, or from the run folder that holds one, to objects."""

import math
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from cjepa.config import RunConfig, load_yaml, parse
from cjepa.data import Splits, TrainingStream, ViewsStream
from cjepa.errors import InputError
from cjepa.masking import build_sampler, no_masks
from cjepa.models import JEPA, Model, TwoViews, VisionTransformer
from cjepa.models.kernels import chosen_precision
from cjepa.models.pretrained import PretrainedEncoder, normalise
from cjepa.models.vit import EncoderConfig
from cjepa.models.weights import Preparation, Weights, holds_weights, open_weights
from cjepa.objectives import IJepaConfig, SimsiamConfig, TwoViewsConfig, build_objective
from cjepa.ranks import largest, launched, local_count, local_rank, slots, world_size
from cjepa.training.checkpoint import Checkpoint, CheckpointStore
from cjepa.training.config import TrainingConfig
from cjepa.training.device_memory import USABLE, device_memory, occupied_memory
from cjepa.training.footprint import Footprint, Lengths, footprint, predictor_tokens, views_footprint
from cjepa.training.parallel import Parallel
from cjepa.training.state import Progressed
from cjepa.training.trainer import Trainer
from cjepa.types import Masks, MaskSampler, Precision

CONFIG, CHECKPOINTS = "config.yaml", "checkpoints"
_GIB = 1 << 30
_PROBED = 32  # steps whose masks are looked at for the longest sequences

Which = Literal["target", "context"]
When = Literal["last", "best"]


def build_stream(config: RunConfig, splits: Splits) -> TrainingStream:
    """This rank's part of the batches of a run, with its masks."""
    own = slots(config.training.batch_size)
    return _stream(config, splits, own.start, len(own))


def build_probe(config: RunConfig, splits: Splits) -> TrainingStream:
    """The first slots of the batches of a run, as many as the monitor takes at once; the same on every rank."""
    return _stream(config, splits, 0, min(config.training.batch_size, config.monitor.batch_size))


def _stream(config: RunConfig, splits: Splits, first_slot: int, slots: int) -> TrainingStream:
    stream = ViewsStream if isinstance(config.objective, TwoViewsConfig) else TrainingStream
    batch_size = config.training.batch_size
    return stream(splits.train, config.data, sampler_of(config), batch_size, config.seed, first_slot, slots)


def build_trainer(config: RunConfig, images: int, device: torch.device) -> Trainer:
    """Model, objective and optimizer of a run at their untrained start."""
    model = build_model(config)
    objective = build_objective(config.objective, config.model.encoder.width, config.seed)
    return Trainer(
        _fitted(config, device),
        model,
        objective,
        partial(normalise, mean=config.data.mean, std=config.data.std),
        images,
        config.data.max_unreadable_share,
        device,
    )


def longest_step(config: RunConfig) -> int:
    """The one with the most tokens among the first steps of a run: it needs the most memory."""
    sampler = sampler_of(config)

    def tokens(step: int) -> int:
        count, _, _ = predictor_tokens(config.model.predictor, _lengths(config, sampler(step, 0, 1)))
        return count

    return max(range(_PROBED), key=tokens)


def sampler_of(config: RunConfig) -> MaskSampler:
    """The masks of a run; those of two views, which nobody reads, are empty."""
    if isinstance(config.objective, TwoViewsConfig):
        return no_masks
    return build_sampler(config.masking, config.grid, config.seed, config.training.batch_size)


def _lengths(config: RunConfig, masks: Masks) -> Lengths:
    return Lengths(config.grid[0] * config.grid[1], masks.context.shape[1], *masks.targets.shape[1:])


def footprint_of(config: RunConfig, kind: str) -> Footprint:
    """What a step of a run needs on a kind of device (cpu, cuda, mps), in the longest of its first steps."""
    training, objective, patches = config.training, config.objective, config.grid[0] * config.grid[1]
    precision = chosen_precision(training.precision, torch.device(kind))
    how = precision, kind != "cpu", training.checkpoint_activations
    if isinstance(objective, TwoViewsConfig):
        hidden = objective.hidden if isinstance(objective, SimsiamConfig) else None
        return views_footprint(config.model.encoder, objective.projector, hidden, patches, *how)
    lengths = _lengths(config, sampler_of(config)(longest_step(config), 0, 1))
    projector = None if isinstance(objective, IJepaConfig) else objective.projector
    return footprint(config.model, projector, lengths, *how)


def engine_for(config: RunConfig, needs: Footprint, ranks: int, memory: float) -> tuple[Parallel, int]:
    """The engine of a run on so many ranks, and over how many of them its state is divided.

    auto: whole copies, unless a single image would not fit beside one into so many bytes.
    """
    parallel = config.training.parallel
    if ranks == 1:
        return "none", 1
    fits = needs.memory(config.training.batch_size // ranks, 1) <= memory
    if parallel == "fsdp" or (parallel == "auto" and not fits):
        return "fsdp", ranks
    return "ddp", 1


def _fitted(config: RunConfig, device: torch.device) -> TrainingConfig:
    """The training with an engine and a micro-batch that fit the device, where the config leaves them open."""
    training = config.training
    if training.micro_batch is not None and training.parallel != "auto":
        return training
    memory = _room(device)
    needs = footprint_of(config, device.type)
    engine, shards = engine_for(config, needs, world_size(), memory)
    if 1 < local_count() < shards:
        shards = local_count()
    share = len(slots(training.batch_size))
    micro_batch = training.micro_batch or needs.micro_batch(share, memory, shards)
    parallel = training.parallel if training.parallel != "auto" else engine
    return training.model_copy(update={"micro_batch": micro_batch, "parallel": parallel})


def _room(device: torch.device) -> float:
    """Bytes that a run is planned for: those of the rank that has the fewest, since all must take as many parts.

    What a process has in memory differs a little from start to start, but the parts of a batch should not, since
    their sums have other last bits: it counts in whole GiB.
    """
    occupied = occupied_memory(device)
    if device.type != "cuda":
        occupied = math.ceil(occupied / _GIB) * _GIB
    [missing] = largest([-int(USABLE * device_memory(device) - occupied)])
    return float(-missing)


def build_model(config: RunConfig) -> Model:
    """The untrained model of a run: its weights are a function of the seed."""
    two_views = isinstance(config.objective, TwoViewsConfig)
    model = TwoViews(config.model) if two_views else JEPA(config.model, config.grid)
    model.initialise(config.seed)
    return model


def read_weights(path: Path, when: When = "last", heads: int | None = None) -> Weights:
    """Both encoders of a run's checkpoint, or of a file or folder of weights; InputError for what does not fit."""
    if holds_weights(path):
        return open_weights(path, heads)
    config = read_config(path)
    checkpoint = find_checkpoint(path, when)
    tensors = checkpoint.tensors("target_encoder"), checkpoint.tensors("encoder")
    format_, prepared = f"run, step {checkpoint.step}", _preparation(config)
    return Weights(format_, config.model.encoder, prepared, *tensors, states_normalisation=True)


def start_weights(config: RunConfig) -> Weights | None:
    """The weights that `model.start` names, if it names any.

    InputError when they are not of the run's encoder, or state another normalisation of images than the run's.
    """
    if config.model.start is None:
        return None
    wanted = config.model.encoder
    found = read_weights(config.model.start.expanduser(), heads=wanted.heads)
    differing = [
        f"model.encoder.{key}={getattr(wanted, key)}, but the weights are of {getattr(found.config, key)}"
        for key in ("width", "depth", "heads", "patch_size", "mlp_ratio", "position_scale")
        if not math.isclose(getattr(wanted, key), getattr(found.config, key), rel_tol=1e-6)
    ]
    if differing:
        raise InputError(f"model.start: {config.model.start} is of another encoder:\n  " + "\n  ".join(differing))
    if found.states_normalisation:
        _refuse_another_normalisation(config, found.preparation)
    return found


def _refuse_another_normalisation(config: RunConfig, known: Preparation) -> None:
    """Other means or deviations are other images to an encoder: it would begin worse than it is, without a word."""
    ours, theirs = (*config.data.mean, *config.data.std), (*known.mean, *known.std)
    if not all(math.isclose(*pair, rel_tol=1e-6, abs_tol=1e-6) for pair in zip(ours, theirs, strict=True)):
        raise InputError(
            f"model.start: {config.model.start} was trained with images of another normalisation than data.mean="
            f"{list(config.data.mean)} and data.std={list(config.data.std)}; give its own:\n"
            f"  'data.mean={list(known.mean)}' 'data.std={list(known.std)}'"
        )


def choose_device(name: str) -> torch.device:
    """The device of a name; auto takes a GPU if there is one, each rank its own. InputError when it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and launched() > 1:
        name = f"cuda:{local_rank()}"
    elif name.startswith("cuda:") and local_count() > 1:
        raise InputError(
            f"device {name}: the {local_count()} ranks of this machine need a GPU each; use cuda, and the environment "
            "variable CUDA_VISIBLE_DEVICES to choose among the GPUs"
        )
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it holds shapes, but no numbers")
        torch.empty(1, device=device)
        if device.index is not None and device.type == "cuda":  # without a number it is the current one already
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError, ImportError) as error:  # the last for devices of packages that are not here
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name} cannot be used here: {reason}; use auto or cpu") from error
    return device


def in_precision(config: RunConfig, precision: Precision) -> RunConfig:
    """The same run in this precision."""
    return config.model_copy(update={"training": config.training.model_copy(update={"precision": precision})})


def read_config(run: Path) -> RunConfig:
    """The resolved config of a run folder."""
    path = run / CONFIG
    if not path.is_file():
        raise InputError(f"{run} is not a run folder: it has no {CONFIG}; give the --out of cjepa pretrain")
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
        return untrained_encoder(config.model.encoder, _preparation(config), config.seed)
    weights = VisionTransformer(config.model.encoder)
    name = "encoder" if which == "context" else "target_encoder"
    weights.load_state_dict(checkpoint.tensors(name, like=weights.state_dict()))
    return _prepared(weights, _preparation(config))


def untrained_encoder(config: EncoderConfig, preparation: Preparation, seed: int) -> PretrainedEncoder:
    """The encoder that a run of any objective starts from, a function of the seed."""
    weights = VisionTransformer(config)
    weights.initialise(torch.Generator().manual_seed(seed))
    return _prepared(weights, preparation)


def _prepared(weights: VisionTransformer, how: Preparation) -> PretrainedEncoder:
    encoder = PretrainedEncoder(weights, how.image_size, how.mean, how.std, how.evaluation_crop)
    return encoder.requires_grad_(False).eval()


def _preparation(config: RunConfig) -> Preparation:
    data = config.data
    return Preparation(data.size, data.mean, data.std, data.evaluation_crop)


def load_encoder(
    path: str | Path,
    *,
    encoder: Which = "target",
    checkpoint: Literal["last", "best", "untrained"] = "last",
    heads: int | None = None,
) -> PretrainedEncoder:
    """The encoder of a run, an export or foreign weights: images [B, 3, H, W] -> patches [B, N, D]; `.embed` -> [B, D].

    path: a run folder; what `cjepa export` wrote as safetensors, transformers or timm; a folder of transformers'
    IJepaModel; an I-JEPA checkpoint (.pth.tar) or other state dictionary of a vision transformer without class token
    and with sin-cos positions. Nothing in a file is run. Images are uint8, or floats that `normalise` has prepared;
    any size that the patch size divides. encoder: the target encoder, which is what the paper evaluates, or the
    context encoder. checkpoint, of a run: the last one, the one with the best health metric, or untrained for the
    random start. heads: number of attention heads, where a file does not name it and its width is that of no named
    size. Raises InputError without a run, a checkpoint or weights that fit, and lists what does not;
    NoValidCheckpointError when no checkpoint verifies.
    """
    place = Path(path)
    if holds_weights(place):
        return PretrainedEncoder.of(open_weights(place, heads), encoder)
    config = read_config(place)
    found = None if checkpoint == "untrained" else find_checkpoint(place, checkpoint)
    return build_encoder(config, found, encoder)
