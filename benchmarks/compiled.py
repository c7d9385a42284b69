"""What `training.compile` gives on this device: steps by compiled and by plain blocks, in turns.

    python -m benchmarks.compiled --cases vit-t4-32px-float32 --images 16

Every round is another step of the same run, so that masks have the lengths of a real one; a round in which something
was compiled warms up. With one thread seconds are those of the CPU, so that other processes disturb little, otherwise
and on a GPU those of the clock. It replaces the rows of its cases, device, threads and processor in
benchmarks/results/compiled.json; `--report` prints the table from that file.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters

from benchmarks.guard import Spread
from benchmarks.step import CASES, Case
from cjepa.build import build_trainer, sampler_of
from cjepa.config import RunConfig
from cjepa.training.device_memory import keep_freed_memory
from cjepa.training.environment import describe_environment
from cjepa.types import Batch

RESULTS = Path(__file__).parent / "results" / "compiled.json"
PLAIN, COMPILED = "plain", "compiled"


def measure(case: Case, rounds: int, device: torch.device) -> dict[str, Any]:
    """Seconds of both ways in `rounds` rounds without compilation, and of those with it."""
    configs = {way: _config(case, way == COMPILED) for way in (PLAIN, COMPILED)}
    trainers = {way: build_trainer(config, 100 * case.batch_size, device) for way, config in configs.items()}
    seconds: dict[str, list[float]] = {PLAIN: [], COMPILED: []}
    losses: dict[str, list[float]] = {PLAIN: [], COMPILED: []}
    step, compiling, programs = 0, 0.0, -1
    while len(seconds[PLAIN]) < rounds:
        batch, found = _batch(case, step), {}
        for way in (PLAIN, COMPILED) if step % 2 else (COMPILED, PLAIN):
            began = _now(device)
            losses[way].append(float(trainers[way].take_step(batch).loss.total.detach()))
            found[way] = _now(device) - began
        step += 1
        if counters["stats"]["unique_graphs"] > programs:
            programs = counters["stats"]["unique_graphs"]
            compiling += found[COMPILED]
            continue
        for way, each in found.items():
            seconds[way].append(each)
    return {
        "case": case.name,
        "images": case.batch_size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
        "programs": programs,
        "seconds_with_compilation": compiling,
        "loss_differs_by": max(
            abs(one - other) / abs(other) for one, other in zip(losses[COMPILED], losses[PLAIN], strict=True)
        ),
        "seconds": seconds,
        "environment": describe_environment(),
    }


def _config(case: Case, compiled: bool) -> RunConfig:
    config = case.config
    return config.model_copy(update={"training": config.training.model_copy(update={"compile": compiled})})


def _batch(case: Case, step: int) -> Batch:
    """Noise, with the masks of a step."""
    generator = torch.Generator().manual_seed(step)
    size = (case.batch_size, 3, case.image_size, case.image_size)
    images = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
    return Batch(images, sampler_of(case.config)(step, 0, case.batch_size), torch.arange(case.batch_size))


def _now(device: torch.device) -> float:
    """Seconds; a GPU has done all that it was given, the optimizer's work after the loss included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.process_time() if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter()


def _setting(row: dict[str, Any]) -> tuple[object, ...]:
    """What a row is of: others are kept beside it."""
    cpu = row["environment"]["cpu"]
    return row["case"], row["device"], row["threads"], cpu["model"], tuple(cpu.get("instructions", ()))


def report(rows: list[dict[str, Any]]) -> str:
    """A table in Markdown."""
    lines = [
        "| case | images, device | n | plain, s | compiled, s | times as fast | programs | seconds with compilation | "
        "loss differs by |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        plain, compiled = (row["seconds"][way] for way in (PLAIN, COMPILED))
        where = f"{row['images']}, {row['device']}" + (f", {row['threads']} threads" if row["threads"] > 1 else "")
        where += "".join(f", {each}" for each in row["environment"]["cpu"].get("instructions", ()))
        ratios = [a / b for a, b in zip(plain, compiled, strict=True)]
        cells = [str(Spread.of(each)) for each in (plain, compiled, ratios)]
        lines.append(
            f"| {row['case']} | {where} | {len(plain)} | {' | '.join(cells)} | {row['programs']} | "
            f"{row['seconds_with_compilation']:.0f} | {row['loss_differs_by']:.1g} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["vit-t4-32px-float32"])
    parser.add_argument("--images", type=int, help="images of a step; by default the case's")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    rows = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else []
    if not options.report:
        torch.set_num_threads(options.threads)
        keep_freed_memory()
        for name in options.cases:
            case = replace(CASES[name], batch_size=options.images or CASES[name].batch_size)
            torch.compiler.reset()
            counters.clear()
            row = measure(case, options.rounds, torch.device(options.device))
            row["environment"]["command"] = ["compiled.py", "--cases", name, "--images", str(case.batch_size)]
            row["environment"]["command"] += ["--threads", str(options.threads)]
            rows = [each for each in rows if _setting(each) != _setting(row)] + [row]
            options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(report(rows))


if __name__ == "__main__":
    main()
