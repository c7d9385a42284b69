"""Is the memory that `cjepa plan` states what a training takes?

    python -m benchmarks.footprint [--save] [--cases t-float32 s-bfloat16 ...]
    python -m benchmarks.footprint --divided [--save]

Every case is a process of its own that takes two steps of an ImageNet preset on the CPU; its peak resident memory is
compared with the estimate that was made in it before. Peaks do not depend on what else the machine does. --divided
takes the paper's batch of 2048 with the preset cifar10-small, in the micro-batches that are derived for a device of
2 GiB. With --save it writes benchmarks/results/footprint.json; `--report` prints the table from that file.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from cjepa.build import footprint_of, longest_step
from cjepa.config.presets import resolve
from cjepa.runs.planning import GIB, _loaded, _take_steps
from cjepa.training.device_memory import USABLE, resident_memory
from cjepa.training.environment import describe_environment

RESULTS = Path(__file__).parent / "results" / "footprint.json"
IMAGES = {"t": 12, "s": 8, "b": 6}
CASES = [f"{size}-{precision}" for size in IMAGES for precision in ("float32", "bfloat16")]
STEPS = 2
"""The first step has no moments before its end; the second one is as all others."""
DIVIDED, BATCH, SMALL = "cifar10-small", 2048, 2 * GIB
"""The preset whose batch is divided, the batch, and the memory of the device that it has to fit into."""


def measure(case: str) -> dict[str, Any]:
    """The row of a case, in this process, which must not have done anything before."""
    size, _, precision = case.partition("-")
    torch.set_num_threads(2)
    config = resolve(f"imagenet-vit-{size}", [f"training.precision={precision}"])
    device, images = torch.device("cpu"), IMAGES[size]
    process = _loaded(config, device)
    needs = footprint_of(config, "cpu")
    estimate = process + needs.memory(images, images)
    _take_steps(config, device, images, [longest_step(config)] * STEPS)
    peak = resident_memory(peak=True)
    return {
        "case": case,
        "images": images,
        "process": process,
        "estimate": estimate,
        "peak": peak,
        "error": estimate / peak - 1,
        "activations_per_image": needs.activations,
    }


def measure_divided() -> dict[str, Any]:
    """The row of a large batch on a small device, in this process, which must not have done anything before."""
    torch.set_num_threads(2)
    config = resolve(DIVIDED, [f"training.batch_size={BATCH}"])
    device = torch.device("cpu")
    process, needs = _loaded(config, device), footprint_of(config, "cpu")
    micro = needs.micro_batch(BATCH, USABLE * SMALL - process)
    estimate = process + needs.memory(BATCH, micro)
    seconds = _take_steps(config, device, BATCH, [longest_step(config)] * STEPS, micro)
    peak = resident_memory(peak=True)
    return {
        "case": DIVIDED,
        "images": BATCH,
        "micro_batch": micro,
        "device": SMALL,
        "process": process,
        "estimate": estimate,
        "undivided": process + needs.memory(BATCH, BATCH),
        "peak": peak,
        "error": estimate / peak - 1,
        "seconds": seconds,
    }


def report_divided() -> str:
    """The large batch as Markdown."""
    row = json.loads(RESULTS.read_text())["divided"]
    cells = [row["case"], str(row["images"]), str(row["micro_batch"])]
    cells += [f"{row[name] / 1e6:,.0f}" for name in ("undivided", "device", "estimate", "peak")]
    head = ["preset", "batch", "micro-batch", "undivided (estimate), MB", "device, MB", "estimate, MB", "peak, MB"]
    lines = [f"| {' | '.join(each)} |" for each in (head, ["---"] * len(head), cells)]
    return "\n".join(lines).replace(" --- ", "---")


def report() -> str:
    """The rows as Markdown."""
    lines = [
        "| preset | images | process, MB | estimate, MB | measured peak, MB | error |",
        "|---|---|---|---|---|---|",
    ]
    for row in json.loads(RESULTS.read_text())["rows"]:
        cells = [f"imagenet-vit-{row['case']}", str(row["images"])]
        cells += [f"{row[name] / 1e6:,.0f}" for name in ("process", "estimate", "peak")]
        lines.append(f"| {' | '.join(cells)} | {100 * row['error']:+.1f} % |")
    return "\n".join(lines)


def main() -> None:
    """Each case in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=CASES, choices=CASES)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--divided", action="store_true")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case)))
        return
    if options.report:
        print(report_divided() if options.divided else report())
        return
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if options.divided:
        row = measure_divided()
        print(json.dumps(row))
        if options.save:
            content = known | {"divided": row | {"environment": describe_environment()}}
            RESULTS.write_text(json.dumps(content, indent=1) + "\n")
        return
    rows = []
    for case in options.cases:
        command = [sys.executable, "-m", "benchmarks.footprint", "--case", case]
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(answer.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    if options.save:
        content = known | {"environment": describe_environment(), "rows": rows}
        RESULTS.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
