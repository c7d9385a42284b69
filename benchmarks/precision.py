"""What bfloat16 gains, or costs, on this machine's processor: the evidence behind `training.precision=auto`.

    python -m benchmarks.precision [--rounds 5]

Steps of ViT-T/4 on 32 px images by the package's trainer, and one product of two large matrices, in both precisions in
turns, with one thread; seconds are those of the CPU, so that other processes disturb little. It replaces the row of
this processor in benchmarks/results/precision.json; `--report` prints the table from that file.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.guard import Spread
from benchmarks.step import CASES, typical_batch
from cjepa.build import build_trainer
from cjepa.models.kernels import has_fast_bfloat16
from cjepa.training.device_memory import keep_freed_memory
from cjepa.training.environment import INSTRUCTIONS, describe_environment

RESULTS = Path(__file__).parent / "results" / "precision.json"
CASE, IMAGES, SIDE = "vit-t4-32px", 8, 1024
CPU = torch.device("cpu")


def product(kind: torch.dtype) -> Callable[[], object]:
    """A product of two matrices."""
    matrix = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(0)).to(kind)
    return lambda: matrix @ matrix


def step(precision: str) -> Callable[[], object]:
    """A step of the trainer, with few images: without instructions for it bfloat16 takes long."""
    case = replace(CASES[f"{CASE}-{precision}"], batch_size=IMAGES)
    trainer, batch = build_trainer(case.config, 100 * IMAGES, CPU), typical_batch(case)
    return lambda: trainer.take_step(batch)


def measure(rounds: int) -> dict[str, Any]:
    """Seconds of the CPU of every round, by what and precision; the first round warms up."""
    work = {
        what: {"float32": of("float32"), "bfloat16": of("bfloat16")}
        for what, of in (("step", step), ("product", lambda kind: product(getattr(torch, kind))))
    }
    seconds: dict[str, dict[str, list[float]]] = {what: {kind: [] for kind in kinds} for what, kinds in work.items()}
    for number in range(rounds + 1):
        for what, kinds in work.items():
            for kind in sorted(kinds, reverse=bool(number % 2)):
                began = time.process_time()
                kinds[kind]()
                if number:
                    seconds[what][kind].append(time.process_time() - began)
    found = torch.cpu.get_capabilities()
    return {
        "instructions": {name: bool(found.get(name)) for name in INSTRUCTIONS},
        "auto": "bfloat16" if has_fast_bfloat16(CPU) else "float32",
        "seconds": seconds,
        "environment": describe_environment(),
    }


def report(rows: list[dict[str, Any]]) -> str:
    """A table in Markdown."""
    lines = [
        "| instructions of the processor | n | step in float32, s | in bfloat16, s | bfloat16 over float32, step | "
        "large product | auto takes |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        has = ", ".join(name for name, there in row["instructions"].items() if there) or "none of these"
        whole, product = row["seconds"]["step"], row["seconds"]["product"]
        cells = [Spread.of(whole["float32"]), Spread.of(whole["bfloat16"]), _ratio(whole), _ratio(product)]
        lines.append(f"| {has} | {len(whole['float32'])} | {' | '.join(map(str, cells))} | {row['auto']} |")
    return "\n".join(lines)


def _ratio(seconds: dict[str, list[float]]) -> Spread:
    return Spread.of([half / full for half, full in zip(seconds["bfloat16"], seconds["float32"], strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    rows = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else []
    if not options.report:
        torch.set_num_threads(1)
        keep_freed_memory()
        row = measure(options.rounds)
        row["environment"]["command"] = ["precision.py", "--rounds", str(options.rounds)]
        rows = [each for each in rows if each["instructions"] != row["instructions"]] + [row]
        options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(report(rows))


if __name__ == "__main__":
    main()
