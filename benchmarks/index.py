"""What many images cost before the first is decoded: memory and time to open an index of shards, and a folder.

    python -m benchmarks.index --images 100000000 --files 1000000 --scratch /tmp

makes a synthetic index, with labels and names, over shards that are sparse files, and a tree of empty files; opens each
in a process of its own and reads 1,000 images from random places of the index. Writes benchmarks/results/index.json.
10^8 images need 4.8 GB of disk in the scratch folder, which is removed. `--report` prints the result.
"""

import argparse
import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from benchmarks.guard import peak_memory
from cjepa.data import DataConfig, FolderConfig, open_source
from cjepa.data.names import NameList
from cjepa.data.order import sample_at
from cjepa.data.shard_contents import ShardContents
from cjepa.data.shard_index import INDEX
from cjepa.evaluation.monitor import some_images
from cjepa.runs.index_writing import IndexWriter
from cjepa.training.environment import describe_environment

RESULTS = Path(__file__).parent / "results" / "index.json"
PER_SHARD = 100_000
SPACING = 102_400
"""Bytes from one image of a shard to the next, as if they had 100 kB; the files are sparse."""
CLASSES = 1000
READS = 1000
SEED = 0

T = TypeVar("T")


def picture() -> bytes:
    """The image that lies at every place that is read."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def make_index(folder: Path, images: int) -> None:
    """An index of synthetic shards, written by what `cjepa shard` writes it with."""
    content = picture()
    reads = np.sort(sample_at(SEED, np.arange(min(READS, images)), images))
    with IndexWriter(folder) as index:
        for number, first in enumerate(range(0, images, PER_SHARD)):
            count = min(PER_SHARD, images - first)
            size, head = (count + 1) * SPACING, b"%-512d" % number
            offsets = (np.arange(count, dtype=np.uint64) + np.uint64(1)) * np.uint64(SPACING)
            labels: list[str | None] = [str(label) for label in (np.arange(first, first + count) % CLASSES).tolist()]
            index.add(
                f"shard-{number:06d}.tar",
                ShardContents(
                    size,
                    hashlib.sha256(head).hexdigest(),
                    offsets,
                    np.full(count, len(content), np.uint32),
                    np.full(count, zlib.crc32(content), np.uint32),
                    names(first, count),
                    labels,
                ),
            )
            with (folder / f"shard-{number:06d}.tar").open("xb") as file:
                file.truncate(size)
                file.write(head)
                for read in reads[(reads >= first) & (reads < first + count)]:
                    file.seek(int(offsets[read - first]))
                    file.write(content)


def names(first: int, count: int) -> NameList:
    """Names of 16 characters."""
    numbers = np.arange(first, first + count)[:, None] // 10 ** np.arange(11, -1, -1) % 10 + ord("0")
    suffix = np.broadcast_to(np.frombuffer(b".png", np.uint8), (count, 4))
    text = np.concatenate([numbers.astype(np.uint8), suffix], axis=1)
    return NameList.of(text.ravel(), np.arange(1, count + 1, dtype=np.int64) * text.shape[1])


def make_tree(folder: Path, files: int) -> None:
    """Empty files, 1,000 in a folder."""
    for first in range(0, files, 1000):
        place = folder / f"{first // 1000:06d}"
        place.mkdir(parents=True)
        for number in range(first, min(first + 1000, files)):
            os.close(os.open(f"{place}/{number:012d}.png", os.O_CREAT | os.O_WRONLY))


def measure(folder: Path) -> dict[str, Any]:
    """Open a source as a run does, and use it as a run does at its start."""
    before = memory()
    splits, seconds = timed(lambda: open_source(DataConfig(source=FolderConfig(path=folder)), 0))
    opened, source = memory(), splits.train
    positions = np.arange(min(READS, len(source)))
    samples, ordering = timed(lambda: sample_at(SEED, positions, len(source)))
    result: dict[str, Any] = {
        "images": len(source),
        "seconds to open": seconds,
        "MB of memory before": before["RssAnon"],
        "MB of memory of its own after": opened["RssAnon"],
        "MB of mapped files in memory after": opened["RssFile"],
        "bytes pickled for a worker": len(pickle.dumps(source)),
        "microseconds to place a sample": 1e6 * ordering / len(positions),
    }
    if (folder / INDEX).exists():
        _, reading = timed(lambda: [source.load(int(index)) for index in samples])
        result["microseconds to read and decode 32 x 32 pixels"] = 1e6 * reading / len(samples)
        result["last name"] = source.names[-1]
    _, choosing = timed(lambda: some_images(source, 2000))
    result |= {"seconds to choose 2,000 to evaluate": choosing, "MB of memory at its peak": peak_memory() / 1e6}
    return result


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """A result and the seconds it took."""
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def memory() -> dict[str, float]:
    """Megabytes that this process holds: RssAnon of its own, RssFile of mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kept = (line.split() for line in lines if line.startswith("Rss"))
    return {name.rstrip(":"): int(kilobytes) * 1024 / 1e6 for name, kilobytes, _ in kept}


def in_a_process(folder: Path) -> dict[str, Any]:
    """The measurement by an interpreter that made nothing."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.index", "--measure", str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def of_lists(count: int = 1_000_000) -> float:
    """Megabytes of Python lists of the same facts: names, sizes, offsets, checksums and labels of so many images."""
    before = memory()["RssAnon"]
    kept = [(f"{n:012d}.png", n * SPACING, SPACING + n, zlib.crc32(b"%d" % n), n % CLASSES) for n in range(count)]
    after = memory()["RssAnon"]
    del kept
    return after - before


def run(images: int, files: int, scratch: Path, repeats: int) -> dict[str, Any]:
    """Make, measure and remove."""
    results: dict[str, Any] = {"environment": describe_environment(), "MB of lists of 10^6 images": of_lists()}
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        _, made = timed(lambda: make_index(Path(folder), images))
        columns = {path.name: path.stat().st_size for path in (Path(folder) / INDEX).iterdir()}
        results["index"] = {
            "seconds to write": made,
            "bytes an image": sum(columns.values()) / images,
            "bytes": columns,
            "runs": [in_a_process(Path(folder)) for _ in range(repeats)],
        }
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        make_tree(Path(folder), files)
        results["folder"] = {"runs": [in_a_process(Path(folder)) for _ in range(repeats)]}
    return results


def report(results: dict[str, Any]) -> str:
    """Ranges over the runs as Markdown."""
    kinds = {kind: results[kind]["runs"] for kind in ("index", "folder")}
    heads = [f"{kind} of {runs[0]['images']:,} images (n = {len(runs)})" for kind, runs in kinds.items()]
    lines = [f"| | {' | '.join(heads)} |", "|---|---|---|"]
    for key, value in kinds["index"][0].items():
        if isinstance(value, float):
            lines.append(f"| {key} | {' | '.join(_range([run.get(key) for run in runs]) for runs in kinds.values())} |")
    return "\n".join(lines)


def _range(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{min(known):,.4g} to {max(known):,.4g}" if known else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000_000)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--measure", type=Path)
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(measure(options.measure)))
        return
    if not options.report:
        results = run(options.images, options.files, options.scratch, options.repeats)
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(report(json.loads(options.out.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
