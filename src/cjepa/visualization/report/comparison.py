"""Evaluations side by side, and the difference of runs with its uncertainty."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t as student

from cjepa.visualization.report.material import RunMaterial
from cjepa.visualization.report.runs import Group

BASELINES = ("raw pixels", "colour statistics", "untrained")
CONFIDENCE = 0.95
_NORMAL = 1.96
_PROBE, _RANK = "linear", "effective_rank"
_NO_SHARE = ("_std", "_rate")
"""Ends of names of values beside an accuracy that are no share of the images themselves."""

Key = tuple[str, str, str]
"""An evaluation, its value, and the protocol within which values compare."""


@dataclass(frozen=True)
class Sample:
    """The values of a group's runs, and on how many test images each rests (0: it is no share of images)."""

    values: tuple[float, ...]
    images: int

    @property
    def mean(self) -> float:
        """Mean over the runs."""
        return statistics.mean(self.values)

    @property
    def deviation(self) -> float:
        """Standard deviation over the runs (n - 1); 0 for a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    def __str__(self) -> str:
        text = f"{self.mean:.1f}"
        return f"{text} ± {self.deviation:.1f} (n = {len(self.values)})" if len(self.values) > 1 else text


@dataclass(frozen=True)
class Difference:
    """Second minus first, half the width of its 95 % interval (NaN: unknown), and what the interval accounts for."""

    value: float
    margin: float
    over: str

    def __str__(self) -> str:
        if math.isnan(self.margin):
            return f"{self.value:+.1f}".replace("-", "\N{MINUS SIGN}")
        verdict = "" if abs(self.value) > self.margin else ", within noise"
        return f"{self.value:+.1f} ± {self.margin:.1f}{verdict}".replace("-", "\N{MINUS SIGN}")


@dataclass(frozen=True)
class ComparisonRow:
    """One value: of what had to be beaten, of every group ("" where it is missing), and differences to the first."""

    title: str
    baselines: tuple[str, ...]
    groups: tuple[str, ...]
    differences: tuple[str, ...]
    basis: str


@dataclass(frozen=True)
class Comparison:
    """The table: headings and rows."""

    baselines: tuple[str, ...]
    groups: tuple[str, ...]
    rows: tuple[ComparisonRow, ...]


def compare(groups: Sequence[Group]) -> Comparison:
    """All evaluations of the last checkpoint of each run; values of different protocols stand in rows of their own."""
    keys: dict[Key, None] = {}
    for group in groups:
        for run in group.runs:
            keys |= dict.fromkeys(_own(run))
    shown = tuple(name for name in BASELINES if any(_baseline(groups, key, name) for key in keys))
    rows = [_row(groups, key, shown) for key in keys]
    return Comparison(shown, tuple(group.label for group in groups), tuple(rows))


def difference(first: Sample, second: Sample) -> Difference:
    """Second minus first with a 95 % interval.

    Of two samples of several seeds Welch's interval of the means. Otherwise, for shares of test images, the normal
    interval of two independent binomials: conservative, since both see the same images, but blind to other seeds.
    """
    value = second.mean - first.mean
    if len(first.values) > 1 and len(second.values) > 1:
        parts = [each.deviation**2 / len(each.values) for each in (first, second)]
        if sum(parts) == 0:
            return Difference(value, 0.0, "seeds")
        freedom = sum(parts) ** 2 / sum(
            part**2 / (len(each.values) - 1) for part, each in zip(parts, (first, second), strict=True)
        )
        return Difference(value, float(student.ppf(0.5 + CONFIDENCE / 2, freedom)) * math.sqrt(sum(parts)), "seeds")
    if not first.images or not second.images:
        return Difference(value, math.nan, "unknown: one run of each")
    variance = sum(_binomial(each.mean, each.images) for each in (first, second))
    return Difference(value, _NORMAL * math.sqrt(variance), "test images alone")


def _binomial(percent: float, images: int) -> float:
    share = min(max(percent / 100.0, 1.0 / images), 1.0 - 1.0 / images)
    return 100.0**2 * share * (1.0 - share) / images


def _own(run: RunMaterial) -> dict[Key, tuple[float, int]]:
    """The values of a run's last checkpoint: those of its evaluations, and those measured while it trained."""
    target = [each for each in run.evaluations if each.encoder == "target"]
    last = max((each.step for each in target), default=0)
    found: dict[Key, tuple[float, int]] = {}
    for each in target:
        if each.step == last:
            for name, value in each.values.items():
                found[each.name, name, each.protocol] = (value, 0 if name.endswith(_NO_SHARE) else each.test_images)
    measured = [row for row in run.rows if row["split"] == "evaluation"]
    if measured:
        for name in (run.quality, _PROBE, _RANK):
            value = measured[-1].get(name, math.nan)
            if math.isfinite(value):
                found["while training", name, ""] = (value, 0 if name == _RANK else run.tested)
    return found


def _sample(group: Group, key: Key) -> Sample | None:
    found = [values[key] for values in map(_own, group.runs) if key in values]
    return Sample(tuple(value for value, _ in found), min(images for _, images in found)) if found else None


def _baseline(groups: Sequence[Group], key: Key, encoder: str) -> str:
    """What had to be beaten: the mean over each group's runs, and every group's own where they differ."""
    found = [[value for run in group.runs for value in _to_beat(run, key, encoder)] for group in groups]
    return " / ".join(dict.fromkeys(f"{statistics.mean(values):.1f}" for values in found if values))


def _to_beat(run: RunMaterial, key: Key, encoder: str) -> list[float]:
    """The value of a baseline, if the run has it; the last one where it was measured again."""
    name, value, protocol = key
    if name == "while training" and encoder == "untrained" and not run.started:
        rows = [row for row in run.rows if row["split"] == "evaluation" and row["step"] == 0]
        return [row[value] for row in rows[:1] if math.isfinite(row.get(value, math.nan))]
    same = [each for each in run.evaluations if (each.name, each.protocol, each.encoder) == (name, protocol, encoder)]
    return [each.values[value] for each in same[-1:] if value in each.values]


def _row(groups: Sequence[Group], key: Key, shown: Sequence[str]) -> ComparisonRow:
    samples = [_sample(group, key) for group in groups]
    first = samples[0]
    found = [difference(first, each) if first is not None and each is not None else None for each in samples[1:]]
    return ComparisonRow(
        title=f"{key[1]} ({key[0]})",
        baselines=tuple(_baseline(groups, key, name) for name in shown),
        groups=tuple("" if each is None else str(each) for each in samples),
        differences=tuple("" if each is None else str(each) for each in found),
        basis=", ".join(dict.fromkeys(each.over for each in found if each is not None)),
    )
