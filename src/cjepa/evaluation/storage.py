"""Features larger than memory: a temporary file that the system maps, and walks over it in blocks."""

import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cjepa.errors import InputError

FITS = 2**31
"""Bytes of features that are held in memory; more become a file, where there is a folder for it."""
_BLOCK_ELEMENTS = 2**24  # numbers looked at together: 64 MiB


class FeatureStore:
    """Rows of features in the order of their arrival; the first batch decides their shape and place."""

    def __init__(self, count: int, scratch: Path | None) -> None:
        self._count = count
        self._scratch = scratch
        self._rows: Tensor | None = None
        self._next = 0

    def append(self, rows: Float[Tensor, "b *views D"]) -> None:
        """The next rows; InputError when the file for them has no room."""
        if self._rows is None:
            self._rows = self._allocate((self._count, *rows.shape[1:]))
        with torch.inference_mode(False):
            self._rows[self._next : self._next + len(rows)] = rows
        self._next += len(rows)

    def joined(self) -> Float[Tensor, "n *views D"]:
        """All of them."""
        assert self._next == self._count, "fewer rows than announced"
        return self.so_far()

    def so_far(self) -> Float[Tensor, "n *views D"]:
        """Those that have come."""
        assert self._rows is not None, "nothing was appended"
        return self._rows[: self._next]

    def _allocate(self, shape: tuple[int, ...]) -> Tensor:
        size = int(np.prod(shape)) * 4
        if self._scratch is None or size <= FITS:
            with torch.inference_mode(False):
                return torch.empty(shape)
        try:
            # A file without a name: its space is free again when the last tensor on it is, or the process dies.
            with tempfile.TemporaryFile(dir=self._scratch) as file:
                _reserve(file.fileno(), size)
                mapped = np.memmap(file, dtype=np.float32, mode="r+", shape=shape)
        except OSError as error:
            raise InputError(
                f"the features need {size / 2**30:.1f} GiB in {self._scratch}: {error.strerror}; make room there, or "
                "work on a copy in a folder that you may write to"
            ) from error
        with torch.inference_mode(False):
            return torch.from_numpy(mapped)


def _reserve(file: int, size: int) -> None:
    """All of the room at once: a mapped page that finds none later ends the process without a word (SIGBUS)."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:  # macOS
        os.truncate(file, size)


def row_blocks(features: Float[Tensor, "n *views D"], elements: int = _BLOCK_ELEMENTS) -> tuple[Tensor, ...]:
    """The rows in blocks of about this many numbers, so that what is computed of them stays small."""
    width = max(1, features[0].numel()) if len(features) else 1
    return torch.split(features, max(1, elements // width))
