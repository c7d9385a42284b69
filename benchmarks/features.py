"""Cost of evaluating: features against the encoder's bare forward pass, and k-NN of 10,000 in 50,000 features.

    python -m benchmarks.features

measures both in turns in one process, so that what else the machine does meets both alike, and writes
benchmarks/results/features.json. Ratios are of this process's CPU time, which other processes hardly change, and of
the clock. `--report` prints the table from that file.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.guard import Spread
from cjepa.evaluation.features import LabelledFeatures, extract_features
from cjepa.evaluation.knn import KnnConfig, knn_accuracy
from cjepa.models import EncoderConfig, VisionTransformer
from cjepa.models.pretrained import normalise
from cjepa.training.environment import describe_environment

RESULTS = Path(__file__).parent / "results" / "features.json"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CPU = torch.device("cpu")


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Of this process on all cores, and of the clock."""
    before = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - before[0], time.perf_counter() - before[1]


def bare(encoder: VisionTransformer, images: Tensor, batch_size: int) -> None:
    with torch.inference_mode():
        for batch in torch.split(images, batch_size):
            encoder(batch)


def measure_features(rounds: int, count: int, batch_size: int, precision: Any) -> dict[str, Any]:
    """ViT-T/16 at 224 px: extraction from uint8 images over the bare forward pass of the prepared ones."""
    encoder = VisionTransformer(EncoderConfig(width=192, depth=12, heads=3, patch_size=16)).eval()
    encoder.initialise(torch.Generator().manual_seed(0))
    images = torch.randint(0, 256, (count, 3, 224, 224), dtype=torch.uint8)
    prepared = normalise(images, MEAN, STD)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")

    def forward() -> None:
        with autocast:
            bare(encoder, prepared, batch_size)

    def extract() -> None:
        extract_features(encoder, images, MEAN, STD, device=CPU, precision=precision, batch_size=batch_size)

    for warm in (forward, extract):
        warm()
    pairs = [(seconds(forward), seconds(extract)) for _ in range(rounds)]
    return {
        "what": f"features over bare forward, ViT-T/16, 224 px, {precision}",
        "rounds": rounds,
        "images": count,
        "images_per_second_bare": Spread.of([count / one[1] for one, _ in pairs]).as_dict(),
        "cpu_ratio": Spread.of([two[0] / one[0] for one, two in pairs]).as_dict(),
        "clock_ratio": Spread.of([two[1] / one[1] for one, two in pairs]).as_dict(),
    }


def measure_knn(rounds: int, width: int) -> dict[str, Any]:
    """k = 10 and 20, without and with the centre."""
    torch.manual_seed(0)
    labels = torch.arange(50_000) % 10
    train, test = torch.randn(50_000, width), torch.randn(10_000, width)
    features = LabelledFeatures(train, labels, test, labels[:10_000], tuple("abcdefghij"))
    times = [seconds(lambda: knn_accuracy(KnnConfig(centre=False), features)) for _ in range(rounds)]
    return {
        "what": f"k-NN of 10,000 in 50,000 features of {width}",
        "rounds": rounds,
        "cpu_seconds": Spread.of([each[0] for each in times]).as_dict(),
        "clock_seconds": Spread.of([each[1] for each in times]).as_dict(),
    }


def report() -> str:
    """A table as Markdown: median (quartiles)."""
    content = json.loads(RESULTS.read_text())
    lines = ["| what | n | CPU time | clock |", "|---|---|---|---|"]
    for row in content["rows"]:
        kind = "ratio" if "cpu_ratio" in row else "seconds"
        cells = [
            f"{row[f'{clock}_{kind}'][key]:.3g}" for clock in ("cpu", "clock") for key in ("median", "low", "high")
        ]
        unit = "" if kind == "ratio" else " s"
        cpu, clock = (f"{part[0]}{unit} ({part[1]} to {part[2]})" for part in (cells[:3], cells[3:]))
        lines.append(f"| {row['what']} | {row['rounds']} | {cpu} | {clock} |")
    lines += ["", f"{content['threads']} threads."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--knn-rounds", type=int, default=3)
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    if not arguments.report:
        rows = [
            measure_features(arguments.rounds, arguments.images, 16, precision) for precision in ("float32", "bfloat16")
        ]
        rows.append(measure_knn(arguments.knn_rounds, 192))
        content = {"environment": describe_environment(), "threads": torch.get_num_threads(), "rows": rows}
        RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    print(report())


if __name__ == "__main__":
    main()
