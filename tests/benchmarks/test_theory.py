"""The closed forms of docs/theory.md against integration, training and each other."""

import json
import math

import numpy as np
import pytest

from benchmarks import theory
from benchmarks import theory_dynamics as dynamics
from benchmarks.theory_descent import descend, descend_covariance
from benchmarks.theory_dynamics import Setting, integrate

TIMES = np.linspace(0.0, 5.0, 11)


@pytest.mark.parametrize("predictor", [-0.5, 0.0, 0.25, 1.0, 1.5])
def test_without_noise_the_rates_are_those_of_the_paper(predictor: float) -> None:
    assert dynamics.fixed_rate(predictor, "stop") == pytest.approx(predictor * (1 - predictor))
    assert dynamics.fixed_rate(predictor, "gradient") == pytest.approx(-((1 - predictor) ** 2))


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("target", ["stop", "gradient"])
def test_integration_follows_the_fixed_rates(target: str, noise: float) -> None:
    for predictor in (0.25, 1.0, 1.4):
        found = integrate(Setting(predictor, 0.7, target, noise), TIMES)[0]
        expected = 0.7 * np.exp(dynamics.fixed_rate(predictor, target, noise) * TIMES)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_without_a_predictor_modes_stand_still_only_if_both_views_are_equal() -> None:
    assert dynamics.fixed_rate(1.0, "stop") == dynamics.fixed_rate(1.0, "gradient") == 0.0
    assert dynamics.fixed_rate(1.0, "stop", 0.2) == pytest.approx(-0.2)
    assert dynamics.fixed_rate(1.0, "gradient", 0.2) == pytest.approx(-0.4)


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("follows", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("predictor", [0.25, 0.9, 1.4])
def test_a_moving_average_slows_modes_down_and_keeps_their_sign(predictor: float, follows: float, noise: float) -> None:
    a = 1.0 + noise
    matrix = np.array([[-a * predictor**2, predictor], [follows, -follows]])
    fast, slow = dynamics.average_rates(predictor, follows, noise)
    np.testing.assert_allclose(sorted([slow, fast]), np.sort(np.linalg.eigvals(matrix)), rtol=1e-10)
    plain = dynamics.fixed_rate(predictor, "stop", noise)
    assert math.copysign(1.0, fast) == math.copysign(1.0, plain)
    assert abs(fast) < abs(plain)
    assert slow < 0
    found = integrate(Setting(predictor, 0.7, "average", noise, follows=follows), TIMES)[0]
    np.testing.assert_allclose(found, dynamics.average_course(predictor, follows, noise, 0.7, TIMES), rtol=1e-6)


def test_a_fast_moving_average_is_a_stop_gradient() -> None:
    assert dynamics.average_rates(0.4, 1e7)[0] == pytest.approx(dynamics.fixed_rate(0.4, "stop"), rel=1e-6)
    assert dynamics.average_rates(0.4, 1e-7)[0] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("learns", [0.5, 2.0])
@pytest.mark.parametrize(("target", "follows"), [("stop", 0.0), ("average", 0.3), ("gradient", 0.0)])
def test_what_never_changes_and_where_a_learning_predictor_ends(target: str, follows: float, learns: float) -> None:
    for predictor, start in ((0.3, 0.2), (0.3, 1.2), (1.5, 0.2), (1.5, 0.9)):
        setting = Setting(predictor, start, target, learns=learns, follows=follows)
        w, p, _ = integrate(setting, np.linspace(0.0, 2000.0, 50))
        assert np.ptp(dynamics.invariant(setting, w, p)) < 1e-7
        np.testing.assert_allclose((w[-1], p[-1]), dynamics.learned_end(setting), atol=1e-3)


def test_without_stop_gradient_a_large_encoder_survives_and_a_small_one_does_not() -> None:
    assert dynamics.learned_end(Setting(0.3, 0.69, "gradient", learns=1.0))[0] == 0.0
    w, p = dynamics.learned_end(Setting(0.3, 0.71, "gradient", learns=1.0))
    assert w == pytest.approx(math.sqrt(0.71**2 - 0.7**2))
    assert p == 1.0


@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize("target", ["stop", "average"])
def test_weight_decay_leaves_a_stable_state_and_a_threshold(target: str, noise: float) -> None:
    rest = dynamics.decayed_ends(0.1, noise)
    assert rest is not None
    for value in rest:
        setting = Setting(value, value, target, noise, learns=1.0, follows=0.3, decay=0.1)
        np.testing.assert_allclose(dynamics.slope(setting, np.array([value] * 3)), 0.0, atol=1e-12)
    late = np.array([0.0, 500.0])
    for start, expected in ((1.3 * rest[1], rest[0]), (0.7 * rest[1], 0.0)):
        setting = Setting(start, start, target, noise, learns=1.0, follows=0.3, decay=0.1)
        assert integrate(setting, late)[0, -1] == pytest.approx(expected, abs=1e-6)
    assert dynamics.decayed_ends(0.251 / (1.0 + noise), noise) is None


@pytest.mark.parametrize(("weight", "kept"), [(0.003, False), (0.025, True), (0.2, True), (2.0, True)])
@pytest.mark.parametrize("target", ["gradient", "average"])
def test_the_variance_term_saves_a_dying_mode_in_proportion_to_its_weight(
    target: str, weight: float, kept: bool
) -> None:
    setting = Setting(1.5, 0.2, target, follows=0.4, variance=weight)
    rate = dynamics.fixed_rate(1.5, "gradient" if target == "gradient" else "stop")
    end = dynamics.variance_end(rate, weight)
    assert (end > 0) == (kept or weight / math.sqrt(1e-4) > -rate)
    found = integrate(setting, np.array([0.0, 400.0]))[0, -1]
    assert found == pytest.approx(end, abs=2 * dynamics.SOFTENED if end > 0.9 else 1e-4)


def test_the_variance_term_below_the_hinge() -> None:
    """Amplitudes far above the root of epsilon."""
    setting = Setting(0.4, 0.3, "gradient", 0.1, variance=0.2)
    rate = dynamics.fixed_rate(0.4, "gradient", 0.1)
    expected = dynamics.variance_course(rate, 0.2, 0.1, 0.3, TIMES)
    np.testing.assert_allclose(integrate(setting, TIMES)[0], expected, rtol=2e-3)


@pytest.mark.parametrize("start", [(1.0, 0.2), (0.8, 0.799), (0.5, 0.5)])
def test_the_covariance_term_keeps_the_product_of_both_eigenvalues(start: tuple[float, float]) -> None:
    variance, covariance = dynamics.covariance_course(0.1, *start, TIMES)
    upper, lower = start[0] + start[1], start[0] - start[1]
    found = dynamics.integrate_covariance(0.1, 0.0, upper, lower, TIMES)
    np.testing.assert_allclose(found, [variance + covariance, variance - covariance], rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(found[0] * found[1], upper * lower, rtol=1e-6, atol=1e-12)


def test_networks_that_are_trained_follow() -> None:
    modes = [Setting(factor, 0.5, "average", 0.2, follows=1.0) for factor in (0.3, 0.6, 1.3)]
    times, trained, _ = descend(modes, 0.02, 150, 256, rows=5)
    for mode, course in zip(modes, trained, strict=True):
        expected = dynamics.average_course(mode.predictor, 1.0, 0.2, 0.5, times)
        np.testing.assert_allclose(course, expected, rtol=0.03)
    learning = [Setting(0.3, 0.6, "gradient", learns=1.0)]
    times, trained, factors = descend(learning, 0.02, 300, 256, rows=5)
    w, p, _ = integrate(learning[0], times)
    np.testing.assert_allclose(trained[0], w, atol=0.015)
    np.testing.assert_allclose(factors[0], p, atol=0.015)


def test_two_dimensions_that_are_trained_follow() -> None:
    times, trained = descend_covariance(0.1, 0.25, (1.0, 0.01), 0.02, 200, 4096, rows=5)
    found = dynamics.integrate_covariance(0.1, 0.25, 1.0, 0.01, times)
    np.testing.assert_allclose(trained, found, rtol=0.05)
    assert descend_covariance(0.1, 0.25, (1.0, 0.0), 0.02, 100, 256, rows=5)[1][1].max() < 1e-12


def test_the_committed_results_agree_within_what_the_document_says() -> None:
    found = json.loads(theory.RESULTS.read_text())
    for curve in found["curves"]:
        if curve["closed"] is not None:
            assert theory.gap(curve["integrated"], curve["closed"]) < 1e-5, curve["label"]
        most = 0.08 if curve["panel"] == "VICReg's covariance" else 0.015  # the hinge: see the document
        assert theory.gap(curve["trained"], curve["integrated"]) < most, curve["label"]
    for end in found["ends"]:
        assert end["integrated"] == pytest.approx(end["derived"], abs=2e-3), end["what"]
        assert end["trained"] == pytest.approx(end["integrated"], abs=1e-2), end["what"]
    assert theory.FIGURE.exists()
