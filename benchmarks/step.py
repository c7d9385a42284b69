"""How long a training step takes, part by part, and how much memory it needs.

    python -m benchmarks.step

takes steps with the package's own trainer, timed by hooks on the model's parts, so that what is measured is what a run
does, without loading images. Every case lives in a process of its own (its peak memory is its own) and the cases take
turns, a burst of steps each; a burst counts only if nothing else used the machine (guard.py). It writes
benchmarks/results/step.json; `--report` prints the table from that file.
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.guard import ALLOWED, Reading, Spread, peak_memory, used_by_others
from cjepa.build import build_trainer
from cjepa.config import RunConfig
from cjepa.data import DataConfig, FolderConfig
from cjepa.masking import build_sampler
from cjepa.models import EncoderConfig, ModelConfig
from cjepa.models.predictor import PredictorConfig
from cjepa.training.config import TrainingConfig
from cjepa.training.device_memory import keep_freed_memory
from cjepa.training.environment import describe_environment
from cjepa.training.footprint import Lengths, footprint
from cjepa.training.trainer import Trainer
from cjepa.types import Batch, Masks, MaskSampler

RESULTS = Path(__file__).parent / "results" / "step.json"
PARTS = ("target", "context", "predictor", "objective", "backward", "optimizer", "average", "other")
"""Parts of a step; backward includes the norm of the gradient, other is what lies between (normalising, gathering)."""
BURST = 0.25
"""Seconds that a burst lasts at least: the guard cannot judge shorter ones."""
WARM_UP = 2
"""Bursts of each case before its first one that counts."""
PATIENCE = 3
"""Times the seconds of a case after which it ends, however many bursts were disturbed."""
FEWEST = 5
"""Undisturbed bursts without which a case has no result."""


@dataclass(frozen=True)
class Case:
    """A model on images of one size."""

    name: str
    encoder: EncoderConfig
    predictor: PredictorConfig
    image_size: int
    batch_size: int
    precision: Literal["bfloat16", "float32"] = "float32"

    @property
    def config(self) -> RunConfig:
        """The run whose steps are taken: the package's defaults, C-JEPA as in Algorithm 1."""
        return RunConfig(
            data=DataConfig(source=FolderConfig(path=Path("no-images")), image_size=self.image_size),
            model=ModelConfig(encoder=self.encoder, predictor=self.predictor),
            training=TrainingConfig(batch_size=self.batch_size, precision=self.precision),
        )


def _named(name: str, size: str, patch_size: int, image_size: int, batch_size: int) -> list[Case]:
    encoder = EncoderConfig(**EncoderConfig.named(size), patch_size=patch_size)
    case = Case(name, encoder, PredictorConfig(width=384, depth=6), image_size, batch_size)
    return [
        replace(case, name=f"{name}-float32"),
        replace(case, name=f"{name}-bfloat16", precision="bfloat16"),
    ]


CASES = {
    case.name: case
    for case in (
        *_named("vit-t4-32px", "tiny", 4, 32, 128),
        *_named("vit-s16-224px", "small", 16, 224, 16),
        *_named("vit-b16-224px", "base", 16, 224, 8),
    )
}


class Bench:
    """A case that can take steps of its trainer and say how long each part of them took."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.device = device
        self.trainer = build_trainer(case.config, 100 * case.batch_size, device)
        self.batch = typical_batch(case)
        self._marks: dict[str, float | torch.cuda.Event] = {}
        self._watch(self.trainer)

    def step(self) -> dict[str, float]:
        """Seconds of the whole step and of each part."""
        self._marks = {}
        self._mark("step begins")
        self.trainer.take_step(self.batch)
        self._mark("step ends")
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        own = {name: self._between(f"{name} begins", f"{name} ends") for name in PARTS[:4]}
        own["backward"] = self._between("objective ends", "optimizer begins")
        own["optimizer"] = self._between("optimizer begins", "optimizer ends")
        own["average"] = self._between("optimizer ends", "step ends")
        whole = self._between("step begins", "step ends")
        return {"step": whole, **own, "other": whole - sum(own.values())}

    def burst(self) -> tuple[dict[str, float], float]:
        """Mean seconds of steps taken one after the other, and the share of the machine that others used."""
        before = after = Reading.now()
        steps = []
        while after.clock - before.clock < BURST:
            steps.append(self.step())
            after = Reading.now()
        means = {name: sum(step[name] for step in steps) / len(steps) for name in steps[0]}
        return means, used_by_others(before, after)

    def peak_memory(self) -> int:
        """Most bytes held: by the process, or on a GPU by its tensors."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else peak_memory()

    def facts(self) -> dict[str, Any]:
        """What was computed."""
        masks = self.batch.masks
        return {
            "parameters": sum(parameter.numel() for parameter in self.trainer.parameters.values()),
            "context_patches": masks.context.shape[1],
            "target_blocks": masks.targets.shape[1],
            "target_patches": masks.targets.shape[2],
        }

    def _watch(self, trainer: Trainer) -> None:
        model = trainer.model
        modules = (model.target_encoder, *model.learned.values(), trainer.objective)
        for name, module in zip(PARTS[:4], modules, strict=True):
            module.register_forward_pre_hook(partial(self._mark, f"{name} begins"))
            module.register_forward_hook(partial(self._mark, f"{name} ends"))
        trainer.optimizer.register_step_pre_hook(partial(self._mark, "optimizer begins"))
        trainer.optimizer.register_step_post_hook(partial(self._mark, "optimizer ends"))

    def _mark(self, name: str, *_: object) -> None:
        """Remember when a point was passed, by the device's clock: a GPU is still busy when a call returns."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks[name] = event
        else:
            self._marks[name] = time.perf_counter()

    def _between(self, start: str, end: str) -> float:
        first, second = self._marks[start], self._marks[end]
        if isinstance(first, float) and isinstance(second, float):
            return second - first
        assert isinstance(first, torch.cuda.Event)
        assert isinstance(second, torch.cuda.Event)
        return first.elapsed_time(second) / 1000.0


def typical_batch(case: Case) -> Batch:
    """Noise, with the masks of the step whose sequences are of median length: lengths differ from step to step."""
    config = case.config
    sampler = build_sampler(config.masking, config.grid, config.seed, case.batch_size)
    step = sorted(range(101), key=lambda step: _tokens(sampler, step))[50]
    generator = torch.Generator().manual_seed(0)
    size = (case.batch_size, 3, case.image_size, case.image_size)
    images = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
    return Batch(images, sampler(step, 0, case.batch_size), torch.arange(case.batch_size))


def operations_of(case: Case, masks: Masks) -> int:
    """What a step needs for an image with these very masks, without a regulariser (training/footprint.py)."""
    rows, columns = case.config.grid
    lengths = Lengths(rows * columns, masks.context.shape[1], *masks.targets.shape[1:])
    return footprint(case.config.model, None, lengths, case.precision, fused=False).operations


def _tokens(sampler: MaskSampler, step: int) -> int:
    masks = sampler(step, 0, 1)
    return masks.targets.shape[1] * (masks.context.shape[1] + masks.targets.shape[2])


def serve(connection: Connection, case: Case, device: str, threads: int) -> None:
    """The process of a case: a burst for every True that arrives, the memory at the first False."""
    torch.set_num_threads(threads)
    keep_freed_memory()  # as the command line does
    empty = peak_memory()
    bench = Bench(case, torch.device(device))
    connection.send(bench.facts())
    while connection.recv():
        connection.send(bench.burst())
    before = 0 if bench.device.type == "cuda" else empty
    connection.send({"peak_memory": bench.peak_memory(), "peak_memory_before_the_model": before})


class Worker:
    """A case in its own process, and what was measured of it."""

    def __init__(self, case: Case, device: str, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.case = case
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, case, device, threads), daemon=True)
        self.process.start()
        theirs.close()
        self.facts: dict[str, Any] = self._receive()
        self.kept: list[dict[str, float]] = []
        self.disturbed = 0
        self.seconds_kept = self.seconds_spent = 0.0

    def burst(self, counts: bool = True) -> None:
        """Let it take a burst of steps, and note it if it was not disturbed."""
        started = time.perf_counter()
        self.connection.send(True)
        seconds, others = self._receive()
        spent = time.perf_counter() - started
        if not counts:
            return
        self.seconds_spent += spent
        if others > ALLOWED:
            self.disturbed += 1
        else:
            self.kept.append(seconds)
            self.seconds_kept += spent

    def done(self, seconds: float) -> bool:
        """It was measured for so long, or waiting for a quiet machine has become hopeless."""
        return self.seconds_kept >= seconds or self.seconds_spent >= PATIENCE * seconds

    def finish(self) -> dict[str, Any]:
        """End the process; the row of the result file. Timings are null where too few bursts were undisturbed."""
        self.connection.send(False)
        memory = self._receive()
        self.process.join()
        case = self.case
        row: dict[str, Any] = {
            "case": case.name,
            "image_size": case.image_size,
            "batch_size": case.batch_size,
            "precision": case.precision,
            "encoder": case.encoder.model_dump(),
            "predictor": case.predictor.model_dump(),
            **self.facts,
            **memory,
            "bursts": len(self.kept),
            "bursts_disturbed": self.disturbed,
            "images_per_second": None,
            "seconds": None,
        }
        if len(self.kept) >= FEWEST:
            rates = [case.batch_size / burst["step"] for burst in self.kept]
            row["images_per_second"] = Spread.of(rates).as_dict()
            row["seconds"] = {
                name: Spread.of([burst[name] for burst in self.kept]).as_dict() for name in ("step", *PARTS)
            }
        return row

    def _receive(self) -> Any:
        try:
            return self.connection.recv()
        except EOFError as error:
            raise RuntimeError(f"the process of {self.case.name} ended; its message is above") from error


def measure(cases: Sequence[Case], seconds: float, device: str, threads: int) -> list[dict[str, Any]]:
    """A row for each case. The cases take turns, back and forth, so that a slow change of the machine meets all."""
    workers = [Worker(case, device, threads) for case in cases]
    for worker in workers:
        for _ in range(WARM_UP):
            worker.burst(counts=False)
    waiting = workers
    while waiting:
        for worker in waiting:
            worker.burst()
        waiting = [worker for worker in reversed(waiting) if not worker.done(seconds)]
    return [worker.finish() for worker in workers]


def write(path: Path, device: str, threads: int, rows: list[dict[str, Any]]) -> None:
    """The result file: the machine, how it was measured, and the rows."""
    settings = {"device": device, "threads": threads, "allowed_foreign_load": ALLOWED, "burst_seconds": BURST}
    values = {"environment": describe_environment(), "settings": settings, "rows": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1) + "\n")


def table(path: Path) -> str:
    """Images per second with quartiles, peak memory, and the parts as percent of the step, as Markdown."""
    columns = ["case", "images/s", "n", "peak memory, MiB (before the model)", "step, s", *(f"{p}, %" for p in PARTS)]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in json.loads(path.read_text())["rows"]:
        start = f"| {row['case']} "
        peak, before = (row[name] / 2**20 for name in ("peak_memory", "peak_memory_before_the_model"))
        memory, count = f"{peak:.0f} ({before:.0f})", f"{row['bursts']}"
        if row["seconds"] is None:
            lines.append(f"{start}| disturbed | {count} | {memory} |{' |' * (len(PARTS) + 1)}")
            continue
        rate, step = row["images_per_second"], row["seconds"]["step"]["median"]
        shares = " | ".join(f"{100 * row['seconds'][part]['median'] / step:.1f}" for part in PARTS)
        images = f"{rate['median']:.4g} ({rate['low']:.4g} to {rate['high']:.4g})"
        lines.append(f"{start}| {images} | {count} | {memory} | {step:.4g} | {shares} |")
    return "\n".join(lines)


def main() -> int:
    """0 when every case has a result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seconds", type=float, default=60.0, help="undisturbed seconds of each case")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="print the table from the result file")
    arguments = parser.parse_args()
    if not arguments.report:
        torch.set_num_threads(arguments.threads)
        rows = measure(
            [CASES[name] for name in arguments.cases], arguments.seconds, arguments.device, arguments.threads
        )
        write(arguments.out, arguments.device, arguments.threads, rows)
    print(table(arguments.out))
    missing = [row["case"] for row in json.loads(arguments.out.read_text())["rows"] if row["seconds"] is None]
    if missing:
        print(f"\nother processes disturbed {', '.join(missing)}: run again on a quiet machine")
    return 1 if missing else 0


if __name__ == "__main__":
    raise SystemExit(main())
