"""Images per second on one core, from JPEG files to batches: this package, and torchvision's usual ways.

    python -m benchmarks.loading --scratch /tmp

makes JPEGs of 500 x 375 and of 32 x 32 pixels out of the demo's photographs, and takes batches of random resized crops,
half of them mirrored, in one process without workers, all ways in turn. Seconds are those of the CPU, so that other
processes disturb little; files are in the page cache. Writes benchmarks/results/loading.json; `--report` prints it.
"""

import argparse
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from torchvision import io as torchvision_io
from torchvision.transforms import v2

from benchmarks.guard import Spread
from cjepa.data import DataConfig, DemoConfig, FolderConfig, TrainingStream, device_images, open_source
from cjepa.data.crops import Box, is_mirrored, resized, training_box
from cjepa.data.decoding import decode
from cjepa.masking import MultiblockConfig, build_sampler
from cjepa.runs import shard_images
from cjepa.runs.caching import cached
from cjepa.runs.shard_writing import Packing
from cjepa.training.environment import describe_environment

RESULTS = Path(__file__).parent / "results" / "loading.json"
STANDARD = "torchvision: ImageFolder, RandomResizedCrop, flip, ToTensor, Normalize"
UINT8 = "torchvision: decode_image, v2 transforms of uint8"
FOLDER, SHARDS, CACHE = "cjepa: folder", "cjepa: shards, shorter side 256", "cjepa: decoded once"
SCALED = "not built in: JPEG decoded at a half or a quarter (Pillow's draft)"
WHOLE = "cjepa: decoded once, cropped in whole batches"
SCALE = (0.3, 1.0)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Take = Callable[[int, int], None]


@dataclass(frozen=True)
class Setup:
    """JPEG files of a size, what their crops are resized to, images in a batch, and batches in a turn."""

    name: str
    width: int
    height: int
    size: int
    batch: int
    steps: int

    @property
    def ways(self) -> tuple[str, ...]:
        """What is compared."""
        return (STANDARD, UINT8, FOLDER, CACHE, *((WHOLE,) if self.width <= self.size else (SHARDS, SCALED)))


SETUPS = (
    Setup("500 x 375 to 224 px", 500, 375, 224, 20, 4),
    Setup("500 x 375 to 96 px", 500, 375, 96, 20, 4),
    Setup("32 x 32 to 32 px", 32, 32, 32, 128, 4),
)


def make(folder: Path, setup: Setup, images: int) -> None:
    """The files, below a folder that stands for their class."""
    folder.mkdir(parents=True)
    crops = DemoConfig(
        train_crops=max(-(-images // 18), 2),
        test_crops=1,
        crop_size=(64, 160),
        tile_size=max(setup.width, 32),
        grey=False,
    )
    demo = open_source(DataConfig(source=crops), 0).train
    for index in range(images):
        demo.load(index).crop((0, 0, setup.width, setup.height)).save(folder / f"{index:06d}.jpg", "JPEG", quality=90)


def ways_of(setup: Setup, root: Path) -> dict[str, Take]:
    """For every way a function that takes so many batches, from a given one on."""
    config = DataConfig(source=FolderConfig(path=root / "files"), image_size=setup.size, crop_scale=SCALE, flip=True)
    folder = _stream(config, setup)
    standard = transforms.Compose(
        [
            transforms.RandomResizedCrop(setup.size, SCALE),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    uint8 = v2.Compose([v2.RandomResizedCrop(setup.size, SCALE, antialias=True), v2.RandomHorizontalFlip()])
    decoded = partial(torchvision_io.decode_image, mode=torchvision_io.ImageReadMode.RGB)
    files = str(root / "files")
    ways = {
        STANDARD: _loader(datasets.ImageFolder(files, standard), setup),
        UINT8: _loader(datasets.ImageFolder(files, uint8, loader=decoded), setup),
        FOLDER: _steps(folder),
    }
    kept = _stream(config, setup)
    kept.source = cached(folder.source, root / "cache", 1 << 40)
    ways[CACHE] = _steps(kept)
    if WHOLE in setup.ways:
        whole = _stream(config, setup)
        whole.source, whole.on_device = kept.source, device_images(kept.source, config, torch.device("cpu"), 1e12)
        assert whole.on_device is not None
        ways[WHOLE] = _steps(whole)
    else:
        shard_images(config, root / "shards", Packing(size=256))
        ways[SHARDS] = _steps(_stream(config.model_copy(update={"source": FolderConfig(path=root / "shards")}), setup))
        ways[SCALED] = _scaled(root / "files", config, setup)
    return ways


def _stream(config: DataConfig, setup: Setup) -> TrainingStream:
    sampler = build_sampler(MultiblockConfig(), (8, 8), 0, setup.batch)
    return TrainingStream(open_source(config, 0).train, config, sampler, setup.batch, seed=0)


def _steps(stream: TrainingStream) -> Take:
    def take(first: int, count: int) -> None:
        for step in range(first, first + count):
            assert stream[step].images.dtype == torch.uint8

    return take


def _loader(dataset: torch.utils.data.Dataset[Any], setup: Setup) -> Take:
    """Random order and batches by torch's own loader, in this process."""

    def batches() -> Iterator[Any]:
        while True:
            yield from DataLoader(dataset, setup.batch, shuffle=True, drop_last=True)

    endless = batches()

    def take(_: int, count: int) -> None:
        for _ in range(count):
            images, _ = next(endless)
            assert len(images) == setup.batch

    return take


def _scaled(folder: Path, config: DataConfig, setup: Setup) -> Take:
    """What a decoder that knew the crop could save: JPEG's own scales, while the box stays as large as the result."""
    paths, draws = sorted(folder.rglob("*.jpg")), np.random.default_rng(0)

    def take(_: int, count: int) -> None:
        for _ in range(count):
            batch = np.empty((setup.batch, 3, *config.size), np.uint8)
            for slot in range(setup.batch):
                batch[slot] = one(paths[int(draws.integers(len(paths)))], draws.random(23).tolist())

    def one(path: Path, row: list[float]) -> Any:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            width, height = image.size
            box = training_box(row, (height, width), config.size, config.crop_scale, config.crop_ratio)
            factor = max(f for f in (1, 2, 4, 8) if f == 1 or f * setup.size <= min(box.width, box.height))
            image.draft("RGB", (width // factor, height // factor))
            small = image.convert("RGB")
        share = small.width / width
        left, top = int(box.left * share), int(box.top * share)
        part = Box(left, top, max(int(box.width * share), 1), max(int(box.height * share), 1))
        pixels = resized(small, part, config.size)
        return pixels[:, :, ::-1] if is_mirrored(row) else pixels

    return take


def parts(folder: Path, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of the CPU for one photograph, part by part; both decoders must give the same pixels."""
    contents = [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))[:20]]
    tensors = [torch.frombuffer(bytearray(content), dtype=torch.uint8) for content in contents]
    images = [decode(content, 1 << 30) for content in contents]
    box = Box(50, 40, 400, 300)
    crops = [torch.from_numpy(np.array(image.crop((50, 40, 450, 340)))).permute(2, 0, 1)[None] for image in images]
    rgb = torchvision_io.ImageReadMode.RGB
    same = torch.equal(
        torchvision_io.decode_jpeg(tensors[0], rgb), torch.from_numpy(np.array(images[0])).permute(2, 0, 1)
    )
    assert same, "the decoders do not agree, so they are not compared"
    work: dict[str, Callable[[int], object]] = {
        "JPEG decoded by Pillow": lambda index: decode(contents[index], 1 << 30),
        "JPEG decoded by torchvision": lambda index: torchvision_io.decode_jpeg(tensors[index], rgb),
        "400 x 300 to 224 px by Pillow": lambda index: resized(images[index], box, (224, 224)),
        "400 x 300 to 224 px by torch": lambda index: interpolate(
            crops[index], (224, 224), mode="bilinear", antialias=True
        ),
    }
    taken: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats):
        for name, do in work.items():
            started = time.process_time()
            for index in range(len(contents)):
                do(index)
            taken[name].append(1e3 * (time.process_time() - started) / len(contents))
    return taken


def run(images: int, repeats: int, scratch: Path, setups: tuple[Setup, ...] = SETUPS) -> dict[str, Any]:
    """Images per second of CPU of every way, in turns."""
    torch.set_num_threads(1)
    rows: dict[str, dict[str, list[float]]] = {}
    taken: dict[str, list[float]] = {}
    for setup in setups:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            make(Path(folder) / "files" / "class", setup, images)
            ways = ways_of(setup, Path(folder))
            taken = taken or parts(Path(folder) / "files", repeats)
            rates: dict[str, list[float]] = {way: [] for way in setup.ways}
            for repeat in range(repeats + 1):
                for way in setup.ways if repeat % 2 else reversed(setup.ways):
                    started = time.process_time()
                    ways[way](repeat * setup.steps, setup.steps)
                    if repeat:  # the first turn warms up
                        rates[way].append(setup.steps * setup.batch / (time.process_time() - started))
        rows[setup.name] = rates
    return {"environment": describe_environment(), "images": images, "images per second of CPU": rows, "parts": taken}


def report(results: dict[str, Any]) -> str:
    """A table in Markdown: medians, quartiles, and ratios within each turn."""
    lines = [
        "| files and crops | way | n | images/s on one core | times torchvision's usual |",
        "|---|---|---|---|---|",
    ]
    for setup, rates in results["images per second of CPU"].items():
        for way, values in rates.items():
            own = Spread.of(values)
            ratios = Spread.of([one / base for one, base in zip(values, rates[STANDARD], strict=True)])
            lines.append(
                f"| {setup} | {way} | {len(values)} | {own.median:,.0f} ({own.low:,.0f} to {own.high:,.0f}) | "
                f"{ratios.median:.2f} ({ratios.low:.2f} to {ratios.high:.2f}) |"
            )
    return "\n".join(lines)


def report_parts(results: dict[str, Any]) -> str:
    """The parts as a table in Markdown."""
    lines = ["| part | n | ms for an image |", "|---|---|---|"]
    for part, values in results["parts"].items():
        own = Spread.of(values)
        lines.append(f"| {part} | {len(values)} | {own.median:.2f} ({own.low:.2f} to {own.high:.2f}) |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=360)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    if not options.report:
        results = run(options.images, options.repeats, options.scratch)
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    results = json.loads(options.out.read_text(encoding="utf-8"))
    print(report(results), report_parts(results), sep="\n\n")


if __name__ == "__main__":
    main()
