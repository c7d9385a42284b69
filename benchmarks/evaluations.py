"""Evaluations of checkpoints that exist, each beside the untrained encoder: the table of docs/evaluation.md.

    python -m benchmarks.evaluations demo RUN                     photographs of the demo, crops of 32 px
    python -m benchmarks.evaluations camvid RUN --data CAMVID     street photographs with masks

evaluates a run that `cjepa pretrain` left, keeps every line in its evaluations.jsonl, and adds the rows to
benchmarks/results/evaluations.json. Recipes are shortened to minutes on a CPU, and the keys are in the file. The video
is the first sequence of CamVid's test images, one frame a second, its five largest classes followed as objects.
`--report` prints the table from that file.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cjepa.build import read_config
from cjepa.evaluation import Evaluation
from cjepa.evaluation.attentive import AttentiveConfig
from cjepa.evaluation.davis_scores import VOID
from cjepa.evaluation.finetune import FinetuneConfig
from cjepa.evaluation.knn import KnnConfig
from cjepa.evaluation.linear import LinearConfig
from cjepa.evaluation.linear_sgd import LinearSgdConfig
from cjepa.evaluation.lowshot import LowshotConfig
from cjepa.evaluation.pooling import PoolingConfig
from cjepa.evaluation.retrieval import RetrievalConfig
from cjepa.evaluation.segmentation import SegmentationConfig
from cjepa.evaluation.video import VideoConfig
from cjepa.runs.evaluating import evaluate_run
from cjepa.training.environment import describe_environment

RESULTS = Path(__file__).parent / "results" / "evaluations.json"
FOLLOWED = {0: 1, 1: 2, 3: 3, 5: 4, 8: 5}
"""CamVid's sky, building, road, tree and car, as objects of a video."""
FRAMES = 20


def demo_suite() -> list[Evaluation]:
    four = PoolingConfig(layers=4)
    return [
        KnnConfig(k=(20,)),
        LinearConfig(),
        LinearConfig(pooling=four),
        LowshotConfig(shares=(), per_class=(1, 5, 10)),
        RetrievalConfig(),
        LinearSgdConfig(epochs=15, warmup_epochs=2, batch_size=120, rates=(0.3, 1.0, 3.0), optimizer="sgd"),
        AttentiveConfig(epochs=10, batch_size=120),
        FinetuneConfig(epochs=15, warmup_epochs=2, batch_size=60, base_rate=4e-3, layer_decay=0.75, randaugment=0),
    ]


def camvid_suite(data: Path, scratch: Path) -> list[Evaluation]:
    write_video(data, scratch)
    return [
        SegmentationConfig(data=data, unlabelled=11, shorter_side=96, epochs=4, rate=3e-3),
        VideoConfig(data=scratch, shorter_side=184, radius=6),
    ]


def chosen(suite: list[Evaluation], only: list[str] | None) -> list[Evaluation]:
    return [evaluation for evaluation in suite if only is None or evaluation.name in only]


def write_video(data: Path, out: Path) -> None:
    """The first FRAMES test images of the sequence 0001TP in DAVIS's layout; other classes become ground."""
    shutil.rmtree(out, ignore_errors=True)
    frames = sorted((data / "images" / "test").glob("0001TP_*.jpg"))[:FRAMES]
    for folder in ("JPEGImages", "Annotations"):
        (out / folder / "480p" / "street").mkdir(parents=True)
    for number, frame in enumerate(frames):
        shutil.copy(frame, out / "JPEGImages" / "480p" / "street" / f"{number:05d}.jpg")
        labels = np.asarray(Image.open(data / "masks" / "test" / f"{frame.stem}.png"))
        mask = np.zeros_like(labels)
        for label, thing in FOLLOWED.items():
            mask[labels == label] = thing
        mask[labels == 11] = VOID
        Image.fromarray(mask).save(out / "Annotations" / "480p" / "street" / f"{number:05d}.png")
    listing = out / "ImageSets" / "2017" / "val.txt"
    listing.parent.mkdir(parents=True)
    listing.write_text("street\n")


def measure(name: str, run: Path, suite: list[Evaluation]) -> None:
    """Evaluate, one after the other, and add the rows; rows of the same checkpoint and protocol are replaced."""
    rows: list[dict[str, Any]] = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    config = read_config(run)
    for evaluation in suite:
        results = evaluate_run(run, [evaluation], device="cpu")
        for result in results:
            row = {
                "checkpoint": name,
                "seed": config.seed,
                "step": result.step,
                "evaluation": result.name,
                "features": result.encoder,
                "values": result.values,
                "protocol": result.protocol,
            }
            key = (name, result.name, result.encoder, result.protocol)
            rows = [each for each in rows if identity(each) != key] + [row]
        RESULTS.write_text(json.dumps({"environment": describe_environment(), "rows": rows}, indent=1) + "\n")
        print(report(), flush=True)


def identity(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["checkpoint"], row["evaluation"], row["features"], row["protocol"]


def report() -> str:
    """One line for each value, as Markdown: what there is to beat, then the trained encoder."""
    rows = json.loads(RESULTS.read_text())["rows"]
    lines = ["| checkpoint | evaluation | value | to beat | untrained | trained |", "|---|---|---|---|---|---|"]
    trained = [row for row in rows if row["features"] == "target"]
    for row in trained:
        same = {
            each["features"]: each["values"]
            for each in rows
            if each["checkpoint"] == row["checkpoint"] and each["protocol"] == row["protocol"]
        }
        for value in row["values"]:
            if value.endswith(("_std", "_rate")):
                continue
            others = [
                f"{name} {cell(values, value)}" for name, values in same.items() if name not in ("target", "untrained")
            ]
            cells = [", ".join(others), cell(same.get("untrained", {}), value), cell(row["values"], value)]
            lines.append(f"| {row['checkpoint']}, step {row['step']} | {label(row)} | {value} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(values: dict[str, float], name: str) -> str:
    if name not in values:
        return ""
    deviation = f" ± {values[f'{name}_std']:.1f}" if f"{name}_std" in values else ""
    return f"{values[name]:.1f}{deviation}"


def label(row: dict[str, Any]) -> str:
    layers = row["protocol"].get("pooling", {}).get("layers", 1)
    return row["evaluation"] + (f", {layers} layers" if layers > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", choices=("demo", "camvid"))
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--data", type=Path, help="CamVid's folder, with images and masks")
    parser.add_argument("--scratch", type=Path, default=Path("scratch/evaluations"))
    parser.add_argument("--only", nargs="+", help="names of evaluations, where not all are wanted")
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    if arguments.report:
        print(report())
    elif arguments.checkpoint == "demo":
        measure("demo", arguments.run, chosen(demo_suite(), arguments.only))
    elif arguments.checkpoint == "camvid" and arguments.data is not None:
        suite = camvid_suite(arguments.data, arguments.scratch / "street")
        measure("camvid", arguments.run, chosen(suite, arguments.only))
    else:
        parser.error("name a checkpoint and its run; camvid needs --data")


if __name__ == "__main__":
    main()
