"""The order of samples: an endless stream of epochs, each a permutation computed one position at a time."""

import numpy as np
import numpy.typing as npt

from cjepa.randomness import Stream, uniform_rows

Integers = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]

_ROUNDS = 8
_SMALLEST_HALF = 2  # bits; halves of one bit hardly mix


def sample_at(seed: int, positions: Integers, n: int) -> Integers:
    """Indices in [0, n) of the samples at these positions (>= 0) of the stream.

    Position p belongs to epoch p // n; every epoch holds each sample once, in an order keyed by (seed, epoch).
    Epochs follow each other without a gap, so no sample is dropped at their ends. Memory does not depend on n:
    a Feistel network is a permutation of a power of four >= n, and walking its cycle until the value falls below
    n makes it one of [0, n) (Black & Rogaway, "Ciphers with arbitrary finite domains", 2002).
    """
    assert n >= 1, n
    positions = np.asarray(positions, dtype=np.int64)
    assert (positions >= 0).all(), "positions count from 0"
    epochs, offsets = np.divmod(positions, n)
    distinct, epoch_of = np.unique(epochs, return_inverse=True)
    keys = np.array([_keys(seed, int(epoch)) for epoch in distinct], dtype=np.uint64).reshape(-1, _ROUNDS)
    return _permuted(offsets.astype(np.uint64), n, keys[epoch_of])


def _keys(seed: int, epoch: int) -> _Words:
    return (uniform_rows(seed, Stream.ORDER, epoch, 0, 1, _ROUNDS)[0] * 2.0**53).astype(np.uint64)


def _permuted(values: _Words, n: int, keys: _Words) -> Integers:
    """Values below n permuted among themselves, each by its own row of keys [values, rounds]."""
    half = max(_SMALLEST_HALF, -(-(n - 1).bit_length() // 2))
    values = _feistel(values, half, keys)
    outside = np.flatnonzero(values >= n)
    while outside.size:
        values[outside] = _feistel(values[outside], half, keys[outside])
        outside = outside[values[outside] >= n]
    return values.astype(np.int64)


def _feistel(values: _Words, half: int, keys: _Words) -> _Words:
    """A keyed permutation of the numbers of 2 * half bits."""
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> bits, values & mask
    for key in keys.T:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    return (left << bits) | right


def _mixed(words: _Words) -> _Words:
    """The finaliser of SplitMix64 (Steele et al., 2014): every input bit reaches every output bit."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
