"""Which share of its time does a preset wait for images?

    python -m benchmarks.waiting cifar10-small DIR --steps 20 [--changes training.threads=1]

takes steps of the preset on DIR as a run does, images decoded anew and decoded once (data.cache) in turns, without
workers, where all waiting is on the critical path, and with one thread. Seconds are those of the CPU, so that other
processes disturb little. Adds the row to benchmarks/results/waiting.json; `--report` prints the table from that file.
"""

import argparse
import copy
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.guard import Spread
from cjepa.build import build_stream, build_trainer, choose_device
from cjepa.config.presets import resolve
from cjepa.data import device_images, iterate, open_source
from cjepa.runs.caching import cached
from cjepa.training.device_memory import device_memory
from cjepa.training.environment import describe_environment

RESULTS = Path(__file__).parent / "results" / "waiting.json"
ANEW, ONCE = "decoded anew", "decoded once"


def measure(preset: str, data: Path, steps: int, changes: list[str], scratch: Path) -> dict[str, Any]:
    """Seconds of waiting and of the whole step, for every step and both ways; steps take turns."""
    torch.set_num_threads(1)
    config = resolve(preset, [f"data={data}", *changes])
    splits = open_source(config.data, config.seed)
    stream, trainer = (
        build_stream(config, splits),
        build_trainer(config, len(splits.train), choose_device(config.training.device)),
    )
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        kept = copy.copy(stream)
        started = time.perf_counter()
        kept.source = cached(stream.source, Path(folder), 1 << 40)
        decoding = time.perf_counter() - started
        kept.on_device = device_images(kept.source, config.data, trainer.device, device_memory(trainer.device))
        size = sum(path.stat().st_size for path in Path(folder).rglob("pixels"))
        streams = {way: iterate(each, 0, steps + 1, workers=0) for way, each in ((ANEW, stream), (ONCE, kept))}
        seconds: dict[str, list[dict[str, float]]] = {ANEW: [], ONCE: []}
        for step in range(steps + 1):
            for way in (ANEW, ONCE) if step % 2 else (ONCE, ANEW):
                began = time.process_time()
                batch = next(streams[way])
                came = time.process_time()
                trainer.take_step(batch)
                if step:  # the first one warms up
                    seconds[way].append({"waited": came - began, "whole": time.process_time() - began})
    return {
        "preset": preset,
        "changes": changes,
        "images": len(splits.train),
        "batch_size": config.training.batch_size,
        "cache_bytes": size,
        "whole_batches": kept.on_device is not None,
        "fits_the_default": size <= config.data.cache_bytes,
        "decoding_seconds": decoding,
        "seconds": seconds,
        "environment": describe_environment(),
    }


def report(rows: list[dict[str, Any]]) -> str:
    """A table in Markdown."""
    lines = [
        "| preset | images | n | ms of waiting for a batch | step, s | waiting, % of the time |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        for way in (ANEW, ONCE):
            steps = row["seconds"][way]
            waits = Spread.of([1e3 * step["waited"] for step in steps])
            shares = Spread.of([100 * step["waited"] / step["whole"] for step in steps])
            whole = Spread.of([step["whole"] for step in steps])
            kept = f"{way}, {row['cache_bytes'] / 1e6:,.0f} MB" if way == ONCE else way
            lines.append(
                f"| {' '.join([row['preset'], *row['changes']])} | {kept} | {len(steps)} | "
                f"{waits.median:.1f} ({waits.low:.1f} to {waits.high:.1f}) | {whole.median:.2f} | "
                f"{shares.median:.2f} ({shares.low:.2f} to {shares.high:.2f}) |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", nargs="?")
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--changes", nargs="*", default=[])
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    rows = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else []
    if not options.report:
        row = measure(options.preset, options.data, options.steps, options.changes, options.scratch)
        row["environment"]["command"] = ["waiting.py", options.preset, "DIR", "--steps", str(options.steps)]
        key = (row["preset"], row["changes"])
        rows = [each for each in rows if (each["preset"], each["changes"]) != key] + [row]
        options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(report(rows))


if __name__ == "__main__":
    main()
