"""Seconds of training until a stated accuracy, of variants that take turns: what a user pays.

    python -m benchmarks.time_to_accuracy --preset demo --accuracy 44 --seeds 2 \\
        --variants before=CHECKOUT after=. "narrow=.,model.predictor.width=48"

A variant is a checkout of this repository (another commit, by `git worktree add`) and perhaps changes to the preset.
Every seed is trained by all variants, one after the other, the order turned round with each seed, by the command that
users give. A run ends at its preset's end; what counts is its first evaluation that reaches the accuracy, by the clock
of timing.jsonl, between evaluations by a straight line. Adds to benchmarks/results/time_to_accuracy.json; runs that
are interrupted continue, and `--report` prints the table.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.guard import Spread
from cjepa.training.environment import describe_environment
from cjepa.training.metrics import read_metrics
from cjepa.training.rows import read_rows

RESULTS = Path(__file__).parent / "results" / "time_to_accuracy.json"
QUALITY = "knn_20_centred"


def seconds_to(run: Path, quality: str, accuracy: float) -> float | None:
    """Seconds of a run until its evaluations reach an accuracy, None if they never do."""
    clock = {row["step"]: float(row["seconds"]) for row in read_rows(run / "timing.jsonl")}
    before: tuple[float, float] | None = None
    for row in read_metrics(run / "metrics.jsonl"):
        if row["split"] != "evaluation" or row["step"] not in clock:
            continue
        now = (clock[row["step"]], float(row[quality]))
        if now[1] >= accuracy:
            if before is None:
                return now[0]
            share = (accuracy - before[1]) / (now[1] - before[1])
            return before[0] + share * (now[0] - before[0])
        before = now
    return None


def train(name: str, source: Path, preset: str, changes: list[str], run: Path) -> dict[str, Any]:
    """Train with the package of a checkout, or continue; seconds of the CPU that this took now."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "cjepa", "pretrain", preset, *changes, "--out", str(run)]
    environment = {**os.environ, "PYTHONPATH": str(source.resolve() / "src")}
    subprocess.run(command, check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    commit = json.loads((run / "environment.json").read_text(encoding="utf-8"))["commit"]
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"variant": name, "changes": changes, "commit": commit, "cpu_seconds": round(used, 1)}


def measured(run: Path, accuracy: float) -> dict[str, Any]:
    """What a run that is done says."""
    rows = [row for row in read_metrics(run / "metrics.jsonl") if row["split"] == "evaluation"]
    clock = read_rows(run / "timing.jsonl")
    return {
        "accuracy": accuracy,
        "seconds_to_accuracy": seconds_to(run, QUALITY, accuracy),
        "seconds": clock[-1]["seconds"],
        "best": max(row[QUALITY] for row in rows),
        "last": rows[-1][QUALITY],
    }


def study(preset: str, variants: dict[str, tuple[Path, list[str]]], accuracy: float, seeds: int, options: Any) -> None:
    """Train what the result file lacks; it is rewritten after each run."""
    rows = json.loads(options.out.read_text(encoding="utf-8"))["rows"] if options.out.exists() else []
    for seed in range(seeds):
        for name in reversed(variants) if seed % 2 else variants:
            if any((row["preset"], row["variant"], row["seed"]) == (preset, name, seed) for row in rows):
                continue
            source, changes = variants[name]
            run = options.scratch / f"{Path(preset).stem}-{name}-seed{seed}"
            row = train(name, source, preset, [*changes, *options.changes, f"seed={seed}"], run)
            row |= {**measured(run, accuracy), "environment": describe_environment()}
            rows.append({"preset": preset, "seed": seed, **row})
            options.out.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")


def report(rows: list[dict[str, Any]]) -> str:
    """A table in Markdown; ratios to the first variant of a preset, seed by seed."""
    lines = [
        "| preset | variant | n | accuracy reached in, s | times the first | best accuracy | whole run, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for preset, name in dict.fromkeys((row["preset"], row["variant"]) for row in rows):
        own = [row for row in rows if (row["preset"], row["variant"]) == (preset, name)]
        alike = [row for row in rows if row["preset"] == preset]
        base = {row["seed"]: row["seconds_to_accuracy"] for row in alike if row["variant"] == alike[0]["variant"]}
        reached = [row for row in own if row["seconds_to_accuracy"] is not None]
        times = f"{own[0]['accuracy']:g} %: " + (
            _text([row["seconds_to_accuracy"] for row in reached]) if len(reached) == len(own) else "not by all seeds"
        )
        ratios = [base[row["seed"]] / row["seconds_to_accuracy"] for row in reached if base.get(row["seed"])]
        lines.append(
            f"| {preset} | {name} | {len(own)} | {times} | {_text(ratios) if ratios else ''} | "
            f"{_text([row['best'] for row in own])} | {_text([row['seconds'] for row in own])} |"
        )
    return "\n".join(lines)


def _text(values: list[float]) -> str:
    spread = Spread.of(values)
    return f"{spread.median:.3g}" + (f" ({min(values):.3g} to {max(values):.3g})" if len(values) > 1 else "")


def _variant(text: str) -> tuple[str, tuple[Path, list[str]]]:
    name, _, rest = text.partition("=")
    source, *changes = rest.split(",")
    if not source:
        raise argparse.ArgumentTypeError(f"{text}: give NAME=CHECKOUT[,KEY=VALUE...]")
    return name, (Path(source), changes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--variants", nargs="+", type=_variant, default=[])
    parser.add_argument("--changes", nargs="*", default=[], help="changes to all variants, such as data=DIR")
    parser.add_argument("--accuracy", type=float, default=44.0, help=f"{QUALITY}, in percent")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--scratch", type=Path, default=Path("scratch/time-to-accuracy"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    if not options.report:
        study(options.preset, dict(options.variants), options.accuracy, options.seeds, options)
    print(report(json.loads(options.out.read_text(encoding="utf-8"))["rows"]))


if __name__ == "__main__":
    main()
