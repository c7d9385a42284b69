import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cjepa.data.order import sample_at

SEEDS = st.integers(0, 2**63 - 1)


@settings(max_examples=150, deadline=None)
@given(SEEDS, st.integers(0, 10**6), st.one_of(st.integers(1, 40), st.integers(1, 5000)))
def test_every_epoch_is_a_permutation(seed: int, epoch: int, n: int) -> None:
    samples = sample_at(seed, epoch * n + np.arange(n), n)
    np.testing.assert_array_equal(np.sort(samples), np.arange(n))


@settings(max_examples=50, deadline=None)
@given(SEEDS, st.integers(2, 300), st.integers(0, 1000), st.integers(0, 100), st.integers(0, 100))
def test_any_slice_equals_the_whole(seed: int, n: int, start: int, first: int, count: int) -> None:
    whole = sample_at(seed, start + np.arange(200), n)
    np.testing.assert_array_equal(sample_at(seed, start + first + np.arange(count), n), whole[first : first + count])


@pytest.mark.parametrize("n", [2**16, 2**16 + 1, 2**18 - 1])
def test_permutation_at_powers_of_two(n: int) -> None:
    assert np.unique(sample_at(0, np.arange(n), n)).size == n


def test_epochs_and_seeds_differ() -> None:
    n = 1000
    first, second = sample_at(0, np.arange(2 * n), n).reshape(2, n)
    other = sample_at(1, np.arange(n), n)
    for one, two in ((first, second), (first, other), (first, np.arange(n))):
        assert (one == two).mean() < 0.01
        assert abs(np.corrcoef(one, two)[0, 1]) < 0.12


@pytest.mark.parametrize("n", [2, 3, 8, 16, 17, 100])
def test_every_sample_comes_equally_often_to_every_position(n: int) -> None:
    """Chi-square of (position, sample) counts over epochs: far off for a network that mixes poorly."""
    epochs = 2000
    samples = sample_at(3, np.arange(epochs * n), n).reshape(epochs, n)
    counts = np.stack([np.bincount(samples[:, position], minlength=n) for position in range(n)])
    expected = epochs / n
    freedom = (n - 1) ** 2
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom) + 5


def test_neighbours_in_the_folder_do_not_stay_neighbours() -> None:
    n, epochs = 64, 500
    samples = sample_at(5, np.arange(epochs * n), n).reshape(epochs, n)
    following = ((samples[:, 1:] - samples[:, :-1]) % n == 1).mean()
    assert abs(following - 1 / n) < 0.004


def test_memory_does_not_grow_with_the_data_set() -> None:
    tracemalloc.start()
    samples = sample_at(0, 7 * 10**12 + np.arange(256), 10**12)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000
    assert np.unique(samples).size == 256
    assert (samples < 10**12).all()
    assert samples.max() > 10**11


def test_no_positions() -> None:
    assert sample_at(0, np.arange(0), 5).tolist() == []


def test_golden_order() -> None:
    """A change of this order breaks the continuation of every run: it needs a new format version."""
    assert sample_at(0, np.arange(12), 10).tolist() == [3, 5, 8, 9, 4, 6, 2, 1, 0, 7, 8, 4]
