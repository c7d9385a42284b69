"""Does this machine compute the same gradient twice? A silent fault of a processor or memory would go on for weeks."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cjepa.errors import CjepaError


class UnreliableMachineError(CjepaError):
    """The same computation gave two results: continue from the last checkpoint on another machine."""

    exit_code = 75


def prepare_fixed_order(device: torch.device) -> None:
    """Call it before the first product on a GPU: cuBLAS asks only then for the workspace that keeps its order."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def fixed_order(device: torch.device) -> Iterator[None]:
    """Within, a GPU adds up in the same order every time, which it does not for the gradient of fused attention.

    A CPU always does. Strictly: where PyTorch may only warn of what has no order, fused attention keeps its own. What
    has no ordered kernel at all is then a RuntimeError, as are products without `prepare_fixed_order`.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)


def recheck(parameters: Mapping[str, nn.Parameter], compute: Callable[[], object], step: int) -> None:
    """Compute the gradients again and compare every bit; UnreliableMachineError when one differs.

    compute: adds the gradients of the step to those of the parameters, which hold the first result and are left with
    the second. Both in `fixed_order`.
    """
    # Copies: with several ranks gradients are views of DDP's buckets, which the second pass writes into again.
    first = {name: None if each.grad is None else each.grad.clone() for name, each in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = None
    compute()
    different = [name for name, parameter in parameters.items() if not _same_bits(first[name], parameter.grad)]
    if different:
        raise UnreliableMachineError(
            f"step {step} computed twice gave two gradients, different in {len(different)} parameters "
            f"({different[0]}, ...): the last checkpoint may be wrong as well; test memory and processor, and continue "
            "from an earlier checkpoint on another machine (or set training.recheck_every=null)"
        )


def _same_bits(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one.view(torch.int32), other.view(torch.int32))
