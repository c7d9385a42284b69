"""Images per second from a folder, from tar shards, from the same reduced, and from Parquet, without training.

    python -m benchmarks.data --images 600 --scratch /tmp

makes JPEGs of 500 x 375 pixels out of the demo's photographs, packs them, and takes batches of 224 px crops in the
random order of a run from each kind in turn, one process without workers, until every kind was measured as often as
asked. The files are in the page cache, so decoding and reading calls are compared, not disks. Writes
benchmarks/results/data.json; `--report` prints the table.
"""

import argparse
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet

from benchmarks.guard import Spread
from cjepa.data import DataConfig, DemoConfig, FolderConfig, TrainingStream, open_source
from cjepa.data import parquet as data_parquet
from cjepa.masking import MultiblockConfig, build_sampler
from cjepa.runs import shard_images
from cjepa.runs.shard_writing import Packing
from cjepa.training.environment import describe_environment

RESULTS = Path(__file__).parent / "results" / "data.json"
UNCACHED = "Parquet, one row group in memory"
KINDS = ("folder", "shards", "shards, shorter side 256", "Parquet, all row groups in memory", UNCACHED)
SIZE, BATCH, STEPS = 224, 20, 5
_CACHE = data_parquet.CACHE_BYTES
GROUP = 100
"""Rows of a group, as in the Parquet files of the hub."""


def make(folder: Path, images: int) -> dict[str, Path]:
    """The same images in every form."""
    pictures = folder / "pictures"
    pictures.mkdir()
    demo = open_source(
        DataConfig(
            source=DemoConfig(
                train_crops=-(-images // 18), test_crops=1, crop_size=(64, 160), tile_size=500, grey=False
            )
        ),
        0,
    ).train
    for index in range(images):
        file = io.BytesIO()
        demo.load(index).crop((0, 0, 500, 375)).save(file, "JPEG", quality=90)
        (pictures / f"{index:06d}.jpg").write_bytes(file.getvalue())
    data = DataConfig(source=FolderConfig(path=pictures))
    shard_images(data, folder / "shards", Packing())
    shard_images(data, folder / "reduced", Packing(size=256))
    encoded = [path.read_bytes() for path in sorted(pictures.iterdir())]
    parquet.write_table(pyarrow.table({"image": encoded}), folder / "images.parquet", row_group_size=GROUP)
    table = folder / "images.parquet"
    places = (pictures, folder / "shards", folder / "reduced", table, table)
    return dict(zip(KINDS, places, strict=True))


def stream_of(path: Path) -> TrainingStream:
    """The batches of a run on these images."""
    config = DataConfig(source=FolderConfig(path=path), image_size=SIZE)
    sampler = build_sampler(MultiblockConfig(), (14, 14), 0, BATCH)
    return TrainingStream(open_source(config, 0).train, config, sampler, BATCH, seed=0)


def run(images: int, repeats: int, scratch: Path) -> dict[str, Any]:
    """Images per second of every kind, in turns, and each turn's ratio to the folder's."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        places = make(Path(folder), images)
        size = sum(path.stat().st_size for path in places["folder"].iterdir()) / images
        streams = {kind: stream_of(path) for kind, path in places.items()}
        rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for repeat in range(repeats + 1):
            for kind in KINDS if repeat % 2 else reversed(KINDS):
                data_parquet.CACHE_BYTES = 0 if kind == UNCACHED else _CACHE
                start = time.process_time()
                for step in range(repeat * STEPS, (repeat + 1) * STEPS):
                    streams[kind][step]
                if repeat:  # the first turn warms up
                    rates[kind].append(STEPS * BATCH / (time.process_time() - start))
        assert len(np.unique([streams[kind][0].samples.numpy() for kind in KINDS], axis=0)) == 1
    return {
        "environment": describe_environment(),
        "images": images,
        "bytes an image": size,
        "images per second of CPU": rates,
    }


def report(results: dict[str, Any]) -> str:
    """A table in Markdown."""
    rates = results["images per second of CPU"]
    lines = ["| read from | n | images/s on one core | relative to the folder |", "|---|---|---|---|"]
    for kind in KINDS:
        own = Spread.of(rates[kind])
        ratios = Spread.of([one / folder for one, folder in zip(rates[kind], rates["folder"], strict=True)])
        lines.append(
            f"| {kind} | {len(rates[kind])} | {own.median:.0f} ({own.low:.0f} to {own.high:.0f}) | "
            f"{ratios.median:.2f} ({ratios.low:.2f} to {ratios.high:.2f}) |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    if not options.report:
        results = run(options.images, options.repeats, options.scratch)
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(report(json.loads(options.out.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
