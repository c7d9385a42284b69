"""Counter-based random numbers: pure functions of (seed, stream, step, row), uniform and independent."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cjepa.randomness import Stream, uniform_rows

seeds = st.integers(0, 2**63 - 1)
steps = st.integers(0, 2**41)


@given(seeds, st.sampled_from(Stream), steps, st.integers(1, 12), st.integers(1, 11), st.data())
def test_any_slice_of_the_rows_is_the_same_rows(
    seed: int, stream: Stream, step: int, count: int, width: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, count - 1))
    length = data.draw(st.integers(0, count - first))
    whole = uniform_rows(seed, stream, step, 0, count, width)
    assert whole.shape == (count, width)
    assert whole.dtype == np.float64
    np.testing.assert_array_equal(uniform_rows(seed, stream, step, first, length, width), whole[first : first + length])


@given(seeds, st.sampled_from(Stream), steps)
def test_numbers_lie_in_the_unit_interval(seed: int, stream: Stream, step: int) -> None:
    draws = uniform_rows(seed, stream, step, 0, 50, 7)
    assert (draws >= 0).all()
    assert (draws < 1).all()


@pytest.mark.parametrize("changed", ["seed", "stream", "step", "first"])
def test_each_argument_gives_other_and_uncorrelated_numbers(changed: str) -> None:
    arguments = {"seed": 3, "stream": Stream.CROPS, "step": 5, "first": 0}
    others = {"seed": 4, "stream": Stream.ORDER, "step": 6, "first": 4000}
    one = uniform_rows(**arguments, count=4000, width=3)
    other = uniform_rows(**{**arguments, changed: others[changed]}, count=4000, width=3)
    assert len(np.intersect1d(one, other)) == 0
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.03  # 3 standard errors of 12,000 pairs


def test_all_streams_are_distinct() -> None:
    draws = [uniform_rows(0, stream, 0, 0, 1, 4) for stream in Stream]
    assert len({draw.tobytes() for draw in draws}) == len(Stream)


def test_rows_and_columns_are_uniform_and_independent() -> None:
    draws = uniform_rows(1, Stream.MASK_POSITIONS, 2, 0, 20_000, 6)
    counts = np.stack([np.histogram(column, bins=10, range=(0, 1))[0] for column in draws.T])
    assert (np.abs(counts - 2000) < 5 * np.sqrt(2000 * 0.9)).all()
    assert np.abs(np.corrcoef(draws.T) - np.eye(6)).max() < 0.03
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.03


def test_the_numbers_do_not_depend_on_any_generator_state() -> None:
    """Another process, whose global generators were used, draws the same: what exact resume rests on."""
    script = (
        "import numpy, random; numpy.random.seed(7); numpy.random.rand(5); random.seed(9)\n"
        "from cjepa.randomness import Stream, uniform_rows\n"
        "print(uniform_rows(11, Stream.CROPS, 13, 17, 2, 5).tobytes().hex())"
    )
    elsewhere = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert elsewhere.stdout.strip() == uniform_rows(11, Stream.CROPS, 13, 17, 2, 5).tobytes().hex()


def test_the_numbers_of_a_seed_are_frozen() -> None:
    """Runs can only be repeated by later versions while these stay the same."""
    draws = uniform_rows(0, Stream.ORDER, 0, 0, 1, 2)[0]
    np.testing.assert_array_equal(draws, [0.011546754286331562, 0.24154919656271812])
