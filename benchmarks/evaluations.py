"""Evaluations of checkpoints that exist, each beside the untrained encoder: the table of docs/evaluation.md.

    python -m benchmarks.evaluations demo RUN                     photographs of the demo, crops of 32 px
    python -m benchmarks.evaluations cifar10 RUN                  a run of the preset cifar10-small
    python -m benchmarks.evaluations clothing RUN                 a run of the preset small-96, or of the study
    python -m benchmarks.evaluations camvid RUN --data CAMVID     street photographs with masks

evaluates a run that `cjepa pretrain` left, keeps every line in its evaluations.jsonl, and adds the rows to
benchmarks/results/evaluations.json; rows of other checkpoints and evaluations stay. Recipes are shortened to minutes on
a CPU, and the keys are in the file. `--report` prints the table from that file.

Heads of segmentation are trained from each of `--seeds`, one row a seed, and the table has their mean and deviation.
CamVid's images and masks are halved first (240 x 180), so that reading them does not take most of the time. The video
is the first sequence of its test images, one frame a second, its five largest classes followed as objects.
"""

import argparse
import json
import shutil
import statistics
from pathlib import Path
from typing import Any, get_args

import numpy as np
from PIL import Image

from cjepa.build import build_encoder, find_checkpoint, read_config
from cjepa.evaluation import Evaluation, FeatureEvaluation, protocol_of
from cjepa.evaluation.attentive import AttentiveConfig
from cjepa.evaluation.davis_scores import VOID
from cjepa.evaluation.finetune import FinetuneConfig
from cjepa.evaluation.knn import KnnConfig
from cjepa.evaluation.linear import LinearConfig
from cjepa.evaluation.linear_sgd import LinearSgdConfig
from cjepa.evaluation.lowshot import LowshotConfig
from cjepa.evaluation.patches import PatchRetrievalConfig
from cjepa.evaluation.pooling import PoolingConfig
from cjepa.evaluation.retrieval import RetrievalConfig
from cjepa.evaluation.segmentation import SegmentationConfig, open_segmentation
from cjepa.evaluation.video import VideoConfig
from cjepa.evaluation.work import Work
from cjepa.runs.evaluating import Result, encoder_digest, evaluate_run
from cjepa.training.environment import describe_environment
from cjepa.training.progress import Progress

RESULTS = Path(__file__).parent / "results" / "evaluations.json"
FOLLOWED = {0: 1, 1: 2, 3: 3, 5: 4, 8: 5}
"""CamVid's sky, building, road, tree and car, as objects of a video."""
FRAMES = 20
HEAD_SEED = "head_seed"
"""Key of the protocol of rows that differ in nothing else."""


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
        FinetuneConfig(
            epochs=15,
            warmup_epochs=2,
            batch_size=60,
            base_rate=4e-3,
            final_share=2e-3,  # as the rows of the file were measured
            layer_decay=0.75,
            randaugment=0,
        ),
    ]


def cifar10_suite() -> list[Evaluation]:
    return [
        KnnConfig(k=(20,)),
        RetrievalConfig(),
        LowshotConfig(shares=(0.01,), per_class=(10,)),
        LinearConfig(),
        LinearSgdConfig(epochs=2, warmup_epochs=0.2, batch_size=512, rates=(0.3, 1.0), optimizer="sgd"),
        AttentiveConfig(epochs=2, warmup_epochs=0.2, batch_size=256),
        FinetuneConfig(epochs=2, warmup_epochs=0.2, batch_size=128, base_rate=2e-3, layer_decay=0.75, randaugment=0),
    ]


def clothing_suite(depth: int) -> list[Evaluation]:
    return [
        KnnConfig(k=(20,)),
        RetrievalConfig(),
        LowshotConfig(shares=(0.1,), per_class=(5,)),
        LinearConfig(),
        LinearConfig(pooling=PoolingConfig(layers=min(4, depth))),
        LinearSgdConfig(epochs=10, warmup_epochs=1, batch_size=128, rates=(0.3, 1.0), optimizer="sgd"),
        AttentiveConfig(epochs=10, warmup_epochs=1, batch_size=128),
        FinetuneConfig(epochs=5, warmup_epochs=0.5, batch_size=64, base_rate=2e-3, layer_decay=0.75, randaugment=0),
    ]


def camvid_suite(data: Path, scratch: Path) -> list[Evaluation]:
    write_video(data, scratch / "street")
    halved = write_halved(data, scratch / "camvid")
    # Windows of 64 pixels show as much of these images as the crops that the encoder was trained with.
    images: dict[str, Any] = {"data": halved, "unlabelled": 11, "shorter_side": 128}
    return [
        SegmentationConfig(**images, epochs=15, rate=1e-2, train_scales=(0.8, 1.25)),
        PatchRetrievalConfig(**images),
        VideoConfig(data=scratch / "street", shorter_side=184, radius=6),
        SegmentationConfig(**images, epochs=10, train_scales=(0.8, 1.25), head="upernet", channels=32),
    ]


def write_halved(data: Path, out: Path) -> Path:
    """CamVid's training and test images and masks at half their size."""
    for split in ("train", "test"):
        for image in sorted((data / "images" / split).glob("*.jpg")):
            for source, kind, resample in (
                (image, "images", Image.Resampling.BILINEAR),
                (data / "masks" / split / f"{image.stem}.png", "masks", Image.Resampling.NEAREST),
            ):
                target = out / kind / split / f"{image.stem}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                if not target.exists():
                    with Image.open(source) as picture:
                        picture.resize((picture.width // 2, picture.height // 2), resample).save(target)
    return out


def chosen(suite: list[Evaluation], only: list[str] | None) -> list[Evaluation]:
    """Those of a suite with these names; segmentation:linear and segmentation:upernet tell heads apart."""

    def names(evaluation: Evaluation) -> set[str]:
        head = {f"{evaluation.name}:{evaluation.head}"} if isinstance(evaluation, SegmentationConfig) else set()
        return {evaluation.name} | head

    return [evaluation for evaluation in suite if only is None or names(evaluation) & set(only)]


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


def measure(name: str, run: Path, suite: list[Evaluation], seeds: list[int]) -> None:
    """Evaluate and add the rows; rows of the same checkpoint and protocol are replaced.

    Evaluations of frozen features go through one call, which extracts them once.
    """
    features = [each for each in suite if isinstance(each, get_args(FeatureEvaluation))]
    parts = ([features] if features else []) + [[each] for each in suite if each not in features]
    for part in parts:
        first = part[0]
        if isinstance(first, SegmentationConfig):
            for seed in seeds:
                add_rows(name, run, segmented(run, first, seed))
        else:
            add_rows(name, run, evaluate_run(run, part, device="cpu"))
        print(report(), flush=True)


def segmented(run: Path, evaluation: SegmentationConfig, seed: int) -> list[Result]:
    """Untrained and trained encoder under heads of the same seed, which is not the run's."""
    config, checkpoint = read_config(run), find_checkpoint(run, "last")
    task = open_segmentation(evaluation, config.data)
    protocol = protocol_of(evaluation, task, "float32") | {HEAD_SEED: seed}
    results = []
    for name, used in (("untrained", None), ("target", checkpoint)):
        encoder = build_encoder(config, used)
        values = task.measure(encoder, Work(seed=seed, progress=Progress))
        step = 0 if used is None else used.step
        results.append(Result(step, evaluation.name, name, encoder_digest(encoder), protocol, values))
    return results


def add_rows(name: str, run: Path, results: list[Result]) -> None:
    """Into the file, which others may have changed meanwhile."""
    rows: list[dict[str, Any]] = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    environment, seed = describe_environment(), read_config(run).seed
    for result in results:
        row = {
            "checkpoint": f"{name}, seed {seed}" if seed else name,
            "commit": environment["commit"],
            "seed": seed,
            "step": result.step,
            "evaluation": result.name,
            "features": result.encoder,
            "values": result.values,
            "protocol": result.protocol,
        }
        rows = [each for each in rows if identity(each) != identity(row)] + [row]
    RESULTS.write_text(json.dumps({"environment": environment, "rows": rows}, indent=1) + "\n")


def identity(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["checkpoint"], row["evaluation"], row["features"], row["protocol"]


def report() -> str:
    """One line for each value, as Markdown: what there is to beat, then the trained encoder."""
    rows = over_seeds(json.loads(RESULTS.read_text())["rows"])
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


def over_seeds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that differ in the seed of their head alone, made one: mean and deviation of their values."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        same = row | {"protocol": {key: value for key, value in row["protocol"].items() if key != HEAD_SEED}}
        key = json.dumps(
            {name: part for name, part in same.items() if name not in ("values", "commit")}, sort_keys=True
        )
        groups.setdefault(key, []).append(same)
    merged = []
    for group in groups.values():
        values = {name: statistics.mean(each["values"][name] for each in group) for name in group[0]["values"]}
        if len(group) > 1:
            for name in list(values):
                values[f"{name}_std"] = statistics.stdev(each["values"][name] for each in group)
        merged.append(group[0] | {"values": values})
    return merged


def cell(values: dict[str, float], name: str) -> str:
    if name not in values:
        return ""
    deviation = f" ± {values[f'{name}_std']:.1f}" if f"{name}_std" in values else ""
    return f"{values[name]:.1f}{deviation}"


def label(row: dict[str, Any]) -> str:
    protocol = row["protocol"]
    layers = protocol.get("pooling", {}).get("layers", 1)
    head = f", {protocol['head']}" if "head" in protocol else ""
    tuned = ", tuned" if protocol.get("tune", 0) > 0 else ""
    return row["evaluation"] + (f", {layers} layers" if layers > 1 else "") + head + tuned


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", choices=("demo", "cifar10", "clothing", "camvid"))
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--label", help="of the run in the table, by default CHECKPOINT")
    parser.add_argument("--data", type=Path, help="CamVid's folder, with images and masks")
    parser.add_argument("--scratch", type=Path, default=Path("scratch/evaluations"))
    parser.add_argument("--only", nargs="+", help="names of evaluations, where not all are wanted")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the heads of segmentation")
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    if arguments.report:
        print(report())
        return
    match arguments.checkpoint:
        case "demo":
            suite = demo_suite()
        case "cifar10":
            suite = cifar10_suite()
        case "clothing":
            suite = clothing_suite(read_config(arguments.run).model.encoder.depth)
        case "camvid" if arguments.data is not None:
            suite = camvid_suite(arguments.data, arguments.scratch)
        case _:
            parser.error("name a checkpoint and its run; camvid needs --data")
    measure(arguments.label or arguments.checkpoint, arguments.run, chosen(suite, arguments.only), arguments.seeds)


if __name__ == "__main__":
    main()
