"""What ranks have to agree on before each of them goes on: whether there is a batch, and whether they are still one."""

from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import replace
from itertools import chain

import torch
from torch import nn

from cjepa.errors import CjepaError, RanksError
from cjepa.ranks import collect, largest, together, world_size
from cjepa.types import Batch


def in_step(batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
    """This rank's batches, as long as every rank has one.

    An error that reading raises on one rank is raised on all of them, before any of them waits for a gradient; images
    that one rank could not read are in the batches of all, so that all count the same.
    """
    if world_size() == 1:
        yield from batches
        return
    with closing(batches):
        while True:
            batch, failure = _next(batches)
            over, failed, unreadable = largest(
                [batch is None and failure is None, failure is not None, 0 if batch is None else len(batch.unreadable)]
            )
            if failed:
                together(failure)
            if over or batch is None:
                return
            if unreadable:
                batch = replace(batch, unreadable=tuple(chain(*collect(batch.unreadable))))
            yield batch


def _next(batches: Generator[Batch, None, None]) -> tuple[Batch | None, CjepaError | None]:
    try:
        return next(batches, None), None
    except CjepaError as error:
        return None, error


def refuse_drift(parameters: Mapping[str, nn.Parameter]) -> None:
    """RanksError when copies of the weights are no longer the same bits on all ranks."""
    if world_size() == 1:
        return
    bits = {torch.float32: torch.int32, torch.float64: torch.int64}
    sums = [parameter.detach().view(bits[parameter.dtype]).sum(dtype=torch.int64) for parameter in parameters.values()]
    found = torch.stack(sums).tolist()
    highest, lowest = largest(found), [-value for value in largest([-value for value in found])]
    drifted = [name for name, high, low in zip(parameters, highest, lowest, strict=True) if high != low]
    if drifted:
        raise RanksError(
            f"the ranks' copies of {len(drifted)} of {len(found)} weights differ, {drifted[0]} first: a device "
            "computes wrongly, or the processes run different versions; nothing was saved of it, and the same command "
            "continues from the last checkpoint"
        )
