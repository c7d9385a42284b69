"""The demo's recipe over seeds: does C-JEPA beat what it has to beat, and by how much more than chance?

    python -m benchmarks.demo --seeds 3

trains every variant (--variants; by default the two that the demo shows) with every seed, evaluates k-NN and linear
probes on the test halves, keeps the runs in --scratch, where they continue if interrupted, and writes
benchmarks/results/demo.json. `--report` prints the table from that file.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from cjepa.config import RunConfig
from cjepa.config.presets import resolve
from cjepa.evaluation.knn import KnnConfig
from cjepa.evaluation.linear import LinearConfig
from cjepa.runs.evaluating import evaluate_run
from cjepa.runs.pretraining import pretrain
from cjepa.training.environment import describe_environment

RESULTS = Path(__file__).parent / "results" / "demo.json"
VARIANTS = {
    "C-JEPA (demo)": [],
    "I-JEPA": ["objective=ijepa"],
    "Algorithm 1, beta 0.001": ["objective=cjepa"],
    "Algorithm 1, beta 0.1": ["objective=cjepa", "objective.beta=0.1"],
    "SIGReg, beta 0.1": ["objective=cjepa-sigreg", "objective.beta=0.1"],
    "beta 0.1": ["objective.beta=0.1"],
    "beta 0.001": ["objective.beta=0.001"],
    "reference patch projection": ["model.encoder.patch_projection=reference"],
    "targets over features": ["model.target.normalization=layer"],
    "momentum from 0.99": ["training.momentum.start=0.99"],
    "I-JEPA, momentum from 0.99, targets over features": [
        "objective=ijepa",
        "training.momentum.start=0.99",
        "model.target.normalization=layer",
    ],
    "weight decay 0.04": ["training.optimizer.weight_decay.final=0.04"],
    "predictor 384 x 6": ["model.predictor.width=384", "model.predictor.depth=6"],
    "reference masks": ["masking=reference", "masking.min_keep=4"],
    "flips": ["data.flip=true"],
}
"""What was tried on the demo's images, as changes to its preset; the first two are what the demo shows."""
VALUES = ("knn_20", "knn_20_centred", "linear")


def train_and_evaluate(name: str, config: RunConfig, folder: Path) -> list[dict[str, Any]]:
    """Rows of one training: its encoder, and with the same seed its untrained start and the baselines."""
    continued, started = folder.exists(), time.monotonic()
    outcome = pretrain(config, folder)
    seconds = None if continued else round(time.monotonic() - started, 1)
    rows: dict[str, dict[str, Any]] = {}
    for result in evaluate_run(folder, [KnnConfig(k=(20,)), LinearConfig()]):
        features = name if result.encoder == "target" else result.encoder
        rows.setdefault(features, {"features": features, "seed": config.seed}).update(result.values)
    rows[name] |= {
        "effective_rank": outcome.trained["effective_rank"],
        "verdict": outcome.verdict.state,
        "seconds": seconds,
        "images_seen": outcome.steps * config.training.batch_size,
    }
    rows["untrained"]["effective_rank"] = outcome.untrained["effective_rank"]
    return list(rows.values())


def study(variants: list[str], seeds: int, scratch: Path) -> None:
    """The trainings that the result file lacks; it is rewritten after each, so an interruption loses little."""
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    found: dict[tuple[str, int], dict[str, Any]] = {(row["features"], row["seed"]): row for row in rows}
    for seed in range(seeds):
        for name in variants:
            if (name, seed) in found:
                continue
            config = resolve("demo", [*VARIANTS[name], f"seed={seed}"])
            folder = scratch / f"{name.replace(' ', '-').replace(',', '').lower()}-seed{seed}"
            for row in train_and_evaluate(name, config, folder):
                found[row["features"], seed] = row
            write(RESULTS, list(found.values()))
            print(table(RESULTS), flush=True)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """The result file: the machine and the rows."""
    path.write_text(json.dumps({"environment": describe_environment(), "rows": rows}, indent=1) + "\n")


def table(path: Path) -> str:
    """Mean and standard deviation over seeds, as Markdown."""
    rows = json.loads(path.read_text())["rows"]
    lines = ["| features | n | 20-NN | 20-NN, centred | linear | effective rank |", "|---|---|---|---|---|---|"]
    for features in dict.fromkeys(row["features"] for row in rows):
        own = [row for row in rows if row["features"] == features]
        cells = [spread([row[value] for row in own]) for value in VALUES]
        ranks = [row["effective_rank"] for row in own if "effective_rank" in row]
        lines.append(f"| {features} | {len(own)} | {' | '.join(cells)} | {spread(ranks) if ranks else ''} |")
    return "\n".join(lines)


def differences(path: Path, against: str = "C-JEPA (demo)") -> str:
    """What the demo's encoder gains over each other kind of features, seed by seed, as Markdown."""
    rows = json.loads(path.read_text())["rows"]
    by_seed = {(row["features"], row["seed"]): row for row in rows}
    lines = [f"| {against} minus | 20-NN | 20-NN, centred | linear |", "|---|---|---|---|"]
    for features in dict.fromkeys(row["features"] for row in rows if row["features"] != against):
        pairs = [(by_seed[against, seed], row) for (name, seed), row in sorted(by_seed.items()) if name == features]
        gains = [", ".join(f"{own[value] - other[value]:+.1f}" for own, other in pairs) for value in VALUES]
        lines.append(f"| {features} | {' | '.join(gains)} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Mean ± standard deviation."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS)[:2])
    parser.add_argument("--scratch", type=Path, default=Path("scratch/demo-study"))
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    if arguments.report:
        print(table(RESULTS), differences(RESULTS), sep="\n\n")
    else:
        study(arguments.variants, arguments.seeds, arguments.scratch)


if __name__ == "__main__":
    main()
