"""PyTorch's engines for many ranks: DDP keeps whole copies in step, FSDP2 gives each rank a shard of everything."""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, assert_never

import torch
from torch import nn

from cjepa.errors import InputError
from cjepa.models import Model
from cjepa.objectives import Objective
from cjepa.ranks import collect, local_count, world_size

Parallel = Literal["auto", "none", "ddp", "fsdp"]


@dataclass(frozen=True)
class Engine:
    """How to call model and objective so that the ranks' gradients are averaged.

    unsynchronised: a context in which a backward pass adds to this rank's gradients alone. replicated: whether every
    rank has whole copies of the weights, which must stay the same bits. sharded: whether no rank has all weights.
    """

    model: Callable[..., Any]
    objective: Callable[..., Any]
    unsynchronised: Callable[[], AbstractContextManager[None]] = nullcontext
    replicated: bool = False
    sharded: bool = False


def start_engine(parallel: Parallel, model: Model, objective: Objective, device: torch.device) -> Engine:
    """The engine for the ranks there are; with FSDP the parameters of both modules become shards.

    auto: DDP where there are several ranks. InputError for an engine that needs others than there are.
    """
    alone = world_size() == 1
    match parallel:
        case "none" if not alone:
            raise InputError(
                f"training.parallel=none, but there are {world_size()} ranks; use auto, ddp or fsdp, or start one "
                "process without torchrun"
            )
        case "none":
            return Engine(model, objective)
        case "auto" | "ddp" | "fsdp" if alone:
            return Engine(model, objective)
        case "auto" | "ddp":
            return _replicated(model, objective, device)
        case "fsdp":
            return _sharded(model, objective, device)
        case _:
            assert_never(parallel)


def _replicated(model: Model, objective: Objective, device: torch.device) -> Engine:
    from torch.nn.parallel import DistributedDataParallel

    def replicated(module: nn.Module) -> DistributedDataParallel:
        with warnings.catch_warnings():  # torch 2.14 renames broadcast_buffers; 2.13 does not know the new name
            warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
            return DistributedDataParallel(
                module,
                device_ids=None if device.type == "cpu" else [device],
                broadcast_buffers=False,  # position tables, the same everywhere
                gradient_as_bucket_view=True,
            )

    replicas = replicated(model)
    learns = any(parameter.requires_grad for parameter in objective.parameters())
    return Engine(replicas, replicated(objective) if learns else objective, replicas.no_sync, replicated=True)


def _sharded(model: Model, objective: Objective, device: torch.device) -> Engine:
    """Shards within a machine, whole sets of shards on every machine; over all ranks where machines have one each.

    The ranks' gradients are averaged after every micro-batch: kept apart, they would need the memory that was saved.
    InputError where machines have unequal numbers of ranks.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # Predictor and projector return views of what they computed; nothing changes those in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    ranks, local = world_size(), local_count()
    _refuse_unequal_machines()
    if 1 < local < ranks:
        mesh = init_device_mesh(device.type, (ranks // local, local), mesh_dim_names=("machines", "shards"))
    else:
        mesh = init_device_mesh(device.type, (ranks,))
    # After the forward pass everything is a shard again, the roots too: the average is taken shard by shard.
    for part in (*model.learned.values(), model.target_encoder):
        for block in part.blocks:
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    for projector in objective.children():
        if any(True for _ in projector.parameters()):
            fully_shard(projector, mesh=mesh, reshard_after_forward=True)
    return Engine(model, objective, sharded=True)


def _refuse_unequal_machines() -> None:
    counts = sorted(set(collect(local_count())))
    if len(counts) > 1:
        raise InputError(
            f"FSDP (training.parallel) divides the weights within each machine, but some have {counts[0]} ranks and "
            f"some {counts[-1]}; start as many processes on every machine, or set training.parallel=ddp"
        )
