"""What an image costs against batch, image size, depth and number of ranks, in time and memory, and where it bends.

    python -m benchmarks.scaling --axes batch patches depth     # seconds of the CPU, about two minutes
    python -m benchmarks.scaling --axes ranks                    # 1 and 2 local ranks, one thread each
    python -m benchmarks.scaling --axes memory                   # a process for each case

Every axis varies one thing of one small model. Its cases take turns, a burst of steps each, with one thread, of which
the seconds of the CPU are counted, so that other processes disturb little; on a GPU, and for ranks, which wait for each
other, those of the clock. Each axis replaces its rows in benchmarks/results/scaling.json, so the pieces can be made one
by one. Laws are fitted to the medians: `--report` prints tables and laws from that file, `--figure` draws them.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.guard import Spread, peak_memory
from benchmarks.step import Bench, Case
from cjepa.models import EncoderConfig
from cjepa.models.predictor import PredictorConfig
from cjepa.ranks import joined, rank
from cjepa.training.device_memory import keep_freed_memory
from cjepa.training.environment import describe_environment

RESULTS = Path(__file__).parent / "results" / "scaling.json"
BASE = Case(
    name="base",
    encoder=EncoderConfig(width=192, depth=6, heads=3, patch_size=8),
    predictor=PredictorConfig(width=96, depth=2),
    image_size=96,
    batch_size=16,
    precision="bfloat16",
)
"""ViT-T of half its depth on 144 patches, with the small predictor of the CIFAR-10 presets."""
BATCHES, SIDES, DEPTHS, RANKS = (2, 4, 8, 16, 32, 64), (32, 48, 64, 96, 128, 192, 256), (2, 4, 8, 12, 16), (1, 2)
APART = "1 + 1"
"""Two jobs of one rank at the same time, which wait for nothing of each other: what two ranks could reach here."""
TIMED, MEASURED = ("batch", "patches", "depth"), ("memory",)
AXES = (*TIMED, "ranks", *MEASURED)
BURST = 0.4
"""Seconds of a burst at least; at least two steps."""
RANK_STEPS = 6


_ROUNDING = 1e-9
"""Terms of a law that are nowhere a larger share of it than this are none."""


@dataclass(frozen=True)
class Law:
    """y = sum of coefficients * x^power, fitted by least squares of the relative errors."""

    powers: tuple[int, ...]
    coefficients: tuple[float, ...]
    worst: float

    @classmethod
    def of(cls, x: Sequence[float], y: Sequence[float], powers: tuple[int, ...]) -> "Law":
        """The best law with these powers and no negative coefficient."""
        from scipy.optimize import nnls

        values: npt.NDArray[np.float64] = np.asarray(y, dtype=np.float64)
        terms = np.stack([np.asarray(x, dtype=np.float64) ** power for power in powers], axis=1)
        found, _ = nnls(terms / values[:, None], np.ones(len(values)))
        found[(terms * found / values[:, None]).max(0) < _ROUNDING] = 0.0
        return cls(powers, tuple(found.tolist()), float(np.abs(terms @ found / values - 1).max()))

    def bend(self) -> float | None:
        """Where the last term overtakes the one before; None where one of them is 0."""
        before, last = self.coefficients[-2:]
        return None if not before or not last else (before / last) ** (1.0 / (self.powers[-1] - self.powers[-2]))


def cases(axis: str) -> dict[int, Case]:
    """The cases of an axis, by what varies."""
    match axis:
        case "batch":
            return {batch: replace(BASE, batch_size=batch) for batch in BATCHES}
        case "patches":
            size = BASE.encoder.patch_size
            return {(side // size) ** 2: replace(BASE, image_size=side, batch_size=8) for side in SIDES}
        case "depth":
            deep = {depth: BASE.encoder.model_copy(update={"depth": depth}) for depth in DEPTHS}
            return {depth: replace(BASE, encoder=encoder) for depth, encoder in deep.items()}
    raise ValueError(axis)


def timed(axis: str, bursts: int, threads: int, device: str) -> list[dict[str, Any]]:
    """Rows of an axis: seconds of a step in undisturbed bursts, the cases in turns."""
    torch.set_num_threads(threads)
    benches = {x: Bench(case, torch.device(device)) for x, case in cases(axis).items()}
    for bench in benches.values():
        bench.step()
    kept: dict[int, list[float]] = {x: [] for x in benches}
    for turn in range(bursts):
        for x in benches if turn % 2 else reversed(benches):
            kept[x].append(_burst(benches[x]))
    found = cases(axis)
    return [
        {"axis": axis, "x": x, "batch_size": found[x].batch_size, "seconds": kept[x], **benches[x].facts()}
        for x in benches
    ]


def _burst(bench: Bench) -> float:
    """Mean seconds of a step: of the clock on a GPU, else of this process on the CPU."""
    clock = time.perf_counter if bench.device.type == "cuda" else time.process_time
    began, steps = clock(), 0
    while steps < 2 or clock() - began < BURST:
        bench.step()
        steps += 1
    return (clock() - began) / steps


def on_ranks(repeats: int) -> list[dict[str, Any]]:
    """Rows of weak scaling: the same images for every rank, one thread each, jobs in turns."""
    found: dict[Any, list[float]] = {jobs: [] for jobs in (*RANKS, APART)}
    for repeat in range(repeats):
        for jobs in found if repeat % 2 else reversed(found):
            found[jobs] += _together(1, 1) if jobs == APART else _together(jobs)
    return [
        {"axis": "ranks", "x": jobs, "batch_size": (1 if jobs == APART else jobs) * BASE.batch_size, "seconds": seconds}
        for jobs, seconds in found.items()
    ]


def _together(*ranks: int) -> list[float]:
    """Seconds of the steps of jobs with so many ranks each, which run at the same time."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    jobs = []
    for count in ranks:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        command = [sys.executable, *launcher, "-m", "benchmarks.scaling", "--as-rank"]
        jobs.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
    answers = [job.communicate()[0] for job in jobs]
    if any(job.returncode for job in jobs):
        raise SystemExit("a job of the ranks failed; its own words stand above")
    return [seconds for answer in answers for seconds in json.loads(answer.splitlines()[-1])]


def as_rank() -> None:
    """A rank of the job: prints the seconds of its steps, the first one left out, if it is the first."""
    device = torch.device("cpu")
    torch.set_num_threads(1)
    keep_freed_memory()  # as the command line does
    with joined(device):
        ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        bench = Bench(replace(BASE, batch_size=BASE.batch_size * ranks), device)
        share = bench.batch.images.shape[0] // ranks
        own = slice(rank() * share, (rank() + 1) * share)
        masks = replace(
            bench.batch.masks, context=bench.batch.masks.context[own], targets=bench.batch.masks.targets[own]
        )
        bench.batch = replace(bench.batch, images=bench.batch.images[own], masks=masks)
        seconds = []
        for _ in range(2 + RANK_STEPS):
            started = time.perf_counter()
            bench.step()
            seconds.append(time.perf_counter() - started)
        if rank() == 0:
            print(json.dumps(seconds[2:]))


def in_memory() -> list[dict[str, Any]]:
    """Rows of peak memory: every case in a process of its own, which takes two steps."""
    rows = []
    for axis in TIMED:
        for x, case in cases(axis).items():
            command = [sys.executable, "-m", "benchmarks.scaling", "--peak-of", axis, str(x)]
            answer = subprocess.run(command, capture_output=True, text=True, check=True)
            before, after = json.loads(answer.stdout.splitlines()[-1])
            rows.append(
                {"axis": "memory", "of": axis, "x": x, "batch_size": case.batch_size, "before": before, "peak": after}
            )
    return rows


def peak_of(axis: str, x: int) -> None:
    """Print the peak memory of this process before the model of a case and after two steps of it."""
    torch.set_num_threads(1)
    Bench(replace(BASE, batch_size=2, image_size=32), torch.device("cpu")).step()  # what every step loads
    before = peak_memory()
    bench = Bench(cases(axis)[x], torch.device("cpu"))
    for _ in range(2):
        bench.step()
    print(json.dumps([before, peak_memory()]))


def laws(rows: list[dict[str, Any]]) -> dict[str, Law]:
    """The law of every axis that was measured: of a step against batch, of an image against the others."""
    found = {}
    for axis, powers in (("batch", (0, 1)), ("patches", (0, 1, 2)), ("depth", (0, 1))):
        own = [row for row in rows if row["axis"] == axis and row["seconds"]]
        if len(own) > len(powers):
            share = [1 if axis == "batch" else row["batch_size"] for row in own]
            y = [Spread.of(row["seconds"]).median / each for row, each in zip(own, share, strict=True)]
            found[axis] = Law.of([row["x"] for row in own], y, powers)
    for axis in TIMED:
        own = [row for row in rows if row["axis"] == "memory" and row["of"] == axis]
        if own:
            powers = (0, 1, 2) if axis == "patches" else (0, 1)
            found[f"memory, {axis}"] = Law.of(
                [row["x"] for row in own], [row["peak"] - row["before"] for row in own], powers
            )
    return found


def report(rows: list[dict[str, Any]]) -> str:
    """Tables and laws in Markdown."""
    lines = ["| varied | value | batch | n | ms for an image | of the law |", "|---|---|---|---|---|---|"]
    found = laws(rows)
    for row in rows:
        if row["axis"] == "memory" or not row["seconds"]:
            continue
        own = Spread.of([1e3 * seconds / row["batch_size"] for seconds in row["seconds"]])
        law = found.get(row["axis"])
        fitted = ""
        if law is not None:
            expected = _value(law, row["x"]) / (row["x"] if row["axis"] == "batch" else 1)
            fitted = f"{1e3 * expected:.2f}"
        elif row["axis"] == "ranks":
            own = Spread.of([1e3 * seconds / BASE.batch_size for seconds in row["seconds"]])
        lines.append(
            f"| {row['axis']} | {row['x']} | {row['batch_size']} | {len(row['seconds'])} | "
            f"{own.median:.2f} ({own.low:.2f} to {own.high:.2f}) | {fitted} |"
        )
    lines += ["", "| varied | value | batch | memory of the training, MB | of the law |", "|---|---|---|---|---|"]
    for row in rows:
        if row["axis"] == "memory":
            expected = _value(found[f"memory, {row['of']}"], row["x"])
            lines.append(
                f"| {row['of']} | {row['x']} | {row['batch_size']} | {(row['peak'] - row['before']) / 1e6:,.0f} | "
                f"{expected / 1e6:,.0f} |"
            )
    return "\n".join([*lines, "", *_sentences(found, rows)])


def _value(law: Law, x: float) -> float:
    return sum(each * x**power for each, power in zip(law.coefficients, law.powers, strict=True))


def _sentences(found: dict[str, Law], rows: list[dict[str, Any]]) -> list[str]:
    said = []
    for axis, law in found.items():
        unit, factor = ("MB", 1e-6) if axis.startswith("memory") else ("ms", 1e3)
        name = {"batch": "B", "patches": "N", "depth": "L"}[axis.removeprefix("memory, ")]
        terms = " + ".join(
            f"{factor * each:.3g}" + ("" if not power else f" {name}" if power == 1 else f" {name}^{power}")
            for each, power in zip(law.coefficients, law.powers, strict=True)
        )
        bend = law.bend()
        where = "" if bend is None else f"; the last term is the larger from {name} = {bend:,.0f} on"
        said.append(f"- {axis}: {terms} {unit}, at most {100 * law.worst:.0f} % off{where}")
    ranks = {row["x"]: Spread.of(row["seconds"]).median for row in rows if row["axis"] == "ranks" and row["seconds"]}
    for jobs, what in {2: "two ranks", APART: "two jobs of one rank that know nothing of each other"}.items():
        if jobs in ranks:
            said.append(
                f"- weak scaling: {100 * ranks[1] / ranks[jobs]:.0f} % of twice the images per second for {what}"
            )
    return said


def figure(rows: list[dict[str, Any]], path: Path) -> None:
    """Time of an image against batch, patches and depth, with the laws."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(9, 2.8), layout="constrained")
    found = laws(rows)
    for place, axis in zip(drawn.subplots(1, len(TIMED)), TIMED, strict=True):
        own = [row for row in rows if row["axis"] == axis and row["seconds"]]
        x = [row["x"] for row in own]
        place.plot(x, [1e3 * Spread.of(row["seconds"]).median / row["batch_size"] for row in own], "o", color="#1b6ca8")
        fine = np.geomspace(min(x), max(x), 200)
        law = [1e3 * _value(found[axis], each) / (each if axis == "batch" else 1) for each in fine]
        place.plot(fine, law, color="#c8553d", linewidth=1)
        place.set(xscale="log", yscale="log", xlabel=axis, ylabel="ms for an image" if axis == "batch" else None)
        place.spines[["top", "right"]].set_visible(False)
    drawn.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--bursts", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--as-rank", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--peak-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_rank:
        return as_rank()
    if options.peak_of:
        return peak_of(options.peak_of[0], int(options.peak_of[1]))
    stored = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {"made": {}, "rows": []}
    for axis in () if options.report or options.figure else options.axes:
        match axis:
            case "ranks":
                made = on_ranks(max(options.bursts // 2, 1))
            case "memory":
                made = in_memory()
            case _:
                made = timed(axis, options.bursts, options.threads, options.device)
        stored["rows"] = [row for row in stored["rows"] if row["axis"] != axis] + made
        stored["made"][axis] = {"threads": options.threads, "device": options.device, **describe_environment()}
        options.out.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    if options.figure:
        figure(stored["rows"], options.figure)
    print(report(stored["rows"]))
    return None


if __name__ == "__main__":
    main()
