"""Weights and moments as whole tensors, whichever engine holds them: what a checkpoint is written from and read into.

A checkpoint says nothing of ranks, so it continues on any number of them and under any engine. PyTorch's distributed
state dicts put the shards together on the first rank, on the CPU, and deal them out again; other ranks see nothing.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cjepa.ranks import is_first, world_size
from cjepa.training.optimizer import Named, moments, restore_moments


def whole_weights(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of a module, without shards; empty on every rank but the first."""
    if world_size() == 1:
        return module.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    state = get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}


def restore_weights(module: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """The inverse of `whole_weights`; only the first rank's `saved` counts."""
    if world_size() == 1:
        module.load_state_dict(saved)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    if not module.state_dict():
        return
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(module, dict(saved) if is_first() else {}, options=options)


def whole_moments(learned: nn.Module, optimizer: torch.optim.Optimizer, parameters: Named) -> dict[str, Tensor]:
    """The optimizer's tensors, named PARAMETER|exp_avg and so on, without shards; empty before the first step.

    learned: the module whose parameters they are the moments of. On every rank but the first it is always empty.
    """
    if world_size() == 1 or not optimizer.state:
        return moments(optimizer, parameters)
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: Mapping[str, Any] = get_optimizer_state_dict(learned, optimizer, options=options)
    of_parameter: Mapping[str, Mapping[str, Tensor]] = state.get("state", {})
    return {f"{name}|{kind}": value for name, kinds in of_parameter.items() for kind, value in kinds.items()}


def restore_whole_moments(
    learned: nn.Module, optimizer: torch.optim.Optimizer, parameters: Named, saved: Mapping[str, Tensor], some: bool
) -> None:
    """The inverse of `whole_moments`; only the first rank's `saved` counts. some: whether there are any to restore."""
    optimizer.state.clear()
    if world_size() == 1:
        restore_moments(optimizer, parameters, saved)
        return
    if not some:
        return
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    groups = get_optimizer_state_dict(learned, optimizer, options=StateDictOptions())["param_groups"]
    state: dict[str, Any] = {"state": {}, "param_groups": groups}
    for key, value in saved.items():
        name, _, kind = key.rpartition("|")
        state["state"].setdefault(name, {})[kind] = value
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_optimizer_state_dict(
        learned, optimizer, state if is_first() else {"state": {}, "param_groups": []}, options=options
    )
