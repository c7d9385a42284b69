"""Each verdict on made-up numbers; verdicts on real runs are in test_trainer.py."""

from dataclasses import replace

import pytest

from cjepa.training.health import EARLY, Record, judge, standard_error

UNTRAINED = {"effective_rank": 10.0, "spread": 0.5, "explained_variance": -0.5, "knn": 40.0}
GOOD = Record(
    untrained=UNTRAINED,
    current={"effective_rank": 15.0, "spread": 0.6, "explained_variance": 0.5, "knn": 55.0},
    peak_rank=15.0,
    best_quality=55.0,
    quality="knn",
    images=1000,
    progress=0.5,
)


def changed(**values: float) -> Record:
    return replace(GOOD, current={**GOOD.current, **values})


def test_more_accuracy_than_untrained_is_healthy() -> None:
    verdict = judge(GOOD)
    assert verdict.state == "healthy"
    assert "knn 55.0 against 40.0 before training" in str(verdict)


@pytest.mark.parametrize("values", [{"effective_rank": 1.2}, {"spread": 0.04}])
@pytest.mark.parametrize("progress", [0.01, 0.9])
def test_collapse_is_called_at_any_time(values: dict[str, float], progress: float) -> None:
    assert judge(replace(changed(**values), progress=progress)).state == "collapse"


def test_nothing_else_is_called_early() -> None:
    assert judge(replace(changed(knn=40.0), progress=EARLY - 0.01)).state == "too early"
    assert judge(replace(changed(knn=40.0), progress=EARLY + 0.01)).state == "not learning"


@pytest.mark.parametrize("values", [{"effective_rank": 5.0}, {"spread": 0.1}])
def test_what_is_lost_counts_unless_accuracy_was_gained(values: dict[str, float]) -> None:
    assert judge(changed(**values, knn=41.0)).state == "partial collapse"
    assert judge(changed(**values)).state == "healthy"


def test_a_severe_loss_of_rank_counts_whatever_the_accuracy() -> None:
    assert judge(changed(effective_rank=4.4)).state == "partial collapse"


def test_accuracy_that_falls_with_the_rank_is_a_partial_collapse() -> None:
    falling = replace(changed(effective_rank=7.0, knn=50.0), peak_rank=20.0, best_quality=60.0)
    assert judge(falling).state == "partial collapse"
    assert judge(replace(falling, best_quality=51.0)).state == "healthy"
    assert judge(replace(falling, peak_rank=10.0)).state == "healthy"


def test_a_gain_within_noise_is_not_learning() -> None:
    noise = GOOD.noise
    assert judge(changed(knn=40.0 + 0.9 * noise)).state == "not learning"
    assert judge(changed(knn=40.0 + 1.1 * noise)).state == "healthy"
    assert "50 % of what varies" in judge(changed(knn=40.0)).evidence


def test_standard_error_of_a_difference() -> None:
    assert standard_error(50.0, 200) == pytest.approx(5.0)
    assert standard_error(0.0, 100) > 0


def test_an_explained_variance_below_zero_is_not_called_a_share() -> None:
    evidence = judge(changed(knn=40.0, explained_variance=-41.7)).evidence
    assert "worse than a guess of each position's mean (explained variance -42)" in evidence
    assert "%" not in evidence
