"""A training step of the public I-JEPA code beside one of ours: same weights, masks, images, optimizer and average.

    python -m benchmarks.peers --reference FOLDER

FOLDER is a checkout of https://github.com/facebookresearch/ijepa, which this repository does not contain (its licence
is CC-BY-NC): its modules are imported from there and its step is taken around them as it is published, with its AdamW
(not fused), its moving average (parameter by parameter) and its statistics of the gradient, but without images to load
and without the scaling of float16, which a CPU does not do. Ours is a step of the package's own trainer, from uint8
images, with the objective `ijepa`.

First both compute loss and gradient from the same weights, which must agree to rounding. Then they take turns, a step
each in a process of its own, the first one changing; a round counts only if nothing else used the machine (guard.py).
What is reported is the ratio of the seconds of a round, so that a slow change of the machine meets both. It replaces the
rows of the cases it measured in benchmarks/results/peers.json; `--report` prints the table from that file.
"""

import argparse
import copy
import hashlib
import importlib
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.guard import ALLOWED, Reading, Spread, used_by_others
from benchmarks.step import CASES, Case, typical_batch
from cjepa.build import build_trainer
from cjepa.config import RunConfig
from cjepa.models import JEPA
from cjepa.objectives import IJepaConfig
from cjepa.training.device_memory import keep_freed_memory
from cjepa.training.environment import describe_environment
from cjepa.training.schedules import learning_rate
from cjepa.types import Batch

RESULTS = Path(__file__).parent / "results" / "peers.json"
FEWEST = 5
"""Undisturbed rounds without which a case has no result."""
PATIENCE = 3
"""Times the seconds of a case after which it ends, however many rounds were disturbed."""
NAMES = {"project_in": "predictor_embed", "blocks": "predictor_blocks", "norm": "predictor_norm"}
NAMES |= {"project_out": "predictor_proj", "mask_token": "mask_token"}
"""Parts of our predictor, and what the public one calls them."""


@dataclass(frozen=True)
class Public:
    """What is taken from the checkout: the module of both transformers, and two functions of the step."""

    transformers: ModuleType
    masks: ModuleType
    logging: ModuleType
    sha256: str

    @classmethod
    def of(cls, folder: Path) -> "Public":
        """From a checkout; SystemExit where it is none."""
        source = folder / "src" / "models" / "vision_transformer.py"
        if not source.is_file():
            raise SystemExit(f"{folder} is no checkout of facebookresearch/ijepa: {source} is not there")
        if str(folder.resolve()) not in sys.path:
            sys.path.insert(0, str(folder.resolve()))
        modules = (
            importlib.import_module(f"src.{name}")
            for name in ("models.vision_transformer", "masks.utils", "utils.logging")
        )
        return cls(*modules, hashlib.sha256(source.read_bytes()).hexdigest())


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
        found = {name: _of(parameter.grad) for name, parameter in self.trainer.parameters.items()}
        self.trainer.optimizer.zero_grad(set_to_none=True)
        return float(loss.total), found


class Theirs:
    """The published step around the public modules, with the weights, rates and precision of a trainer of ours."""

    def __init__(self, public: Public, ours: Ours, case: Case, device: torch.device) -> None:
        self.public, self.device = public, device
        self.bfloat16 = case.precision == "bfloat16"
        self.encoder, self.predictor = _modules(public, case)
        _load(self.encoder, self.predictor, ours.trainer.model)
        self.encoder.to(device)
        self.predictor.to(device)
        self.target = copy.deepcopy(self.encoder).requires_grad_(False)
        self.normalise = ours.trainer.normalise
        config = ours.trainer.config
        self.momentum = config.momentum.start
        parts = (self.encoder, self.predictor)
        groups: list[dict[str, Any]] = [
            {"params": [p for p in part.parameters() if p.requires_grad and p.ndim > 1]} for part in parts
        ]
        vectors = [p for part in parts for p in part.parameters() if p.requires_grad and p.ndim == 1]
        groups.append({"params": vectors, "weight_decay": 0.0})
        rate = learning_rate(config.optimizer.learning_rate, 0, ours.trainer.warmup_steps, ours.trainer.total_steps)
        self.optimizer = torch.optim.AdamW(
            groups, lr=rate, betas=config.optimizer.betas, weight_decay=config.optimizer.weight_decay.start
        )

    def step(self, batch: Batch) -> float:
        """Take one; its loss."""
        loss = self._backward(batch)
        self.optimizer.step()
        self.public.logging.grad_logger(self.encoder.named_parameters())
        self.optimizer.zero_grad()
        with torch.no_grad():
            for average, current in zip(self.target.parameters(), self.encoder.parameters(), strict=True):
                average.mul_(self.momentum).add_(current, alpha=1 - self.momentum)
        return loss

    def gradient(self, batch: Batch) -> tuple[float, dict[str, Tensor]]:
        """Loss and gradient from the weights as they are, by the names of ours."""
        loss = self._backward(batch)
        found = {_our_name("encoder", name): _of(p.grad) for name, p in self.encoder.named_parameters() if _learns(p)}
        found |= {
            _our_name("predictor", name): _of(p.grad) for name, p in self.predictor.named_parameters() if _learns(p)
        }
        self.optimizer.zero_grad()
        return loss, found

    def _backward(self, batch: Batch) -> float:
        images = self.normalise(batch.images.to(self.device))
        contexts = [batch.masks.context.to(self.device)]
        targets = list(batch.masks.targets.to(self.device).unbind(1))
        apply_masks = self.public.masks.apply_masks
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            with torch.no_grad():
                embedded = self.target(images)
                wanted = apply_masks(F.layer_norm(embedded, embedded.shape[-1:]), targets)
            predicted = self.predictor(self.encoder(images, contexts), contexts, targets)
            loss = F.smooth_l1_loss(predicted, wanted)
        loss.backward()
        return float(loss.detach())


def _modules(public: Public, case: Case) -> tuple[nn.Module, nn.Module]:
    encoder, predictor = case.encoder, case.predictor
    norm = partial(nn.LayerNorm, eps=1e-6)
    built = public.transformers.VisionTransformer(
        img_size=[case.image_size],
        patch_size=encoder.patch_size,
        embed_dim=encoder.width,
        depth=encoder.depth,
        num_heads=encoder.heads,
        mlp_ratio=encoder.mlp_ratio,
        qkv_bias=True,
        norm_layer=norm,
    )
    predicting = public.transformers.VisionTransformerPredictor(
        num_patches=built.patch_embed.num_patches,
        embed_dim=encoder.width,
        predictor_embed_dim=predictor.width,
        depth=predictor.depth,
        num_heads=predictor.heads or encoder.heads,
        mlp_ratio=predictor.mlp_ratio,
        qkv_bias=True,
        norm_layer=norm,
    )
    return built, predicting


def _load(encoder: nn.Module, predictor: nn.Module, model: JEPA) -> None:
    """Our weights into their modules: everything that learns must be given."""
    for part, module, source in (("encoder", encoder, model.encoder), ("predictor", predictor, model.predictor)):
        weights = {f"{part}.{name}": tensor for name, tensor in source.named_parameters()}
        for name, parameter in module.named_parameters():
            if _learns(parameter):
                parameter.data.copy_(weights.pop(_our_name(part, name)).detach().reshape(parameter.shape))
        assert not weights, f"the public {part} has no {', '.join(weights)}"


def _our_name(part: str, name: str) -> str:
    """What we call a parameter of a public module."""
    if part == "encoder":
        return f"encoder.{name.replace('patch_embed.proj', 'patch_projection')}"
    first, *rest = name.split(".")
    own = {theirs: ours for ours, theirs in NAMES.items()}[first]
    return ".".join(("predictor", own, *rest))


def _learns(parameter: nn.Parameter) -> bool:
    return parameter.requires_grad


def _of(gradient: Tensor | None) -> Tensor:
    assert gradient is not None
    return gradient.detach().float().flatten().clone()


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Norm of the difference of two gradients over the norm of the second."""
    assert one.keys() == other.keys()
    difference = sum(float((one[name] - other[name]).square().sum(dtype=torch.float64)) for name in other)
    return float((difference / sum(float(each.square().sum(dtype=torch.float64)) for each in other.values())) ** 0.5)


def compare(public: Public, case: Case, device: torch.device) -> dict[str, float]:
    """Losses and gradients of both from the same weights; in bfloat16 also how far each is from our float32."""
    batch = typical_batch(case)
    ours = Ours(_config(case), device)
    (loss, gradient), (their_loss, theirs) = ours.gradient(batch), Theirs(public, ours, case, device).gradient(batch)
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


def serve(connection: Connection, folder: Path, case: Case, name: str, device_name: str, threads: int) -> None:
    """The process of a contestant: for every True that arrives, the seconds of a step and the foreign load in it."""
    torch.set_num_threads(threads)
    device, batch = torch.device(device_name), typical_batch(case)
    ours = Ours(_config(case), device)
    if name == "public":
        step = partial(Theirs(Public.of(folder), ours, case, device).step, batch)
    else:
        keep_freed_memory()  # as the command line does
        step = partial(ours.step, batch)
    while connection.recv():
        before = Reading.now()
        seconds = _seconds(step, device)
        connection.send((seconds, used_by_others(before, Reading.now())))


class Contestant:
    """A step in a process of its own, whose memory is managed as its program does it."""

    def __init__(self, *arguments: Any) -> None:
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


def race(contestants: Mapping[str, Contestant], seconds: float) -> tuple[list[dict[str, float]], int]:
    """Seconds of each contestant in each undisturbed round, and how many rounds were disturbed."""
    kept: list[dict[str, float]] = []
    disturbed, measured, order = 0, 0.0, list(contestants)
    for contestant in contestants.values():
        contestant.step()
    began = time.perf_counter()
    while measured < seconds and time.perf_counter() - began < PATIENCE * seconds:
        order.reverse()
        found = {name: contestants[name].step() for name in order}
        if max(others for _, others in found.values()) > ALLOWED:
            disturbed += 1
        else:
            kept.append({name: lasted for name, (lasted, _) in found.items()})
            measured += sum(kept[-1].values())
    return kept, disturbed


def measure(folder: Path, case: Case, device: torch.device, seconds: float, threads: int) -> dict[str, Any]:
    """The row of a case; ratios are null where too few rounds were undisturbed."""
    same = compare(Public.of(folder), case, device)
    contestants = {name: Contestant(folder, case, name, str(device), threads) for name in ("public", "cjepa")}
    kept, disturbed = race(contestants, seconds)
    for contestant in contestants.values():
        contestant.finish()
    row = _described(case, typical_batch(case), device)
    return {**row, "agreement": same, "rounds_disturbed": disturbed, **spreads(kept, case)}


def _described(case: Case, batch: Batch, device: torch.device) -> dict[str, Any]:
    return {
        "case": case.name,
        "image_size": case.image_size,
        "batch_size": case.batch_size,
        "precision": case.precision,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "context_patches": batch.masks.context.shape[1],
        "target_blocks": batch.masks.targets.shape[1],
        "target_patches": batch.masks.targets.shape[2],
    }


def spreads(rounds: Sequence[Mapping[str, float]], case: Case) -> dict[str, Any]:
    """Images per second of each contestant, and how many times faster than the public step ours was in a round."""
    if len(rounds) < FEWEST:
        return {"rounds": len(rounds), "images_per_second": None, "ratio": None}
    names = [name for name in rounds[0] if name != "public"]
    return {
        "rounds": len(rounds),
        "images_per_second": {
            name: Spread.of([case.batch_size / each[name] for each in rounds]).as_dict() for name in ("public", *names)
        },
        "ratio": {name: Spread.of([each["public"] / each[name] for each in rounds]).as_dict() for name in names},
    }


def _seconds(step: Callable[[], float], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def write(path: Path, public: Public, threads: int, rows: list[dict[str, Any]]) -> None:
    """Put the rows into the result file in place of those of the same cases; each says what it was measured with."""
    path.parent.mkdir(parents=True, exist_ok=True)
    measured = {row["case"] for row in rows}
    kept = [row for row in _rows(path) if row["case"] not in measured] if path.exists() else []
    settings = {"threads": threads, "allowed_foreign_load": ALLOWED, "public_transformers_sha256": public.sha256}
    new = [{**row, "settings": settings, "environment": describe_environment()} for row in rows]
    ordered = sorted(kept + new, key=lambda row: list(CASES).index(row["case"]))
    path.write_text(json.dumps({"rows": ordered}, indent=1) + "\n")


def _rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    return rows


def table(path: Path) -> str:
    """Rates and ratios with quartiles, and how far loss and gradient are apart, as Markdown."""
    columns = ["case", "n", "public, images/s", "cjepa, images/s", "ratio", "loss differs by", "gradient differs by"]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in _rows(path):
        same, rates, ratio = row["agreement"], row["images_per_second"], row["ratio"]
        speed = "disturbed | | " if rates is None else f"{_text(rates['public'])} | {_text(rates['cjepa'])} | "
        speed += "" if ratio is None else _text(ratio["cjepa"])
        gradient = f"{same['gradient_difference']:.2g}"
        if "gradient_from_float32" in same:
            gradient += f" (from float32: {same['gradient_from_float32']:.2g}, "
            gradient += f"public {same['gradient_from_float32_public']:.2g})"
        lines.append(f"| {row['case']} | {row['rounds']} | {speed} | {same['loss_difference']:.1g} | {gradient} |")
    return "\n".join(lines)


def _text(spread: Mapping[str, float]) -> str:
    return f"{spread['median']:.3g} ({spread['low']:.3g} to {spread['high']:.3g})"


def main() -> int:
    """0 when every case has a result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, help="a checkout of facebookresearch/ijepa")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
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
            row = measure(arguments.reference, CASES[name], device, arguments.seconds, arguments.threads)
            write(arguments.out, public, arguments.threads, [row])
    print(table(arguments.out))
    missing = [row["case"] for row in _rows(arguments.out) if row["ratio"] is None]
    if missing:
        print(f"\nother processes disturbed {', '.join(missing)}: run again on a quiet machine")
    return 1 if missing else 0


if __name__ == "__main__":
    raise SystemExit(main())
