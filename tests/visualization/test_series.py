import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cjepa.visualization.series import MOST_POINTS, WINDOW, condense, read_curve, running_mean, spread

heights = st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=10)


def rows(values, split="train", key="prediction", first=0):
    return [{"step": first + 10 * number, "split": split, key: value} for number, value in enumerate(values)]


@given(heights)
def test_spread_keeps_the_distance_the_order_and_the_limits(values):
    placed = spread(values, 0.1)
    order = np.argsort(values, kind="stable")
    assert (np.diff(np.array(placed)[order]) >= 0.1 - 1e-9).all()
    assert min(placed) >= -1e-9
    assert max(placed) <= 1 + 1e-9


def test_spread_leaves_what_has_room_where_it_is():
    assert spread([0.9, 0.1, 0.5], 0.1) == pytest.approx([0.9, 0.1, 0.5])


def test_spread_parts_equal_heights_evenly():
    assert spread([0.5, 0.5, 0.9], 0.1) == pytest.approx([0.45, 0.55, 0.9])


@given(st.lists(st.floats(-10, 10), min_size=WINDOW, max_size=40))
def test_running_mean_is_the_mean_of_the_values_around(values):
    half = WINDOW // 2
    expected = [np.mean(values[max(i - half, 0) : i + half + 1]) for i in range(len(values))]
    np.testing.assert_allclose(running_mean(np.array(values)), expected, atol=1e-9)


def test_condense_gives_mean_and_percentiles_of_equal_stretches():
    values = np.arange(MOST_POINTS * 11, dtype=float)
    mean, low, high = condense(values)
    np.testing.assert_allclose(mean, 5 + 11 * np.arange(MOST_POINTS))
    np.testing.assert_allclose(mean - low, 4)
    np.testing.assert_allclose(high - mean, 4)


def test_a_curve_takes_only_rows_that_have_the_value():
    mixed = [*rows([1.0, 2.0]), {"step": 5, "split": "train", "loss": 9.0}, *rows([7.0], split="evaluation")]
    curve = read_curve(mixed, "train", "prediction")
    assert curve.steps.tolist() == [0, 10]
    assert curve.line.tolist() == [1, 2]


@pytest.mark.parametrize("values", [[], [math.nan], [math.inf, math.nan]])
def test_no_curve_without_a_finite_value(values):
    assert read_curve(rows(values), "train", "prediction") is None


def test_evaluations_are_not_smoothed():
    values = [float(value) for value in np.random.default_rng(0).random(20)]
    curve = read_curve(rows(values, split="evaluation"), "evaluation", "prediction")
    assert curve.line.tolist() == values
    assert curve.raw is None


def test_training_curves_are_smoothed_and_keep_what_they_were():
    values = [float(value) for value in np.random.default_rng(0).random(2 * WINDOW)]
    curve = read_curve(rows(values), "train", "prediction")
    assert curve.raw[1].tolist() == values
    assert curve.line.std() < curve.raw[1].std()


def test_a_short_training_curve_is_shown_as_it_is():
    assert read_curve(rows([1.0] * (2 * WINDOW - 1)), "train", "prediction").raw is None


def test_a_long_curve_is_condensed_without_its_gaps_and_keeps_its_start():
    values = [3.0, *[1.0] * 500, math.nan, *[2.0] * 500]
    curve = read_curve(rows(values, split="evaluation"), "evaluation", "prediction")
    assert len(curve.steps) == len(curve.line) == MOST_POINTS
    assert curve.untrained == 3.0
    assert curve.last == 2.0
    assert not curve.lost


def test_a_run_that_diverged_is_known_as_lost_with_its_last_finite_value():
    curve = read_curve(rows([3.0, 2.0, math.nan]), "train", "prediction")
    assert curve.lost
    assert curve.last == 2.0
    assert curve.values.tolist() == [3.0, 2.0]


@pytest.mark.parametrize(("first", "value", "expected"), [(0, 4.0, 4.0), (10, 4.0, None), (0, math.nan, None)])
def test_untrained_is_the_value_at_step_0(first, value, expected):
    curve = read_curve(rows([value, 5.0], split="evaluation", first=first), "evaluation", "prediction")
    assert curve.untrained == expected
