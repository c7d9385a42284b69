"""How much of the bare forward rate `cjepa embed` keeps.

    python -m benchmarks.embed

embeds a folder of JPEGs, and runs the same encoder over the same crops held in memory: in one process, in turns, one
pair after the other, so that whatever else the machine does disturbs both. What counts is the ratio of each pair; it
writes benchmarks/results/embed.json with median and quartiles; `--report` prints the table from that file. Weights are
random: a rate does not depend on them.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.guard import Spread
from cjepa.data import DataConfig, FolderConfig, open_source
from cjepa.data.every_image import EveryImage
from cjepa.models import EncoderConfig, VisionTransformer
from cjepa.models.pretrained import PretrainedEncoder
from cjepa.models.weights.folder import write_folder
from cjepa.runs import EmbeddingJob, embed_images
from cjepa.training.environment import describe_environment

RESULTS = Path(__file__).parent / "results" / "embed.json"
SIZE, STORED = 224, (300, 260)
"""Side of the crops, and width and height of the stored photographs, in pixels."""


def write_photographs(folder: Path, count: int) -> None:
    """JPEGs with the entropy of photographs: smooth noise."""
    random = np.random.default_rng(0)
    folder.mkdir()
    for index in range(count):
        coarse = random.integers(0, 256, (26, 30, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(STORED, Image.Resampling.BICUBIC).save(folder / f"{index:05d}.jpg", quality=90)


def write_encoder(folder: Path, name: str) -> PretrainedEncoder:
    """A named size with patches of 16, untrained."""
    config = EncoderConfig(**EncoderConfig.named(name), patch_size=16)
    transformer = VisionTransformer(config)
    transformer.initialise(torch.Generator().manual_seed(0))
    encoder = PretrainedEncoder(transformer, (SIZE, SIZE), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)).eval()
    folder.mkdir()
    write_folder(folder, config, encoder.preparation, transformer.state_dict())
    return encoder


def bare_seconds(
    encoder: PretrainedEncoder, batches: list[torch.Tensor], device: torch.device, job: EmbeddingJob
) -> float:
    """Seconds of the forward passes alone, images being on the device."""
    started = time.perf_counter()
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=job.precision == "bfloat16"):
        for batch in batches:
            encoder.embed(batch)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(
    name: str, images: int, pairs: int, device: torch.device, job: EmbeddingJob, workers: int
) -> dict[str, Any]:
    """Rates of both, in turns, and the ratio of each pair."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_photographs(folder / "images", images)
        encoder = write_encoder(folder / "encoder", name).to(device)
        source = open_source(DataConfig(source=FolderConfig(path=folder / "images"), image_size=SIZE), 0).train
        crops = EveryImage(source, (SIZE, SIZE), 1.0, job.batch_size)
        batches = [crops[index].images.to(device) for index in range(len(crops))]
        bare_seconds(encoder, batches, device, job)  # warm-up
        bare, embedded = [], []
        for pair in range(pairs):
            bare.append(images / bare_seconds(encoder, batches, device, job))
            out = folder / f"{pair}.npy"
            done = embed_images(folder / "encoder", folder / "images", out, job, device=str(device), workers=workers)
            embedded.append(images / done.seconds)
    return {
        "encoder": f"{name}, patches of 16, {SIZE} x {SIZE}",
        "images": images,
        "pairs": pairs,
        "batch_size": job.batch_size,
        "precision": job.precision,
        "workers": workers,
        "threads": torch.get_num_threads(),
        "device": str(device),
        "bare_images_per_second": Spread.of(bare).as_dict(),
        "embed_images_per_second": Spread.of(embedded).as_dict(),
        "ratio": Spread.of([one / other for one, other in zip(embedded, bare, strict=True)]).as_dict(),
        "ratios": [one / other for one, other in zip(embedded, bare, strict=True)],
    }


def report() -> str:
    """The result as Markdown."""
    row = json.loads(RESULTS.read_text(encoding="utf-8"))
    lines = [
        "| encoder | device, threads | n | forward pass, images/s | embed, images/s | ratio of each pair |",
        "|---|---|---|---|---|---|",
    ]
    bare, embedded = (row[name] for name in ("bare_images_per_second", "embed_images_per_second"))
    rates = [f"{each['median']:.1f} ({each['low']:.1f} to {each['high']:.1f})" for each in (bare, embedded)]
    ratio = "{median:.2f} ({low:.2f} to {high:.2f})".format(**row["ratio"])
    cells = [row["encoder"], f"{row['device']}, {row['threads']}", str(row["pairs"]), *rates, ratio]
    return "\n".join([*lines, f"| {' | '.join(cells)} |"])


def main() -> None:
    """Measure, write and print, or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="small")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true")
    given = parser.parse_args()
    if given.report:
        print(report())
        return
    job = EmbeddingJob(batch_size=given.batch_size, precision=given.precision)
    row = measure(given.encoder, given.images, given.pairs, torch.device(given.device), job, given.workers)
    given.out.write_text(json.dumps({"environment": describe_environment(), **row}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
