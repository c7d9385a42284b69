"""Spikes: the score against numpy, and what each policy does to a run in which one gradient is 10^4 times too large."""

import logging
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cjepa.data import iterate
from cjepa.errors import DivergedError, StoppedEarly
from cjepa.training import spikes
from cjepa.training.divergence import RolledBack
from cjepa.training.spikes import FEWEST, WINDOW, Recent
from tests.training.conftest import tiny_config, training
from tests.training.harness import Run, assert_same_bits, everything

SPIKE = 20
"""The step whose gradient is multiplied; checkpoints are those of steps 0, 8, 16 and so on."""


def normal(count: int = WINDOW, seed: int = 0) -> Recent:
    random, recent = np.random.default_rng(seed), Recent()
    for loss, log_norm in zip(random.normal(2.0, 0.1, count), random.normal(1.0, 0.3, count), strict=True):
        recent.add(loss, math.exp(log_norm))
    return recent


def test_the_score_is_the_robust_one() -> None:
    recent = normal()
    values = np.array(recent.losses)
    median = np.median(values)
    expected = (3.1 - median) / (1.4826 * np.median(np.abs(values - median)))
    assert recent.deviation(3.1, 1e-9) == pytest.approx(expected)
    assert 8 < expected < 15
    assert recent.deviation(2.0, math.exp(1.0) * 1e4) > 20
    assert recent.deviation(2.0, math.exp(1.0) * 2) < 5
    assert recent.deviation(-100.0, 1e-9) < 0, "an improvement is no spike"


def test_no_gradient_is_no_spike() -> None:
    """Whatever the usual norms: log 0 is not that of a norm of 1."""
    recent = Recent([2.0, 2.1] * WINDOW, [math.log(1e-3), math.log(2e-3)] * WINDOW)
    assert recent.deviation(2.0, 0.0) < 1
    assert recent.deviation(3.0, 0.0) > 10, "the loss still counts"


def test_spikes_in_the_window_hide_no_others() -> None:
    recent = normal()
    for _ in range(WINDOW // 4):
        recent.add(1e6, 1e6)
    assert recent.deviation(50.0, 1.0) > 10


@given(st.lists(st.tuples(*[st.floats(allow_nan=True, allow_infinity=True)] * 2), max_size=200))
def test_what_is_not_finite_never_enters(steps: list[tuple[float, float]]) -> None:
    recent = Recent()
    for loss, norm in steps:
        recent.add(loss, norm)
    assert all(map(math.isfinite, recent.losses + recent.log_norms))
    assert max(len(recent.losses), len(recent.log_norms)) <= WINDOW


def test_nothing_is_a_spike_at_first() -> None:
    assert normal(FEWEST - 1).deviation(1e9, 1e9) == 0.0
    assert normal(FEWEST).deviation(1e9, 1e9) > 1e3


def test_a_loss_that_hardly_moves_has_no_spikes_of_rounding() -> None:
    recent = Recent([2.0] * WINDOW, [0.0] * WINDOW)
    assert recent.deviation(2.0 * (1 + 1e-6), 1.0) < 1e-3
    assert recent.deviation(2.5, 1.0) > 10


@pytest.mark.parametrize("usual", [1.0, 1e-4, 1e4])
def test_a_gradient_that_hardly_moves_has_none_either_whatever_its_size(usual: float) -> None:
    """Logarithms of norms near 1 are near 0, of which a share is no scale."""
    recent = Recent()
    for step in range(WINDOW):
        recent.add(2.0, usual * (1.0 + 1e-5 * (step % 3)))
    assert recent.deviation(2.0, 1.001 * usual) == pytest.approx(0.1, abs=0.01)
    assert recent.deviation(2.0, 1.2 * usual) > 10


# --- in a run -------------------------------------------------------------------------------------------------------


@pytest.fixture
def judged_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spikes, "FEWEST", 8)


def spiked(folder: Path, policy: str, at: tuple[int, ...] = (SPIKE,), most: int = 10, wide: int = 3) -> Run:
    """A run whose gradient is far too large at these steps."""
    settings = training(epochs=4) | {
        "spikes": {"policy": policy, "left_out": wide, "threshold": 15.0},
        "most_skipped": most,
    }
    run = Run(tiny_config(training=settings), folder)
    gradient = run.trainer.gradient

    def multiplied(batch):  # type: ignore[no-untyped-def]
        loss, norm = gradient(batch)
        if run.trainer.progress.step not in at:
            return loss, norm
        for parameter in run.trainer.parameters.values():
            parameter.grad *= 1e4  # type: ignore[operator]
        return loss, norm * 1e4

    run.trainer.gradient = multiplied  # type: ignore[method-assign]
    return run


@pytest.mark.usefixtures("judged_early")
def test_log_takes_the_step_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = spiked(tmp_path, "log")
    with caplog.at_level(logging.WARNING):
        run.train()
    assert run.trainer.progress.spikes == 1
    assert run.trainer.progress.skipped == 0
    assert f"step {SPIKE}: loss" in caplog.text
    assert "far above those before" in caplog.text


@pytest.mark.usefixtures("judged_early")
def test_skip_changes_neither_weights_nor_moments_nor_average_nor_window(tmp_path: Path) -> None:
    run = spiked(tmp_path, "skip")
    for batch in iterate(run.stream, 0, SPIKE + 2, 0):
        before, losses = everything(run.trainer), list(run.trainer.progress.recent.losses)
        taken = run.trainer.take_step(batch)
        if run.trainer.progress.step == SPIKE:
            assert taken.unchanged == "spike"
            assert_same_bits(before, everything(run.trainer))
            assert run.trainer.progress.recent.losses == losses
        else:
            assert taken.unchanged is None
            assert len(run.trainer.progress.recent.losses) == len(losses) + 1
        run.trainer.progress.step += 1
    assert run.trainer.progress.skipped == 1


def until_it_ends(folder: Path, at: tuple[int, ...] = (SPIKE,), most: int = 10) -> tuple[Run, int]:
    """The run, started anew from the disk after each rollback, and how often that was."""
    for count in range(50):
        run = spiked(folder, "rollback", at, most)
        try:
            run.train()
        except RolledBack:
            continue
        return run, count
    raise AssertionError("it went back for ever")


@pytest.mark.usefixtures("judged_early")
def test_rollback_ends_as_if_those_steps_had_been_left_out_from_the_start(tmp_path: Path) -> None:
    run, count = until_it_ends(tmp_path / "back")
    assert count == 1
    assert run.trainer.progress.left_out == [18, 19, 20]
    reference = spiked(tmp_path / "reference", "rollback", at=())
    reference.trainer.progress.left_out = [18, 19, 20]
    reference.train()
    assert_same_bits(everything(reference.trainer), everything(run.trainer))
    assert run.trainer.progress.recent == reference.trainer.progress.recent


@pytest.mark.usefixtures("judged_early")
def test_rollback_reaches_no_further_than_the_checkpoint(tmp_path: Path) -> None:
    run, _ = until_it_ends(tmp_path, at=(17,))
    assert run.trainer.progress.left_out == [16, 17]


@pytest.mark.usefixtures("judged_early")
def test_going_back_to_the_same_checkpoint_has_an_end(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="2 steps in a row"):
        until_it_ends(tmp_path, at=tuple(range(16, 32)), most=2)


@pytest.mark.usefixtures("judged_early")
def test_a_signal_in_the_step_of_a_spike_ends_the_run_that_goes_back(tmp_path: Path) -> None:
    """Whoever trains again listens for signals anew."""
    run = spiked(tmp_path, "rollback")
    gradient = run.trainer.gradient

    def signalled(batch):  # type: ignore[no-untyped-def]
        if run.trainer.progress.step == SPIKE:
            os.kill(os.getpid(), signal.SIGTERM)
        return gradient(batch)

    run.trainer.gradient = signalled  # type: ignore[method-assign]
    with pytest.raises(StoppedEarly, match="stopped by SIGTERM after going back; the same command continues the run"):
        run.train()
    assert run.store.steps()[-1] == 16, "the checkpoint that it went back to, which says what is left out"
    assert spiked(tmp_path, "rollback").trainer.progress.left_out == [18, 19, 20]
