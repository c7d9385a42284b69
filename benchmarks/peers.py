"""A training step of the public I-JEPA code beside one of ours: same weights, masks, images, optimizer and average.

    python -m benchmarks.peers --reference FOLDER

FOLDER is a checkout of https://github.com/facebookresearch/ijepa, which is not part of this repository; public_step.py
takes its step. Ours is a step of the package's own trainer, from uint8 images, with the objective `ijepa`.

First both compute loss and gradient of a few images from the same weights, which must agree to rounding. Then they take
turns, a step each in a process of its own, the first one changing. Seconds are the clock's, and a round counts only if
others hardly used the machine (guard.py); with --threads 1 they are those that the process itself worked, which can be
measured on a machine that others use.
What is reported is the ratio of the seconds of a round, so that a slow change of the machine meets both. It replaces
the rows of the same cases and processor in benchmarks/results/peers.json; `--report` prints the table from it.
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import throughput
from benchmarks.guard import ALLOWED, Reading, Spread, used_by_others
from benchmarks.public_step import Public, Theirs, flat_gradient
from benchmarks.step import CASES, Case, operations_of, typical_batch
from cjepa.build import build_trainer
from cjepa.config import RunConfig
from cjepa.models.kernels import linear
from cjepa.objectives import IJepaConfig
from cjepa.training.device_memory import keep_freed_memory
from cjepa.training.environment import describe_environment
from cjepa.types import Batch

RESULTS = Path(__file__).parent / "results" / "peers.json"
FEWEST = 3
"""Undisturbed rounds without which a case has no result."""
COMPARED = 8
"""Images of which loss and gradient are compared."""
PUBLIC, PLAIN, NARROW, ONE_WAY = CONTESTANTS = "public", "cjepa", "narrow", "one-way"
"""The public step; ours; with a predictor as wide as the encoder; with one that is no wider and one-way."""
PATIENCE = 3
"""Times the seconds of a case after which it ends, however many rounds were disturbed."""


class Ours:
    """The step of the package's trainer."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self.trainer = build_trainer(config, 100 * config.training.batch_size, device)

    def step(self, batch: Batch) -> float:
        """Take one; its loss."""
        return float(self.trainer.take_step(batch).loss.total)

    def gradient(self, batch: Batch) -> tuple[float, dict[str, Tensor]]:
        """Loss and gradient from the weights as they are."""
        loss, _ = self.trainer.gradient(batch)
        found = {name: flat_gradient(parameter) for name, parameter in self.trainer.parameters.items()}
        self.trainer.optimizer.zero_grad(set_to_none=True)
        return float(loss.total), found


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Norm of the difference of two gradients over the norm of the second."""
    assert one.keys() == other.keys()
    difference = sum(float((one[name] - other[name]).square().sum(dtype=torch.float64)) for name in other)
    return float((difference / sum(float(each.square().sum(dtype=torch.float64)) for each in other.values())) ** 0.5)


def compare(public: Public, case: Case, device: torch.device) -> dict[str, float]:
    """Losses and gradients of both from the same weights; in bfloat16 also how far each is from our float32."""
    case = replace(case, batch_size=min(COMPARED, case.batch_size))
    batch = typical_batch(case)
    ours = Ours(_config(case), device)
    (loss, gradient), (their_loss, theirs) = (
        ours.gradient(batch),
        Theirs(public, ours.trainer, case, device).gradient(batch),
    )
    found = {
        "loss": loss,
        "loss_public": their_loss,
        "loss_difference": abs(loss - their_loss) / their_loss,
        "gradient_difference": distance(gradient, theirs),
    }
    if case.precision == "bfloat16":
        exact = _config(case)
        exact = exact.model_copy(update={"training": exact.training.model_copy(update={"precision": "float32"})})
        _, reference = Ours(exact, device).gradient(batch)
        found |= {
            "gradient_from_float32": distance(gradient, reference),
            "gradient_from_float32_public": distance(theirs, reference),
        }
    return found


def _config(case: Case) -> RunConfig:
    return case.config.model_copy(update={"objective": IJepaConfig()})


def contestants_of(case: Case) -> tuple[str, ...]:
    """All; NARROW only where the predictor is wider than the encoder."""
    wider = case.predictor.width > case.encoder.width
    return tuple(name for name in CONTESTANTS if wider or name != NARROW)


def variant(case: Case, name: str) -> Case:
    """The same with the predictor of a contestant: in NARROW and ONE_WAY another method."""
    if name not in (NARROW, ONE_WAY):
        return case
    changes: dict[str, object] = {"width": min(case.predictor.width, case.encoder.width)}
    if name != NARROW:
        changes["attention"] = "one_way"
    return replace(case, predictor=case.predictor.model_copy(update=changes))


def serve(connection: Connection, folder: Path, case: Case, name: str, device_name: str, threads: int) -> None:
    """The process of a contestant."""
    torch.set_num_threads(threads)
    device, batch = torch.device(device_name), typical_batch(case)
    ours = Ours(_config(variant(case, name)), device)
    if name == PUBLIC:
        step = partial(Theirs(Public.of(folder), ours.trainer, case, device).step, batch)
    else:
        keep_freed_memory()  # as the command line does
        step = partial(ours.step, batch)
    take_turns(connection, step, device, threads)


def take_turns(connection: Connection, step: Callable[[], object], device: torch.device, threads: int) -> None:
    """For every True that arrives the seconds of a step and the foreign load in it, until a False comes."""
    while connection.recv():
        before = Reading.now()
        seconds = _seconds(step, device, threads)
        connection.send((seconds, used_by_others(before, Reading.now())))


class Contestant:
    """A step in a process of its own, whose memory is managed as its program does it."""

    def __init__(self, serve: Callable[..., None], *arguments: Any) -> None:
        """serve: takes a connection and the arguments, and ends with `take_turns`."""
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, *arguments), daemon=True)
        self.process.start()
        theirs.close()

    def step(self) -> tuple[float, float]:
        """Take one: its seconds, and the share of the machine that others used."""
        self.connection.send(True)
        seconds, others = self.connection.recv()
        return seconds, others

    def finish(self) -> None:
        """End the process."""
        self.connection.send(False)
        self.process.join()


def race(contestants: Mapping[str, Contestant], seconds: float, limit: float) -> tuple[list[dict[str, float]], int]:
    """Seconds of each contestant in each undisturbed round, and how many rounds were disturbed."""
    kept: list[dict[str, float]] = []
    disturbed, measured, order = 0, 0.0, list(contestants)
    for contestant in contestants.values():
        contestant.step()
    began = time.perf_counter()
    while measured < seconds and time.perf_counter() - began < PATIENCE * seconds:
        order.reverse()
        found = {name: contestants[name].step() for name in order}
        if max(others for _, others in found.values()) > limit:
            disturbed += 1
        else:
            kept.append({name: lasted for name, (lasted, _) in found.items()})
            measured += sum(kept[-1].values())
    return kept, disturbed


def allowed(device: torch.device, threads: int) -> float:
    """Share of the machine that others may use: a little, or anything where the process's own work is measured."""
    return 1.0 if device.type == "cpu" and threads == 1 else ALLOWED


def measure(
    folder: Path,
    case: Case,
    device: torch.device,
    seconds: float,
    threads: int,
    wanted: Collection[str] = CONTESTANTS,
) -> dict[str, Any]:
    """The row of a case; ratios are null where too few rounds were undisturbed."""
    same = compare(Public.of(folder), case, device)
    names = [name for name in contestants_of(case) if name in wanted]
    contestants = {name: Contestant(serve, folder, case, name, str(device), threads) for name in names}
    kept, disturbed = race(contestants, seconds, allowed(device, threads))
    for contestant in contestants.values():
        contestant.finish()
    row = _described(case, typical_batch(case), device) | {"fastest_product": fastest_product(case, device, threads)}
    return {**row, "agreement": same, "rounds_disturbed": disturbed, **spreads(kept, case)}


def fastest_product(case: Case, device: torch.device, threads: int) -> float:
    """Operations per second of a product with weights alone, in the precision of a case: what bounds its step."""
    dtype = getattr(torch, case.precision)
    if device.type == "cuda":  # one as small as below ends before the host has asked for the next
        return throughput.fastest_product(device, dtype)
    tokens, weight = torch.randn(4096, 1024, device=device).to(dtype), torch.randn(1024, 1024, device=device).to(dtype)
    seconds = min(_seconds(lambda: linear(tokens, weight, None), device, threads) for _ in range(20))
    return 2 * 4096 * 1024 * 1024 / seconds


def _described(case: Case, batch: Batch, device: torch.device) -> dict[str, Any]:
    return {
        "case": case.name,
        "image_size": case.image_size,
        "batch_size": case.batch_size,
        "precision": case.precision,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "operations_per_image": operations_of(case, batch.masks),
        "context_patches": batch.masks.context.shape[1],
        "target_blocks": batch.masks.targets.shape[1],
        "target_patches": batch.masks.targets.shape[2],
    }


def spreads(rounds: Sequence[Mapping[str, float]], case: Case) -> dict[str, Any]:
    """Images per second of each contestant, and how many times faster than the public step ours was in a round."""
    if len(rounds) < FEWEST:
        return {"rounds": len(rounds), "images_per_second": None, "ratio": None}
    names = [name for name in rounds[0] if name != PUBLIC]
    return {
        "rounds": len(rounds),
        "images_per_second": {
            name: Spread.of([case.batch_size / each[name] for each in rounds]).as_dict() for name in (PUBLIC, *names)
        },
        "ratio": {name: Spread.of([each[PUBLIC] / each[name] for each in rounds]).as_dict() for name in names},
    }


def _seconds(step: Callable[[], object], device: torch.device, threads: int) -> float:
    """Of the clock; on one thread of a CPU those that the process worked, which others lengthen far less."""
    clock = time.process_time if device.type == "cpu" and threads == 1 else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = clock()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - began


def write(path: Path, public: Public, threads: int, rows: list[dict[str, Any]]) -> None:
    """Put the rows in place of those of the same case and processor; each says what it was measured with."""
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {"threads": threads, "images_compared": COMPARED, "public_transformers_sha256": public.sha256}
    new = [{**row, "settings": settings, "environment": describe_environment()} for row in rows]
    measured = {(row["case"], _processor(row)) for row in new}
    kept = [row for row in _rows(path) if (row["case"], _processor(row)) not in measured] if path.exists() else []
    ordered = sorted(kept + new, key=lambda row: list(CASES).index(row["case"]))
    path.write_text(json.dumps({"rows": ordered}, indent=1) + "\n")


def _rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    return rows


def _processor(row: dict[str, Any]) -> str:
    """Its instructions; empty in a row from before they were recorded."""
    return ", ".join(row["environment"]["cpu"].get("instructions", ()))


def table(path: Path) -> str:
    """Rates and ratios with quartiles, and how far loss and gradient are apart, as Markdown."""
    columns = ["case", "processor", "n", "public, images/s", "cjepa, images/s", "ratio"]
    columns += [
        "ratio, narrow predictor",
        "ratio, one-way predictor",
        "of the fastest product",
        "loss differs by",
        "gradient differs by",
    ]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in _rows(path):
        same, rates, ratio = row["agreement"], row["images_per_second"], row["ratio"]
        speed = "disturbed | | | | | "
        if rates is not None:
            share = rates[PLAIN]["median"] * row["operations_per_image"] / row["fastest_product"]
            speed = f"{Spread(**rates[PUBLIC])} | {Spread(**rates[PLAIN])} | "
            variants = [str(Spread(**ratio[name])) if name in ratio else "" for name in CONTESTANTS[1:]]
            speed += " | ".join([*variants, f"{share:.0%}"])
        gradient = f"{same['gradient_difference']:.2g}"
        if "gradient_from_float32" in same:
            gradient += f" (from float32: {same['gradient_from_float32']:.2g}, "
            gradient += f"public {same['gradient_from_float32_public']:.2g})"
        start = f"{row['case']} | {_processor(row)} | {row['rounds']}"
        lines.append(f"| {start} | {speed} | {same['loss_difference']:.1g} | {gradient} |")
    return "\n".join(lines)


def main() -> int:
    """0 when every case has a result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, help="a checkout of facebookresearch/ijepa")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=CONTESTANTS, help="default: all")
    parser.add_argument("--seconds", type=float, default=60.0, help="undisturbed seconds of each case")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="print the table from the result file")
    arguments = parser.parse_args()
    if not arguments.report:
        if arguments.reference is None:
            parser.error("--reference: the checkout of the public code to measure against")
        torch.set_num_threads(arguments.threads)
        public = Public.of(arguments.reference)
        device = torch.device(arguments.device)
        for name in arguments.cases:
            settings = device, arguments.seconds, arguments.threads, {PUBLIC, PLAIN, *arguments.contestants}
            row = measure(arguments.reference, CASES[name], *settings)
            write(arguments.out, public, arguments.threads, [row])
    print(table(arguments.out))
    missing = [row["case"] for row in _rows(arguments.out) if row["ratio"] is None]
    if missing:
        print(f"\nother processes disturbed {', '.join(missing)}: run again on a quiet machine")
    return 1 if missing else 0


if __name__ == "__main__":
    raise SystemExit(main())
