"""The paper's linear dynamics (Appendix A), and what a moving average and VICReg change in them: docs/theory.md.

    python -m benchmarks.theory            integrates, trains and writes benchmarks/results/theory.json (a minute)
    python -m benchmarks.theory --report   writes the tables and the figure of docs/theory.md from that file

Every curve comes three times: in closed form where there is one, from the differential equation, and from stochastic
gradient descent on random batches.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import theory_dynamics as dynamics
from benchmarks.theory_descent import descend, descend_covariance
from benchmarks.theory_dynamics import Array, Setting
from benchmarks.theory_figure import draw
from cjepa.training.environment import describe_environment

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "theory.json"
DOCUMENT = ROOT / "docs" / "theory.md"
FIGURE = ROOT / "docs" / "images" / "theory.png"
BEGIN, END = "<!-- written by python -m benchmarks.theory --report -->", "<!-- end of what is written -->"
RATE, BATCH, SEED = 0.02, 256, 0
"""Of the stochastic gradient descent."""
LARGE_BATCH = 4096
"""Of the two dimensions: batches of few images push far beyond the hinge, since some of them vary too little."""
PAPER_WEIGHT = 0.025
"""The paper's weight of the variance term, 0.001 * 25."""
ROWS = 40
SMALLEST = 1e-12


@dataclass(frozen=True)
class Curve:
    """One course over time: w of a mode, or the smaller eigenvalue of a covariance."""

    panel: str
    label: str
    times: list[float]
    closed: list[float] | None
    integrated: list[float]
    trained: list[float]


@dataclass(frozen=True)
class End:
    """Where a mode comes to rest: as derived, integrated and trained."""

    what: str
    derived: float
    integrated: float
    trained: float


def curves_of(panel: str, labels: Sequence[str], settings: Sequence[Setting], until: float) -> list[Curve]:
    """Modes that are trained together."""
    times, trained, _ = descend(settings, RATE, round(until / RATE), BATCH, SEED, ROWS)
    return [
        Curve(
            panel,
            label,
            _listed(times),
            _listed(closed) if (closed := closed_course(setting, times)) is not None else None,
            _listed(dynamics.integrate(setting, times)[0]),
            _listed(course),
        )
        for label, setting, course in zip(labels, settings, trained, strict=True)
    ]


def closed_course(setting: Setting, times: Array) -> Array | None:
    """w(t) where the predictor is fixed and there is no variance term."""
    if setting.learns or setting.variance or setting.decay:
        return None
    if setting.target == "average":
        return dynamics.average_course(setting.predictor, setting.follows, setting.noise, setting.start, times)
    rate = dynamics.fixed_rate(setting.predictor, setting.target, setting.noise)
    return np.asarray(setting.start * np.exp(rate * times))


def all_curves() -> list[Curve]:
    """The figure's curves, panel by panel."""
    factors = (0.25, 0.5, 0.75, 1.25)
    names = [f"λ = {factor:g}" for factor in factors]
    found = curves_of("stop-gradient", names, [Setting(p) for p in factors], 6)
    found += curves_of("no stop-gradient", names, [Setting(p, target="gradient") for p in factors], 6)
    for target, name in (("stop", "stop-gradient"), ("gradient", "no stop-gradient")):
        for noise in (0.0, 0.25):
            label = f"{name}, views differ by {noise:g}" if noise else f"{name}, equal views (the paper)"
            found += curves_of("no predictor", [label], [Setting(1.0, target=target, noise=noise)], 6)
    for follows in (10.0, 1.0, 0.1):
        modes = [Setting(p, target="average", follows=follows) for p in (0.5, 1.25)]
        labels = [f"λ = {mode.predictor:g}, k = {follows:g}" for mode in modes]
        found += curves_of("moving average", labels, modes, 6)
    for label, mode in learning_modes().items():
        found += curves_of("predictor that learns", [label], [mode], 20)
    for label, mode in variance_modes().items():
        found += curves_of("VICReg's variance", [label], [mode], 40)
    return found + covariance_curves()


def learning_modes() -> dict[str, Setting]:
    return {
        "stop-gradient": Setting(0.3, 0.6, learns=1.0),
        "moving average, k = 0.5": Setting(0.3, 0.6, "average", learns=1.0, follows=0.5),
        "no stop-gradient, w starts at 0.6": Setting(0.3, 0.6, "gradient", learns=1.0),
        "no stop-gradient, w starts at 1.0": Setting(0.3, 1.0, "gradient", learns=1.0),
    }


def variance_modes() -> dict[str, Setting]:
    """Modes that would die: without stop-gradient, and above one with a moving average."""
    return {
        "no stop-gradient, weight 0": Setting(0.25, target="gradient"),
        "no stop-gradient, weight 0.025 (the paper's)": Setting(0.25, target="gradient", variance=PAPER_WEIGHT),
        "no stop-gradient, weight 0.25": Setting(0.25, target="gradient", variance=10 * PAPER_WEIGHT),
        "moving average, λ = 1.25, weight 0.025": Setting(1.25, target="average", follows=0.5, variance=PAPER_WEIGHT),
    }


def covariance_curves() -> list[Curve]:
    """The smaller eigenvalue of two nearly equal dimensions, under VICReg's terms alone and together."""
    found = []
    for label, weight, push, lower in (
        ("covariance alone", 0.1, 0.0, 1e-3),
        ("variance alone", 0.0, 0.25, 1e-3),
        ("both", 0.1, 0.25, 1e-3),
        ("both, exactly equal dimensions", 0.1, 0.25, 0.0),
    ):
        start, steps = (1.0, lower), round(20 / RATE)
        times, trained = descend_covariance(weight, push, start, RATE, steps, LARGE_BATCH, SEED, ROWS)
        integrated = dynamics.integrate_covariance(weight, push, 1.0, lower, times)
        closed = None
        if not push:
            variance, covariance = dynamics.covariance_course(weight, (1 + lower) / 2, (1 - lower) / 2, times)
            closed = _listed(variance - covariance)
        found.append(
            Curve("VICReg's covariance", label, _listed(times), closed, _listed(integrated[1]), _listed(trained[1]))
        )
    return found


def all_ends() -> list[End]:
    """Where modes come to rest."""
    ends = []
    for label, mode in learning_modes().items():
        ends.append(_end(f"predictor that learns: {label}", mode, dynamics.learned_end(mode)[0], 60))
    for label, mode in variance_modes().items():
        target = "gradient" if mode.target == "gradient" else "stop"
        rate = dynamics.fixed_rate(mode.predictor, target, mode.noise)
        ends.append(_end(f"variance: {label}", mode, dynamics.variance_end(rate, mode.variance), 150))
    for decay in (0.1, 0.2, 0.3):
        for target in ("stop", "average"):
            mode = Setting(0.6, 0.6, target, learns=1.0, follows=0.5, decay=decay)
            rest = dynamics.decayed_ends(decay)
            name = "stop-gradient" if target == "stop" else "moving average, k = 0.5"
            ends.append(_end(f"weight decay {decay:g}: {name}", mode, rest[0] if rest else 0.0, 120))
    return ends


def _end(what: str, mode: Setting, derived: float, until: float) -> End:
    times, trained, _ = descend([mode], 2 * RATE, round(until / RATE / 2), BATCH, SEED, ROWS)
    integrated = dynamics.integrate(mode, times)[0]
    return End(what, derived, float(integrated[-1]), float(trained[0, -1]))


def measure() -> dict[str, Any]:
    """Everything, as it is written."""
    torch.set_num_threads(1)
    about = {
        "learning_rate": RATE,
        "batches": [BATCH, LARGE_BATCH],
        "seed": SEED,
        "environment": describe_environment(),
    }
    return about | {
        "curves": [vars(curve) for curve in all_curves()],
        "ends": [vars(end) for end in all_ends()],
    }


def gap(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest difference of two courses over the largest value of the second."""
    return float(np.abs(np.subtract(one, other)).max() / max(np.abs(other).max(), SMALLEST))


def courses_table(found: dict[str, Any]) -> str:
    """How far integration and training are from the closed forms, panel by panel, as Markdown."""
    lines = [
        "| dynamics | courses | closed forms | integrated from closed, % | trained from integrated, % |",
        "|---|---|---|---|---|",
    ]
    curves = [Curve(**each) for each in found["curves"]]
    for panel in dict.fromkeys(curve.panel for curve in curves):
        own = [curve for curve in curves if curve.panel == panel]
        closed = [100 * gap(each.integrated, each.closed) for each in own if each.closed is not None]
        trained = max(100 * gap(each.trained, each.integrated) for each in own)
        exact = f"{max(closed):.4f}" if closed else ""
        lines.append(f"| {panel} | {len(own)} | {len(closed)} | {exact} | {trained:.1f} |")
    return "\n".join(lines)


def ends_table(found: dict[str, Any]) -> str:
    """Amplitudes at rest, as Markdown."""
    lines = ["| mode | derived | integrated | trained |", "|---|---|---|---|"]
    for each in found["ends"]:
        values = (f"{abs(each[name]):.3f}" for name in ("derived", "integrated", "trained"))
        lines.append(f"| {each['what']} | {' | '.join(values)} |")
    return "\n".join(lines)


def section() -> str:
    """What --report writes into the document."""
    found = json.loads(RESULTS.read_text())
    return f"{courses_table(found)}\n\n{ends_table(found)}"


def report() -> None:
    """Write the tables and the figure."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{section()}\n\n{END}{after}", encoding="utf-8")
    draw(json.loads(RESULTS.read_text())["curves"], FIGURE)


def _listed(values: Array) -> list[float]:
    return [float(f"{value:.7g}") for value in values]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true")
    if parser.parse_args().report:
        report()
    else:
        RESULTS.write_text(json.dumps(measure(), indent=1) + "\n")
        print(section())


if __name__ == "__main__":
    main()
