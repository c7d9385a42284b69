"""`cjepa plan`: what a run needs on a device, and how long it takes, before any hour is spent."""

import gc
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cjepa.build import build_trainer, choose_device, engine_for, footprint_of, in_precision, sampler_of
from cjepa.config import RunConfig
from cjepa.data import HuggingFaceConfig, TorchvisionConfig, open_source, recognised
from cjepa.errors import InputError
from cjepa.models.kernels import chosen_precision
from cjepa.objectives import AnyObjectiveConfig, IJepaConfig, TwoViewsConfig
from cjepa.objectives.projector import ProjectorConfig
from cjepa.objectives.two_views import VicregConfig
from cjepa.training.device_memory import CUDA_CONTEXT, USABLE, device_memory, occupied_memory
from cjepa.training.footprint import Footprint
from cjepa.types import Batch, Precision

GIB = float(1 << 30)
MEMORY = {"V100": 16, "T4": 16, "A10": 24, "RTX4090": 24, "L4": 24, "A100": 80, "H100": 80, "H200": 141, "B200": 180}
"""GiB of some accelerators, as their makers state them."""
DENSE = {
    "A10": 125e12,
    "RTX4090": 165e12,
    "L4": 121e12,
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
}
"""Dense operations per second in bfloat16, as their makers state them; the others have no bfloat16."""
TIMED_IMAGES, MORE_IMAGES, TIMED_STEPS = 8, 4, 3
"""Images of the first step that is timed, times as many in the next, and how many steps are; one goes before them."""
BRIEF = 0.5
"""Seconds of a step below which one of more images is timed: a few images leave a GPU, or the optimizer, most of it."""


@dataclass(frozen=True)
class Plan:
    """What a run needs for each of its ranks.

    seconds_per_image: timed where the device is this machine's; else the least that its maker's figure allows, or None
    where there is none.
    """

    device: str
    precision: Precision
    ranks: int
    engine: str
    footprint: Footprint
    batch_size: int
    micro_batch: int
    checkpoint_activations: bool
    process: float
    memory: float
    available: float
    seconds_per_image: float | None
    timed: bool
    images: int | None
    epochs: float

    @property
    def seconds_per_epoch(self) -> float | None:
        """With all ranks, communication and loading left out."""
        if self.seconds_per_image is None or self.images is None:
            return None
        return self.seconds_per_image * self.images / self.ranks


def plan(config: RunConfig, device: str, ranks: int, images: int | None) -> Plan:
    """The plan of a run on so many devices of one kind. device: auto, cpu, cuda, or cuda:NAME of one that is elsewhere.

    images: of an epoch, where that is known.

    InputError for a batch that the ranks cannot share and for a device that is neither here nor known.
    """
    batch = config.training.batch_size
    if batch % ranks:
        raise InputError(
            f"training.batch_size={batch} cannot be divided among {ranks} ranks; use a multiple of {ranks}"
        )
    memory = _known(device)
    here = None if memory else choose_device(device)
    if here is not None and config.training.threads:
        torch.set_num_threads(config.training.threads)
    kind = "cuda" if here is None else here.type
    fastest = DENSE.get(device.removeprefix("cuda:"))
    precision = config.training.precision
    if here is not None:
        precision = chosen_precision(precision, here)
    elif precision == "auto":
        precision = "bfloat16" if fastest else "float32"
    config = in_precision(config, precision)
    process = CUDA_CONTEXT if here is None else _loaded(config, here)
    available = memory or device_memory(here or torch.device("cpu"))
    needs, share = footprint_of(config, kind), batch // ranks
    engine, shards = engine_for(config, needs, ranks, USABLE * available - process)
    fitting = needs.micro_batch(share, USABLE * available - process, shards)
    micro = min(config.training.micro_batch or fitting, share)
    seconds = None
    if here is not None:
        # not in shards: what is timed is one rank
        seconds = _seconds_per_image(config, here, min(micro, needs.micro_batch(share, USABLE * available - process)))
    elif fastest and precision == "bfloat16":
        seconds = needs.operations / fastest
    return Plan(
        device=device if here is None else str(here),
        precision=precision,
        ranks=ranks,
        engine=engine,
        footprint=needs,
        batch_size=batch,
        micro_batch=micro,
        checkpoint_activations=config.training.checkpoint_activations,
        process=process,
        memory=process + needs.memory(share, micro, shards),
        available=available,
        seconds_per_image=seconds,
        timed=here is not None,
        images=images,
        epochs=config.training.epochs,
    )


def images_here(config: RunConfig) -> int | None:
    """How many images the run trains on, where they lie on this machine; nothing is downloaded for it."""
    try:
        if isinstance(recognised(config.data.source), HuggingFaceConfig | TorchvisionConfig):
            return None
        return len(open_source(config.data, config.seed).train)
    except InputError:  # a plan is made before there are images, too
        return None


def _known(device: str) -> float | None:
    """Bytes of an accelerator that is named and not here; None for a device of this machine."""
    name = device.removeprefix("cuda:")
    if name == device or name.isdigit():
        return None
    if name not in MEMORY:
        raise InputError(f"--device {device}: it is cpu, cuda, cuda:NUMBER, or one of cuda:{', cuda:'.join(MEMORY)}")
    return MEMORY[name] * GIB


def _loaded(config: RunConfig, device: torch.device) -> float:
    """Bytes of this process before its model is built, but after all that a step loads: libraries, code, kernels."""
    if device.type == "cuda":
        return occupied_memory(device)
    # A model that leaves nothing behind: what it takes and gives back would be counted twice.
    narrow = {"width": 16, "depth": 1, "heads": 2}
    encoder = config.model.encoder.model_copy(update=narrow)
    predictor = config.model.predictor.model_copy(update=narrow)
    model = config.model.model_copy(update={"encoder": encoder, "predictor": predictor})
    objective: AnyObjectiveConfig = IJepaConfig()
    if isinstance(config.objective, TwoViewsConfig):  # which may have a grid that is too small for masks
        objective = VicregConfig(projector=ProjectorConfig(depth=0))
    small = config.model_copy(update={"model": model, "objective": objective})
    _take_steps(small, device, 2, [0, 0])
    return occupied_memory(device)


def _seconds_per_image(config: RunConfig, device: torch.device, most: int) -> float:
    """Of a step on this device: the median of a few, of noise; of so many images that it is not brief, or of most."""
    images = min(TIMED_IMAGES, most)
    while True:
        seconds = statistics.median(_take_steps(config, device, images, range(1 + TIMED_STEPS))[1:])
        if seconds > BRIEF or images == most:
            return seconds / images
        gc.collect()  # a trainer refers to itself, and the next wants its memory
        images = min(MORE_IMAGES * images, most)


def _take_steps(
    config: RunConfig, device: torch.device, images: int, steps: Sequence[int], micro_batch: int | None = None
) -> list[float]:
    """Seconds of each of some steps with this many images of noise, and the masks of these steps of the run."""
    training = config.training.model_copy(
        update={"batch_size": images, "micro_batch": micro_batch or images, "parallel": "none"}
    )
    small = config.model_copy(update={"training": training})
    trainer = build_trainer(
        small, max(round(100 * images * (1 + training.optimizer.learning_rate.warmup_epochs)), 1), device
    )
    sampler = sampler_of(small)
    seconds = []
    for step in steps:
        pixels = torch.randint(0, 256, (images, 3, *config.data.size), dtype=torch.uint8)
        second = pixels.flip(0) if isinstance(config.objective, TwoViewsConfig) else None
        batch = Batch(pixels, sampler(step, 0, images), torch.arange(images), second=second)
        started = time.perf_counter()
        trainer.take_step(batch)  # reads the loss, so that a GPU has finished
        seconds.append(time.perf_counter() - started)
    return seconds
