"""How long the masks of a batch of 2048 images take.

    python -m benchmarks.masks

draws the masks of some steps on three grids, in seconds of the CPU, and writes benchmarks/results/masks.json.
`--report` prints the table from that file.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.guard import Spread
from cjepa.masking import MultiblockConfig, build_sampler
from cjepa.training.environment import describe_environment

RESULTS = Path(__file__).parent / "results" / "masks.json"
BEFORE = RESULTS.with_name("masks-before.json")
"""The same by the package of commit 268fae3, the last one that computed every layout of every image."""
GRIDS = ((8, 8), (12, 12), (14, 14), (16, 16))
BATCH, PER = 2048, 128


def run(steps: int) -> dict[str, Any]:
    """Milliseconds for 128 images of a batch, for every step on every grid."""
    torch.set_num_threads(1)
    rows = []
    for grid in GRIDS:
        sampler, found = build_sampler(MultiblockConfig(), grid, 0, BATCH), []
        for step in range(-1, steps):
            sampler(max(step, 0), 0, 2)  # the lengths of these blocks are probed once in a run
            started = time.process_time()
            sampler(max(step, 0), 0, BATCH)
            if step >= 0:
                found.append(1e3 * (time.process_time() - started) * PER / BATCH)
        rows.append({"grid": list(grid), "batch": BATCH, "milliseconds_for_128": found})
    return {"environment": describe_environment(), "rows": rows}


def report(results: dict[str, Any]) -> str:
    """A table in Markdown."""
    lines = ["| grid | batch | n | ms for 128 images |", "|---|---|---|---|"]
    for row in results["rows"]:
        own = Spread.of(row["milliseconds_for_128"])
        lines.append(
            f"| {row['grid'][0]} x {row['grid'][1]} | {row['batch']} | {len(row['milliseconds_for_128'])} | "
            f"{own.median:.2f} ({own.low:.2f} to {own.high:.2f}) |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    if not options.report:
        options.out.write_text(json.dumps(run(options.steps), indent=1) + "\n", encoding="utf-8")
    print(report(json.loads(options.out.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
