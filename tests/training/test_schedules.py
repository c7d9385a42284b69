"""Schedules are pure functions of the step: ends, monotone parts, and the shortest runs."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cjepa.models.jepa import follow
from cjepa.training.schedules import LearningRateConfig, MomentumConfig, learning_rate, linear

PAPER = LearningRateConfig()
rates = st.floats(1e-7, 1.0)


def curve(config: LearningRateConfig, warmup: int, total: int) -> list[float]:
    return [learning_rate(config, step, warmup, total) for step in range(total)]


def test_the_paper_s_schedule() -> None:
    """1e-4 to 1e-3 over 15 epochs, then a cosine to 1e-6; here 10 steps an epoch for 100 epochs."""
    values = curve(PAPER, 150, 1000)
    assert values[0] == 1e-4
    assert values[75] == pytest.approx(5.5e-4)
    assert values[150] == pytest.approx(1e-3)
    assert values[-1] == pytest.approx(1e-6)
    middle = 150 + (999 - 150) / 3
    assert learning_rate(PAPER, round(middle), 150, 1000) == pytest.approx(1e-6 + (1e-3 - 1e-6) * 0.75)


@given(st.integers(0, 50), st.integers(2, 200), rates, rates, rates)
def test_it_rises_to_the_peak_and_falls_to_the_end(
    warmup: int, more: int, start: float, peak: float, final: float
) -> None:
    start, final = min(start, peak), min(final, peak)
    total = warmup + more
    config = LearningRateConfig(start=start, peak=peak, final=final)
    values = curve(config, warmup, total)
    assert values[0] == pytest.approx(start if warmup else peak)
    assert values[warmup] == pytest.approx(peak)
    assert values[-1] == pytest.approx(final)
    slack = 1e-12
    assert all(left <= right + slack for left, right in pairwise(values[: warmup + 1]))
    assert all(left >= right - slack for left, right in pairwise(values[warmup:]))
    assert all(math.isfinite(value) and value >= 0 for value in values)


def test_the_warm_up_is_linear() -> None:
    values = curve(PAPER, 9, 40)
    steps = [right - left for left, right in pairwise(values[:10])]
    assert steps == pytest.approx([1e-4] * 9)


def test_without_warm_up_it_starts_at_the_peak() -> None:
    assert curve(PAPER, 0, 3) == pytest.approx([1e-3, (1e-3 + 1e-6) / 2, 1e-6])


def test_runs_of_one_step() -> None:
    assert curve(PAPER, 0, 1) == [1e-3]
    assert curve(PAPER, 5, 1) == [1e-4]
    assert linear(0.04, 0.4, 0, 1) == 0.04


def test_a_warm_up_up_to_the_last_step_ends_at_the_peak() -> None:
    assert curve(PAPER, 3, 4) == pytest.approx([1e-4, 4e-4, 7e-4, 1e-3])


@given(st.floats(0, 1), st.floats(0, 1), st.integers(2, 500))
def test_linear_goes_straight_from_start_to_final(start: float, final: float, total: int) -> None:
    values = [linear(start, final, step, total) for step in range(total)]
    assert values[0] == start
    assert values[-1] == final
    slopes = [right - left for left, right in pairwise(values)]
    assert slopes == pytest.approx([(final - start) / (total - 1)] * (total - 1), abs=1e-12)


@pytest.mark.parametrize(("start", "total"), [(0.1, 14), (0.059, 4), (0.065, 6)])
def test_a_momentum_never_exceeds_1(start: float, total: int) -> None:
    """start + (1 - start) * 13 / 13 is 1 + 2^-52 for a start of 0.1, which torch's moving average refuses."""
    average, module = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    for step in range(total):
        follow(average, module, linear(start, 1.0, step, total))


def test_values_depend_on_nothing_but_the_step() -> None:
    backwards = [learning_rate(PAPER, step, 5, 30) for step in reversed(range(30))]
    assert backwards[::-1] == curve(PAPER, 5, 30)


@pytest.mark.parametrize("keys", [{"start": 1.0}, {"start": -0.1}, {"final": 1.1}, {"start": 1.5}])
def test_a_momentum_that_never_learns_is_refused(keys: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        MomentumConfig.model_validate(keys)


@pytest.mark.parametrize("keys", [{"peak": 0.0}, {"start": -1.0}, {"warmup_epochs": -1}, {"final": math.nan}])
def test_nonsense_learning_rates_are_refused(keys: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        LearningRateConfig.model_validate(keys)
