"""Counter-based random numbers: every draw is a pure function of (seed, stream, step, row).

The data order, crops, masks and projections of a run are drawn from here, so that they depend neither on the
number of workers or ranks nor on any generator state that a checkpoint would have to restore.
"""

from enum import IntEnum

import numpy as np
import numpy.typing as npt

_DRAWS_PER_COUNTER = 4  # Philox4x64 yields four 64-bit numbers per counter value


class Stream(IntEnum):
    """Independent streams of one seed, one for each use."""

    ORDER = 0
    CROPS = 1
    MASK_SIZES = 2
    MASK_POSITIONS = 3
    INITIALISATION = 4
    EVALUATION = 5
    SLICES = 6
    MASK_SUBSETS = 7
    MASK_PROBES = 8
    FITTING = 9
    VIEWS = 10


def uniform_rows(seed: int, stream: Stream, step: int, first: int, count: int, width: int) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1) for rows first .. first + count - 1 of a step: shape [count, width].

    Row r is the same whatever slice it is drawn in: uniform_rows(..., 0, 8, w)[3:5] equals
    uniform_rows(..., 3, 2, w). Philox (Salmon et al., 2011) jumps to any row at no cost.
    """
    counters_per_row = -(-width // _DRAWS_PER_COUNTER)
    bits = np.random.Philox(key=[seed, stream], counter=[first * counters_per_row, 0, step, 0])
    draws = np.random.Generator(bits).random((count, counters_per_row * _DRAWS_PER_COUNTER))
    return draws[:, :width]
