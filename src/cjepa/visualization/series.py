"""From the rows of a run to what is drawn of them: few enough points, smooth where single values are noisy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Row = Mapping[str, Any]
FloatArray = npt.NDArray[np.float64]

MOST_POINTS = 150
"""A longer curve becomes the means of this many stretches, with a band from their 10th to 90th percentile."""
WINDOW = 5
"""Rows that a point of a shorter training curve is the mean of: a row is one batch, and noisy."""


@dataclass(frozen=True)
class Curve:
    """One value of one run: the line that is drawn, and what it was averaged from."""

    steps: FloatArray
    line: FloatArray
    untrained: float | None
    """The value at step 0, if it was measured."""
    lost: bool
    """The last value is not finite."""
    raw: tuple[FloatArray, FloatArray] | None = None
    """Steps and values of single rows, where the line is their running mean."""
    band: tuple[FloatArray, FloatArray] | None = None
    """10th and 90th percentile, where the line is the mean of stretches."""

    @property
    def last(self) -> float:
        """The last finite value of the line."""
        return float(self.line[np.isfinite(self.line)][-1])

    @property
    def values(self) -> FloatArray:
        """Every finite value that has to be in sight."""
        joined = np.concatenate([self.line, *(self.raw or ())[1:], *(self.band or ())])
        return joined[np.isfinite(joined)]


def read_curve(rows: Sequence[Row], split: Literal["train", "evaluation"], key: str) -> Curve | None:
    """The curve of a value in the rows of a run; None if it has no finite one."""
    own = [row for row in rows if row["split"] == split and key in row]
    steps = np.array([row["step"] for row in own], dtype=np.float64)
    values = np.array([row[key] for row in own], dtype=np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        return None
    untrained = float(values[0]) if steps[0] == 0 and finite[0] else None
    lost = not finite[-1]
    if finite.sum() > MOST_POINTS:
        mean, low, high = condense(values[finite])
        return Curve(condense(steps[finite])[0], mean, untrained, lost, band=(low, high))
    if split == "train" and finite.all() and len(values) >= 2 * WINDOW:
        return Curve(steps, running_mean(values), untrained, lost, raw=(steps, values))
    return Curve(steps, values, untrained, lost)


def condense(values: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean, 10th and 90th percentile of MOST_POINTS stretches of more than that many finite values."""
    stretches = np.array_split(values, MOST_POINTS)
    low, high = np.array([np.percentile(stretch, [10, 90]) for stretch in stretches]).T
    return np.array([stretch.mean() for stretch in stretches]), low, high


def running_mean(values: FloatArray) -> FloatArray:
    """The mean of WINDOW values around each of at least that many; of fewer at both ends."""
    window = np.ones(WINDOW)
    counts = np.convolve(np.ones(len(values)), window, mode="same")
    return np.convolve(values, window, mode="same") / counts


def spread(heights: Sequence[float], distance: float) -> list[float]:
    """The nearest heights within [0, 1], in the same order, that are at least `distance` apart."""
    order = np.argsort(heights, kind="stable")
    ladder = distance * np.arange(len(heights))
    # Without the ladder the condition is that values ascend: pool neighbours that do not (isotonic regression).
    pools: list[list[float]] = []
    for value in np.asarray(heights, dtype=np.float64)[order] - ladder:
        pools.append([float(value)])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    ascending = np.concatenate([np.full(len(pool), np.mean(pool)) for pool in pools])
    result = np.empty(len(heights))
    result[order] = ascending.clip(0.0, 1.0 - ladder[-1]) + ladder
    return [float(height) for height in result]
