"""Ranks: the processes that take every step together, each with its consecutive slots of the global batch.

torchrun starts them and `joined` connects them. In a process on its own there is one rank: every function here is then
the identity, and torch.distributed is never initialised.

The rule that makes the gradient exact: every rank computes the loss of its own slots plus whatever is a function of the
whole batch, and the engine (DDP, FSDP) takes the *mean* of the ranks' gradients. `gather` and `mean` therefore hand
back the *sum* over the ranks of what each of them asks of a value, not this rank's share of it alone.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from cjepa.errors import CjepaError, InputError

PATIENCE = timedelta(minutes=30)
"""How long a rank waits for the others: longer than saving a checkpoint takes, shorter than a wasted night."""
_LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

Value = TypeVar("Value")


def rank() -> int:
    """This process among the ranks, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """True for the one rank that writes files and talks; also before the ranks are connected and after."""
    return rank() == 0 if dist.is_initialized() or launched() == 1 else os.environ["RANK"] == "0"


def launched() -> int:
    """How many ranks the launcher of this process started: torchrun's WORLD_SIZE, else 1."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in _LAUNCHED) else 1


def local_rank() -> int:
    """This process among the ranks of its machine, from 0: which GPU is its own."""
    return int(os.environ["LOCAL_RANK"]) if launched() > 1 else 0


def local_count() -> int:
    """How many ranks share this machine and its memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if launched() > 1 else 1


@contextmanager
def joined(device: torch.device, patience: timedelta = PATIENCE) -> Iterator[None]:
    """While open, this process is connected with the others that the launcher started, if there are any.

    patience: how long a rank waits for the others.
    """
    if launched() == 1 or dist.is_initialized():
        yield
        return
    # Flags, counts and files' contents travel by gloo from the CPU's memory, whatever the gradients travel by.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=patience)
    try:
        yield
    finally:
        dist.destroy_process_group()


def slots(batch_size: int) -> range:
    """The slots of the global batch that are this rank's; InputError where they cannot be dealt out evenly.

    Means over ranks are means over images only if every rank has the same number of them.
    """
    count = world_size()
    if batch_size % count:
        fitting = [size for size in (batch_size - batch_size % count, batch_size + count - batch_size % count) if size]
        raise InputError(
            f"training.batch_size={batch_size} cannot be divided among {count} ranks; use "
            f"{' or '.join(map(str, fitting))}, or another number of ranks"
        )
    each = batch_size // count
    return range(rank() * each, (rank() + 1) * each)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:  # noqa: ARG004
        whole = rows.new_empty(world_size() * len(rows), *rows.shape[1:])
        dist.all_gather(list(whole.chunk(world_size())), rows.contiguous())
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(world_size())[rank()]


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:  # noqa: ARG004
        total = value.contiguous().clone()
        dist.all_reduce(total)
        return total / world_size()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Mean.forward(ctx, gradient)


def gather(rows: Shaped[Tensor, "b *rest"]) -> Shaped[Tensor, "B *rest"]:
    """The rows of all ranks in the order of the global batch; all ranks must have the same number of them.

    Differentiable: a row's gradient is the sum of what all ranks ask of it.
    """
    if world_size() == 1:
        return rows
    return _Gather.apply(rows)


def mean(value: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """The mean over the ranks, element by element. Differentiable, with the mean of the ranks' gradients."""
    if world_size() == 1:
        return value
    return _Mean.apply(value)


def averages(values: Sequence[float]) -> list[float]:
    """The mean of each number over the ranks, the same bits on all of them; in float64, not differentiable."""
    if world_size() == 1:
        return list(values)
    return list(mean(torch.tensor(values, dtype=torch.float64)).tolist())


def largest(values: Sequence[int]) -> list[int]:
    """The largest of each number over the ranks: how they agree on a flag that only one of them has seen."""
    if world_size() == 1:
        return list(values)
    numbers = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return list(numbers.tolist())


def collect(value: Value) -> list[Value]:
    """The values of all ranks, in their order; small ones that can be pickled."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def together(failure: CjepaError | None) -> None:
    """Raise a declared error on all ranks where one has it: this rank's own, else the first one of another rank."""
    if world_size() == 1:
        if failure is not None:
            raise failure
        return
    found = [each for each in collect(None if failure is None else (type(failure), str(failure))) if each is not None]
    if failure is not None:
        raise failure
    if found:
        kind, message = found[0]
        raise kind(message)


def on_all(work: Callable[[], Value]) -> Value:
    """What `work` returns, on each rank its own; a declared error that it raises on one is raised on all."""
    done: list[Value] = []
    failure: CjepaError | None = None
    try:
        done.append(work())
    except CjepaError as error:
        failure = error
    together(failure)
    return done[0]


def on_first(work: Callable[[], Value]) -> Value | None:
    """What `work` returns on the first rank, where it stays; None on the others. Its declared error is raised on all.

    For what is too large to hand around; `from_first` hands it to all.
    """
    return on_all(lambda: work() if rank() == 0 else None)


def from_first(work: Callable[[], Value]) -> Value:
    """What `work` returns on the first rank, on all of them; a declared error that it raises is raised on all."""
    if world_size() == 1:
        return work()
    outcome: list[Any] = [None, None]
    failure: CjepaError | None = None
    if is_first():
        try:
            outcome[0] = work()
        except CjepaError as error:
            failure, outcome[1] = error, (type(error), str(error))
    dist.broadcast_object_list(outcome)
    if failure is not None:
        raise failure
    if outcome[1] is not None:
        kind, message = outcome[1]
        raise kind(message)
    return outcome[0]
