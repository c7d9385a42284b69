"""Runs made up for the tests of the report: values without a training."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from cjepa.masking import MultiblockConfig, build_sampler
from cjepa.visualization.report import Evaluation, Judgement, Pairs, RunMaterial, Samples, Snapshot

GRID, PATCH, WIDTH, EXAMPLES, COMPARED = (4, 6), 4, 8, 3, 12
WEIGHTS = {"prediction": 1.0, "similarity": 2.5, "variance": 2.5, "covariance": 0.1}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def picture(*shape: int, seed: int = 0) -> torch.Tensor:
    return (255 * noise(*shape, seed=seed)).to(torch.uint8)


def samples(labelled: bool = True) -> Samples:
    labels = torch.arange(COMPARED) % 3 if labelled else torch.full((COMPARED,), -1)
    return Samples(
        examples=picture(EXAMPLES, 3, 16, 24),
        example_names=tuple(f"class/{index}.png" for index in range(EXAMPLES)),
        compared=picture(COMPARED, 3, 16, 24, seed=1),
        labels=labels,
        crops=picture(5, 3, 16, 24, seed=2),
        sizes=torch.tensor([[16 + index, 24] for index in range(COMPARED)]),
    )


def snapshot(step: int) -> Snapshot:
    patches = GRID[0] * GRID[1]
    return Snapshot(
        step=step,
        patches=noise(EXAMPLES, patches, WIDTH, seed=step),
        attention_target=noise(EXAMPLES, patches, seed=step + 1),
        attention_context=noise(EXAMPLES, patches, seed=step + 2),
        embeddings=noise(COMPARED, WIDTH, seed=step + 3),
        singular_values=noise(WIDTH, seed=step + 4),
        deviations=noise(WIDTH, seed=step + 5),
        errors=noise(patches, seed=step + 6),
        pairs=Pairs(torch.tensor([0.9]), picture(1, 2, 3, 16, 24), (("first.png", "second.png"),), COMPARED),
    )


def rows(steps: int = 40, offset: float = 0.0) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for step in range(0, steps + 1, 10):
        measured = {"knn_20": 30.0 + step + offset, "knn_20_centred": 31.0 + step + offset, "effective_rank": 4.0}
        measured |= {"explained_variance": 0.1, "spread": 0.5, "std_mean": 0.2, "std_smallest": 0.1}
        found.append({"step": step, "split": "evaluation", **measured})
        if step:
            terms = {name: weight / step + offset for name, weight in WEIGHTS.items()}
            schedule = {"learning_rate": 1e-3, "weight_decay": 0.04, "momentum": 0.99, "gradient_norm": 1.0}
            found.append({"step": step, "split": "train", "loss": 3.0 / step, **terms, **schedule, "skipped": 0.0})
    return found


def evaluation(values: dict[str, float], encoder: str = "target", step: int = 40) -> Evaluation:
    return Evaluation(step, "linear", encoder, "{}", 200, values)


def run(name: str = "run", **changes: Any) -> RunMaterial:
    """A complete run, with some of its values replaced."""
    sampler = build_sampler(MultiblockConfig(min_context=1), GRID, 0, 8)
    whole = RunMaterial(
        name=name,
        identity=name,
        seed=0,
        judgement=Judgement("healthy", "knn_20_centred 71.0 against 31.0 untrained", ""),
        progress="All 40 steps are taken.",
        finished=True,
        facts=[("seed", "0")],
        config="seed: 0\n",
        rows=rows(),
        weights=WEIGHTS,
        quality="knn_20_centred",
        tested=200,
        batch_size=8,
        images_per_epoch=80,
        grid=GRID,
        patch_size=PATCH,
        clock=(np.array([0.0, 10.0, 20.0, 40.0]), np.array([1.0, 3600.0, 7200.0, 14400.0])),
        evaluations=[evaluation({"linear": 80.0}), evaluation({"linear": 50.0}, "untrained", 0)],
        unreadable=[("broken.png", "truncated")],
        classes=("a", "b", "c"),
        samples=samples(),
        snapshots=[snapshot(step) for step in (0, 20, 40)],
        masks=[sampler(step, 0, 8) for step in range(3)],
    )
    return replace(whole, **changes)


def few_rows(steps: int = 40, offset: float = 0.0) -> list[dict[str, Any]]:
    """Rows of three values only, for tests that draw many pages."""
    kept = {"step", "split", "knn_20_centred", "effective_rank", "loss"}
    return [{name: value for name, value in row.items() if name in kept} for row in rows(steps, offset)]
