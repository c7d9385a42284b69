"""What saving costs: seconds of a checkpoint beside the seconds of the steps between two of them.

    python -m benchmarks.saving [--data DIR] [--folder DIR] [--repeats 10]

Steps and saves take turns in one process, so that whatever else the machine does meets both. The preset is cifar10 as
it stands; a save is the trainer's own, with its weights, moments and averages, verification and the deletion of older
ones. Without --data the images are noise of the same size. It writes benchmarks/results/saving.json; `--report` prints
the table from that file.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.guard import Spread
from cjepa.build import build_stream, build_trainer
from cjepa.config.presets import resolve
from cjepa.data import iterate, open_source
from cjepa.masking import build_sampler
from cjepa.training.checkpoint import CheckpointStore
from cjepa.training.environment import describe_environment
from cjepa.training.trainer import Trainer
from cjepa.types import Batch

RESULTS = Path(__file__).parent / "results" / "saving.json"
IMAGES = 50_000
"""Training images of CIFAR-10."""
MOST = 0.02
"""Share of the steps' time that saving may take."""


def batches(trainer: Trainer, data: Path | None, count: int) -> list[Batch]:
    """The first batches of the preset, or noise with their masks."""
    config = resolve("cifar10", [] if data is None else [f"data={data}"])
    if data is not None:
        stream = build_stream(config, open_source(config.data, config.seed))
        return list(iterate(stream, 0, count, 0))
    size, random = trainer.config.batch_size, np.random.default_rng(0)
    sampler = build_sampler(config.masking, config.grid, config.seed, size)
    images = [torch.from_numpy(random.integers(0, 256, (size, 3, *config.data.size), np.uint8)) for _ in range(count)]
    return [Batch(each, sampler(step, 0, size), torch.arange(size)) for step, each in enumerate(images)]


def measure(data: Path | None, folder: Path, repeats: int) -> dict[str, Any]:
    """Seconds of steps and of saves, in turn."""
    config = resolve("cifar10")
    trainer = build_trainer(config, IMAGES, torch.device("cpu"))
    given = batches(trainer, data, repeats + 1)
    store = CheckpointStore(folder)
    trainer.progress.best_quality = 0.0  # as after the first evaluation
    trainer.take_step(given[0])  # the first one also imports and allocates
    steps, saves = [], []
    for number, batch in enumerate(given[1:], 1):
        started = time.perf_counter()
        trainer.take_step(batch)
        stepped = time.perf_counter()
        trainer.progress.step = number
        store.save(number, trainer.tensors(), {"progress": trainer.progress.as_dict()}, protect={0})
        steps.append(stepped - started)
        saves.append(time.perf_counter() - stepped)
    interval = max(round(config.training.checkpoint_every * IMAGES / config.training.batch_size), 1)
    shares = [100.0 * save / (interval * step) for save, step in zip(saves, steps, strict=True)]
    return {
        "repeats": repeats,
        "steps_between_saves": interval,
        "checkpoint_bytes": sum(path.stat().st_size for path in (folder / f"step-{repeats:08d}").iterdir()),
        "seconds_of_a_step": Spread.of(steps).as_dict(),
        "seconds_of_a_save": Spread.of(saves).as_dict(),
        "percent_of_step_time": Spread.of(shares).as_dict(),
        "largest_percent_of_step_time": max(shares),
        "images": "noise" if data is None else "CIFAR-10",
        "threads": torch.get_num_threads(),
    }


def table(path: Path) -> str:
    """One row, as Markdown."""
    row = json.loads(path.read_text())["result"]
    step, save, share = (row[f"{name}"] for name in ("seconds_of_a_step", "seconds_of_a_save", "percent_of_step_time"))
    return "\n".join(
        [
            "| n | checkpoint, MB | steps between saves | step, s | save, s | saving, % of step time | largest |",
            "|---|---|---|---|---|---|---|",
            f"| {row['repeats']} | {row['checkpoint_bytes'] / 1e6:.0f} | {row['steps_between_saves']} | "
            f"{_spread(step)} | {_spread(save)} | {_spread(share)} | {row['largest_percent_of_step_time']:.2f} |",
        ]
    )


def _spread(values: dict[str, float]) -> str:
    return f"{values['median']:.3g} ({values['low']:.3g} to {values['high']:.3g})"


def main() -> int:
    """0 when the largest share is within the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="CIFAR-10 as a folder of images")
    parser.add_argument("--folder", type=Path, help="where to save; by default the system's temporary folder")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="print the table from the result file")
    arguments = parser.parse_args()
    if not arguments.report:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            result = measure(arguments.data, Path(folder), arguments.repeats)
        whole = {"environment": describe_environment(), "result": result}
        arguments.out.write_text(json.dumps(whole, indent=1) + "\n")
    print(table(arguments.out))
    return int(json.loads(arguments.out.read_text())["result"]["largest_percent_of_step_time"] > 100 * MOST)


if __name__ == "__main__":
    raise SystemExit(main())
