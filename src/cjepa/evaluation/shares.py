"""Features that ranks extract in shares, and that the first of them puts together."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from cjepa.data import ImageSource
from cjepa.data.source import Subset
from cjepa.evaluation.storage import FeatureStore
from cjepa.ranks import on_all, rank, world_size

_ELEMENTS = 2**24  # numbers that travel together: 64 MiB


def in_shares(
    extract: Callable[[ImageSource], Float[Tensor, "_ D"]], source: ImageSource, batch_size: int, scratch: Path | None
) -> Float[Tensor, "n D"] | None:
    """What `extract` gives for every image, in order, on the first rank; None on the others.

    extract: called with this rank's images, none of which depends on the others. Shares are whole batches of
    `batch_size`, those that one process would make, so the numbers are the same bits. scratch: as in extract_features.
    A declared error of one rank is raised on all.
    """
    if world_size() == 1:
        return extract(source)
    own = share(len(source), batch_size, rank())
    store = FeatureStore(len(source), scratch)

    def extracted() -> Tensor | None:
        if not len(own):
            return None
        rows = extract(Subset(source, np.arange(own.start, own.stop)))
        if rank() == 0:
            store.append(rows)
        return rows

    rows = on_all(extracted)
    if rank() > 0:
        if rows is not None:
            _send(rows)
        return None
    assert rows is not None, "the first rank has the first batch"
    for other in range(1, world_size()):
        _receive(store, len(share(len(source), batch_size, other)), rows.shape[1], other)
    return store.joined()


def share(count: int, batch_size: int, of_rank: int) -> range:
    """The images of a rank: consecutive whole batches, as many for each rank as for the others or one more."""
    batches = -(-count // batch_size)
    each, more = divmod(batches, world_size())
    first = of_rank * each + min(of_rank, more)
    last = first + each + (of_rank < more)
    return range(min(first * batch_size, count), min(last * batch_size, count))


def _blocks(count: int, width: int) -> list[int]:
    """How many rows travel at a time: blocks that stay small in memory, the same on both sides."""
    most = max(1, _ELEMENTS // max(1, width))
    return [min(most, count - first) for first in range(0, count, most)]


def _send(rows: Float[Tensor, "n D"]) -> None:
    for block in torch.split(rows, _blocks(*rows.shape)):
        dist.send(block.contiguous(), 0)


def _receive(store: FeatureStore, count: int, width: int, sender: int) -> None:
    for size in _blocks(count, width):
        block = torch.empty(size, width)
        dist.recv(block, sender)
        store.append(block)
