"""Curves of several runs on the same axes: runs that differ by their seed alone become one line with a band."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Literal

import numpy as np

from cjepa.visualization.report.material import Evaluation, RunMaterial
from cjepa.visualization.series import MOST_POINTS, Curve, FloatArray, condense, read_curve

Split = Literal["train", "evaluation"]
Axis = Literal["steps", "epochs", "hours"]
AXES: tuple[Axis, ...] = ("steps", "epochs", "hours")
_FEW = 3
_IMAGES = "images per second"


@dataclass(frozen=True)
class Group:
    """One run, or several that differ by their seed alone."""

    name: str
    runs: Sequence[RunMaterial]

    @property
    def label(self) -> str:
        """The name, with the number of seeds."""
        return self.name if len(self.runs) == 1 else f"{self.name}, mean of {len(self.runs)} seeds"


def group_by_seed(runs: Sequence[RunMaterial]) -> list[Group]:
    """Runs of equal identity and different seeds together, in the order of the first of each."""
    groups: dict[tuple[str, int], list[RunMaterial]] = {}
    for run in runs:
        same = sum(run.seed == other.seed for other in groups.get((run.identity, 0), []))
        groups.setdefault((run.identity, same), []).append(run)
    return [Group(members[0].name, members) for members in groups.values()]


def curve_of(group: Group, split: Split, key: str, weighted: bool = False) -> Curve | None:
    """The curve of a value against the step; of several seeds the mean, with one standard deviation to each side.

    weighted: times the value's weight in the loss; None for values without one.
    """
    if weighted and not all(key in run.weights for run in group.runs):
        return None
    found = [
        read_curve(run.rows, split, key) if len(group.runs) == 1 else _whole(run, split, key) for run in group.runs
    ]
    curves = [curve for curve in found if curve is not None]
    if not curves:
        return None
    curve = curves[0] if len(curves) == 1 else mean_of(curves)
    return _scaled(curve, group.runs[0].weights[key]) if weighted else curve


def mean_of(curves: Sequence[Curve]) -> Curve:
    """Mean and standard deviation (n - 1) of curves at the steps that all of them have."""
    steps = reduce(np.intersect1d, [curve.steps for curve in curves])
    if not len(steps):
        return curves[0]
    values = np.stack([curve.line[np.isin(curve.steps, steps)] for curve in curves])
    mean, deviation = values.mean(axis=0), values.std(axis=0, ddof=1)
    lost = any(curve.lost for curve in curves)
    starts = [curve.untrained for curve in curves if curve.untrained is not None]
    untrained = float(np.mean(starts)) if starts else None
    low, high = mean - deviation, mean + deviation
    if len(steps) > MOST_POINTS:
        steps, mean, low, high = (condense(each)[0] for each in (steps, mean, low, high))
    return Curve(steps, mean, untrained, lost, band=(low, high))


def probe_protocol(groups: Sequence[Group]) -> str | None:
    """The protocol of most linear evaluations of target encoders, of several the last; accuracies of others differ."""
    every = [each for group in groups for run in group.runs for each in run.evaluations]
    count = Counter(each.protocol for each in every if _is_probe(each) and each.encoder == "target")
    return max(reversed(list(count)), key=count.__getitem__, default=None)


def probe_curve(group: Group, protocol: str | None) -> Curve | None:
    """Linear accuracy by one protocol against the step, of the target encoder and of the untrained one."""
    points: dict[int, list[float]] = {}
    for run in group.runs:
        for each in run.evaluations:
            if _is_probe(each) and each.protocol == protocol and each.encoder in ("target", "untrained"):
                points.setdefault(each.step, []).append(each.values["linear"])
    if not points:
        return None
    steps = sorted(points)
    line = np.array([np.mean(points[step]) for step in steps])
    return Curve(np.array(steps, dtype=np.float64), line, float(line[0]) if steps[0] == 0 else None, lost=False)


def _is_probe(evaluation: Evaluation) -> bool:
    return evaluation.name == "linear" and "linear" in evaluation.values


def speed_curve(group: Group) -> Curve | None:
    """Images per second between rows of the clock, of the first run that has one."""
    for run in group.runs:
        if run.clock is not None and len(run.clock[0]) >= _FEW:
            steps, seconds = run.clock
            taken, passed = np.diff(steps), np.diff(seconds)
            useful = (taken > 0) & (passed > 0)
            if useful.any():
                speed = run.batch_size * taken[useful] / passed[useful]
                ends = steps[1:][useful]
                if len(ends) > MOST_POINTS:
                    line, low, high = condense(speed)
                    return Curve(condense(ends)[0], line, None, lost=False, band=(low, high))
                return Curve(ends, speed, None, lost=False)
    return None


def against(curve: Curve, group: Group, axis: Axis) -> Curve | None:
    """The curve over another axis; None where the run has no clock."""
    convert = converter(group, axis)
    if convert is None:
        return None
    raw = None if curve.raw is None else (convert(curve.raw[0]), curve.raw[1])
    return replace(curve, steps=convert(curve.steps), raw=raw)


def converter(group: Group, axis: Axis) -> Callable[[FloatArray], FloatArray] | None:
    """From steps to the values of an axis."""
    run = group.runs[0]
    match axis:
        case "steps":
            return lambda steps: steps
        case "epochs":
            return lambda steps: steps * run.batch_size / run.images_per_epoch
        case "hours":
            if run.clock is None:
                return None
            known, seconds = run.clock
            return lambda steps: np.interp(steps, known, seconds) / 3600.0


def _whole(run: RunMaterial, split: Split, key: str) -> Curve | None:
    """Every finite value, without smoothing: seeds are averaged step by step."""
    own = [row for row in run.rows if row["split"] == split and key in row]
    steps = np.array([row["step"] for row in own], dtype=np.float64)
    values = np.array([row[key] for row in own], dtype=np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        return None
    untrained = float(values[0]) if steps[0] == 0 and finite[0] else None
    return Curve(steps[finite], values[finite], untrained, lost=not finite[-1])


def _scaled(curve: Curve, factor: float) -> Curve:
    return replace(
        curve,
        line=curve.line * factor,
        untrained=None if curve.untrained is None else curve.untrained * factor,
        raw=None if curve.raw is None else (curve.raw[0], curve.raw[1] * factor),
        band=None if curve.band is None else (curve.band[0] * factor, curve.band[1] * factor),
    )


def loss_terms(groups: Sequence[Group]) -> list[str]:
    """Names of the loss's terms that any run has a weight for, prediction first."""
    terms: Mapping[str, None] = {name: None for group in groups for run in group.runs for name in run.weights}
    return list(terms)
