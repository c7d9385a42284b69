"""What the ranks of the tests do; each function is called on every rank, from a process that has no test in it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import torch
from pydantic import TypeAdapter
from torch import Tensor
from torch.distributed.tensor import DTensor

from cjepa.data import TrainingStream, ViewsStream
from cjepa.data.config import DataConfig
from cjepa.errors import InputError
from cjepa.masking import MultiblockConfig, build_sampler
from cjepa.models import JEPA, ModelConfig, TwoViews
from cjepa.models.pretrained import normalise
from cjepa.objectives import AnyObjectiveConfig, ObjectiveConfig, TwoViewsConfig, build_objective
from cjepa.ranks import rank, slots
from cjepa.training.batch_loss import BatchLoss
from cjepa.training.parallel import Parallel, start_engine
from tests.training.conftest import Textures

CPU = torch.device("cpu")
BATCH = 12
"""Images of the global batch: 1, 2, 3 and 4 ranks divide it."""
OBJECTIVES = [variant().name for variant in get_args(get_args(ObjectiveConfig)[0])]


@dataclass(frozen=True)
class Case:
    """One way to take the gradient of one batch."""

    objective: str
    parallel: Parallel = "auto"
    norm: str = "batch"
    attention: str = "full"
    targets: str = "layer"
    target_gradient: bool = False
    micro_batch: int | None = None
    step: int = 3
    bfloat16: bool = False


@dataclass(frozen=True)
class Found:
    """Loss, terms and gradients by name, whole and in float64."""

    loss: float
    terms: Mapping[str, float]
    gradients: Mapping[str, Tensor]
    samples: list[int]


def gradient_of(case: Case) -> Found:
    """Loss and gradient of this case, from this rank's slots of the batch: in float64, or in float32 with autocast."""
    config = objective_config(case)
    two_views = isinstance(config, TwoViewsConfig)
    model = TwoViews(model_config(case)) if two_views else JEPA(model_config(case), (6, 6))
    model.initialise(0)
    objective = build_objective(config, 16, seed=0)
    with torch.no_grad():  # else the average equals the encoder, and a mistake between the two would not show
        for parameter in model.target_encoder.parameters():
            parameter.mul_(1.1)
    if not case.bfloat16:
        model, objective = model.double(), objective.double()
    engine = start_engine(case.parallel, model, objective, CPU)
    prepare = in_float32 if case.bfloat16 else in_float64
    batch_loss = BatchLoss(model, objective, prepare, engine, CPU, case.bfloat16, case.micro_batch)
    batch = stream_of_this_rank(ViewsStream if two_views else TrainingStream)[case.step]
    loss = batch_loss.backward(batch, case.step)
    named = {**dict(model.named_parameters()), **{f"objective.{k}": p for k, p in objective.named_parameters()}}
    gradients = {name: whole(p.grad) for name, p in named.items() if p.grad is not None}
    terms = {name: float(term) for name, term in loss.terms.items()}
    return Found(float(loss.total), terms, gradients, batch.samples.tolist())


def gradients_of(cases: list[Case]) -> list[Found]:
    """Several cases, one after the other."""
    return [gradient_of(case) for case in cases]


def refused_on_unequal_machines() -> str:
    """What FSDP says on three ranks, of which two share a machine."""
    os.environ["LOCAL_WORLD_SIZE"] = "1" if rank() == 2 else "2"
    try:
        gradient_of(Case("ijepa", "fsdp"))
    except InputError as error:
        return str(error)
    return "nothing"


def objective_config(case: Case) -> AnyObjectiveConfig:
    """The objective with a narrow projector, and a beta that shows."""
    values: dict[str, object] = {"name": case.objective}
    if case.objective != "ijepa":
        values |= {"projector": {"depth": 3, "width": 24, "norm": case.norm}}
    config: AnyObjectiveConfig = TypeAdapter(ObjectiveConfig).validate_python(values)
    return config.model_copy(update={"beta": 1.0}) if "beta" in type(config).model_fields else config


def model_config(case: Case) -> ModelConfig:
    return ModelConfig.model_validate(
        {
            "encoder": {"width": 16, "depth": 2, "heads": 2, "patch_size": 4},
            "predictor": {"width": 16, "depth": 2, "attention": case.attention},
            "target": {"normalization": case.targets, "gradient": case.target_gradient},
        }
    )


def stream_of_this_rank(kind: type[TrainingStream]) -> TrainingStream:
    """Crops or views, and masks, of 12 of 40 images, or of this rank's share of them."""
    config = DataConfig.model_validate({"source": {"name": "folder", "path": "unused"}, "image_size": 24})
    sampler = build_sampler(MultiblockConfig(), (6, 6), 0, BATCH)
    own = slots(BATCH)
    return kind(Textures(per_class=10, side=24), config, sampler, BATCH, 0, own.start, len(own))


def in_float32(images: Tensor) -> Tensor:
    return normalise(images, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def in_float64(images: Tensor) -> Tensor:
    return in_float32(images).double()


def whole(tensor: Tensor) -> Tensor:
    """A tensor, or all shards of one."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


# The classic mistakes, each put in place of cjepa.ranks.gather.


def statistics_of_this_rank(rows: Tensor) -> Tensor:
    return rows


def gathered_without_gradient(rows: Tensor) -> Tensor:
    """all_gather, and this rank's own rows put back so that some gradient flows."""
    import torch.distributed as dist

    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.detach().contiguous())
    parts[dist.get_rank()] = rows
    return torch.cat(parts)


def raw_all_reduce(rows: Tensor) -> Tensor:
    """Rows of other ranks come in by a sum that autograd does not see."""
    import torch.distributed as dist

    count, own = len(rows), dist.get_rank()
    padded = rows.new_zeros(count * dist.get_world_size(), *rows.shape[1:])
    padded[own * count : (own + 1) * count] = rows
    total = padded.detach().clone()
    dist.all_reduce(total)
    return padded + (total - padded).detach()


def with_mistake(mistake: str, case: Case) -> Found:
    """The case with one of the mistakes above made."""
    import cjepa.objectives.projector as place

    correct = place.gather
    place.gather = globals()[mistake]
    try:
        return gradient_of(case)
    finally:
        place.gather = correct
