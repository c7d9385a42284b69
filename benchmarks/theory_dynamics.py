"""The linear dynamics of docs/theory.md: rates and closed forms, and the equations as they are integrated.

One mode of a linear encoder has the amplitude w, the predictor multiplies it by p, and a moving-average target has the
amplitude m. Context and target see x + n1 and x + n2 with unit variance of x and variance `noise` of each n. The loss
is half the squared distance; time is the learning rate times the number of steps.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.integrate import solve_ivp

from cjepa.objectives.vicreg import VARIANCE_EPSILON

Array = npt.NDArray[np.float64]

HINGE = 1.0
"""Standard deviation from which VICReg's variance term is zero."""
SOFTENED = 1e-3
"""Below the hinge, the width over which the force fades in the integration: it jumps there, which no solver likes."""
TOLERANCE = 1e-10


@dataclass(frozen=True)
class Setting:
    """One mode. target: stop (a stop-gradient on the online encoder), average (EMA), gradient (neither).

    noise: variance of what context and target do not share. learns: rate of the predictor over that of the encoder,
    0 for a fixed one. follows: rate of the moving average, (1 - momentum) / learning rate. variance: weight of
    VICReg's variance term of one dimension (the paper's 0.001 * 25 with everything averaged over dimensions).
    decay: weight decay of encoder and predictor.
    """

    predictor: float
    start: float = 0.5
    target: str = "stop"
    noise: float = 0.0
    learns: float = 0.0
    follows: float = 0.0
    variance: float = 0.0
    decay: float = 0.0


# --- a fixed predictor ------------------------------------------------------------------------------------------------


def fixed_rate(predictor: float, target: str, noise: float = 0.0) -> float:
    """Rate r of w' = r w. Without noise p (1 - p), -(1 - p)^2, and 0 for p = 1: the paper's three cases."""
    a = 1.0 + noise
    if target == "stop":
        return predictor * (1.0 - a * predictor)
    assert target == "gradient", target
    return -(a * predictor**2 - 2.0 * predictor + a)


def average_rates(predictor: float, follows: float, noise: float = 0.0) -> tuple[float, float]:
    """Both rates of the pair (w, m) under a moving average, the larger first.

    w' = p (m - a p w), m' = k (w - m): roots of r^2 + (a p^2 + k) r - k p (1 - a p). Their product has the sign of
    -p (1 - a p), and their sum is negative: the larger has the sign of the rate with a stop-gradient.
    """
    a = 1.0 + noise
    half = 0.5 * (a * predictor**2 + follows)
    root = math.sqrt(half**2 + follows * predictor * (1.0 - a * predictor))
    return -half + root, -half - root


def average_course(predictor: float, follows: float, noise: float, start: float, times: Array) -> Array:
    """w(t) under a moving average that begins as a copy of the encoder."""
    fast, slow = average_rates(predictor, follows, noise)
    first = predictor * (1.0 - (1.0 + noise) * predictor) * start  # w'(0) with m = w
    one = (first - slow * start) / (fast - slow)
    return np.asarray(one * np.exp(fast * times) + (start - one) * np.exp(slow * times))


# --- a predictor that learns ------------------------------------------------------------------------------------------


def learned_end(setting: Setting) -> tuple[float, float]:
    """(w, p) at the end of training with a predictor that learns, without noise and weight decay.

    With a target that has no gradient w^2 - p^2 / learns never changes, whatever the target is; equilibria are p = 1
    or w = 0. Without stop-gradient w^2 - (1 - p)^2 / learns never changes instead.
    """
    w, p, ratio = setting.start, setting.predictor, 1.0 / setting.learns
    if setting.target == "gradient":
        left = w**2 - ratio * (1.0 - p) ** 2
        return (math.sqrt(left), 1.0) if left > 0 else (0.0, 1.0 - math.copysign(math.sqrt(-left / ratio), 1.0 - p))
    left = w**2 + ratio * (1.0 - p**2)
    return (math.sqrt(left), 1.0) if left > 0 else (0.0, math.sqrt(p**2 - w**2 / ratio))


def invariant(setting: Setting, w: Array, p: Array) -> Array:
    """What `learned_end` says never changes."""
    other = (1.0 - p) ** 2 if setting.target == "gradient" else p**2
    return np.asarray(w**2 - other / setting.learns)


def decayed_ends(decay: float, noise: float = 0.0) -> tuple[float, float] | None:
    """Equilibria w = p of equally fast encoder and predictor with weight decay: the stable one and the threshold.

    p (1 - a p) = decay (Tian et al., 2021, for a = 1); None where decay > 1 / (4 a): then everything collapses.
    A moving average has the same ones, since m = w at rest.
    """
    a = 1.0 + noise
    inside = 1.0 - 4.0 * a * decay
    if inside < 0:
        return None
    return (1.0 + math.sqrt(inside)) / (2.0 * a), (1.0 - math.sqrt(inside)) / (2.0 * a)


# --- VICReg -----------------------------------------------------------------------------------------------------------


def variance_course(rate: float, weight: float, noise: float, start: float, times: Array) -> Array:
    """w(t) below the hinge for w' = rate w + weight sqrt(a): the variance term without its epsilon."""
    push = weight * math.sqrt(1.0 + noise)
    return np.asarray((start + push / rate) * np.exp(rate * times) - push / rate)


def variance_end(rate: float, weight: float, noise: float = 0.0) -> float:
    """Where a mode that would collapse (rate < 0) comes to rest under the variance term, with its epsilon.

    The force is weight a w / sqrt(a w^2 + e) up to the hinge. The collapsed state is left if weight a / sqrt(e)
    exceeds -rate; else 0.
    """
    assert rate < 0
    a = 1.0 + noise
    deviation = min(-weight * a / rate, HINGE)
    return math.sqrt(max(deviation**2 - VARIANCE_EPSILON, 0.0) / a)


def covariance_course(weight: float, variance: float, covariance: float, times: Array) -> tuple[Array, Array]:
    """Variance v and covariance c of two dimensions of equal variance under the covariance term alone.

    v' = -k c^2, c' = -k c v with k = 8 weight, so that v^2 - c^2 never changes: the product of both eigenvalues
    v + c and v - c. Of fully correlated dimensions (v = c) everything is lost, like 1 / t.
    """
    k, left = 8.0 * weight, variance**2 - covariance**2
    if left == 0:
        course = covariance / (1.0 + k * covariance * times)
        return course, course
    root = math.sqrt(left)
    course = root / np.sinh(root * k * times + math.asinh(root / covariance))
    return np.asarray(np.sqrt(left + course**2)), np.asarray(course)


# --- integration ------------------------------------------------------------------------------------------------------


def slope(setting: Setting, state: Array) -> Array:
    """(w', p', m')."""
    w, p, m = state
    a = 1.0 + setting.noise
    target = m if setting.target == "average" else w
    error = target - a * p * w
    force = p * error
    if setting.target == "gradient":
        force += p * w - a * w
    deviation = math.sqrt(a * w**2 + VARIANCE_EPSILON)
    share = min(max((HINGE - deviation) / SOFTENED, 0.0), 1.0)
    force += setting.variance * share * a * w / deviation
    return np.array(
        [
            force - setting.decay * w,
            setting.learns * (w * error - setting.decay * p),
            setting.follows * (w - m) if setting.target == "average" else 0.0,
        ]
    )


def integrate(setting: Setting, times: Array) -> Array:
    """w, p and m at these times, [3, times]."""
    solved = solve_ivp(
        lambda _, state: slope(setting, state),
        (0.0, float(times[-1])),
        [setting.start, setting.predictor, setting.start],
        method="LSODA",
        t_eval=times,
        rtol=TOLERANCE,
        atol=TOLERANCE,
    )
    assert solved.success, solved.message
    return np.asarray(solved.y)


def integrate_covariance(weight: float, push: float, upper: float, lower: float, times: Array) -> Array:
    """Both eigenvalues of the covariance of two dimensions of equal variance under VICReg, [2, times].

    upper' = (2 f - 4 weight (upper - lower)) upper, lower' = (2 f + 4 weight (upper - lower)) lower, where f is the
    variance term's force on an amplitude over the amplitude. A direction without any variance gets none.
    """

    def slopes(_: float, state: Array) -> list[float]:
        first, second = state
        deviation = math.sqrt(0.5 * (first + second) + VARIANCE_EPSILON)
        force = push * min(max((HINGE - deviation) / SOFTENED, 0.0), 1.0) / deviation
        apart = 4.0 * weight * (first - second)
        return [(2.0 * force - apart) * first, (2.0 * force + apart) * second]

    solved = solve_ivp(
        slopes, (0.0, float(times[-1])), [upper, lower], method="LSODA", t_eval=times, rtol=1e-9, atol=1e-14
    )
    assert solved.success, solved.message
    return np.asarray(solved.y)
