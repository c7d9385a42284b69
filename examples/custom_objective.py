"""Train with an objective of your own: python examples/custom_objective.py IMAGES [STEPS] [KEY=VALUE ...]

An objective is a module: (embeddings, step) -> Loss. This one adds to the prediction loss the Barlow Twins criterion
(Zbontar et al., 2021) between the first two predicted blocks of each image. To make it a variant that presets and the
command line know, see "what is minimised" in CONTRIBUTING.md.
"""

import sys
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cjepa.build import build_model, build_stream
from cjepa.config.presets import resolve
from cjepa.data import iterate, open_source
from cjepa.models.pretrained import normalise
from cjepa.training.trainer import Trainer
from cjepa.types import Embeddings, Loss


class Barlow(nn.Module):
    def forward(self, embeddings: Embeddings, step: int) -> Loss:  # noqa: ARG002  the step seeds random criteria
        prediction = F.smooth_l1_loss(embeddings.predicted, embeddings.target)
        views = embeddings.predicted.mean(dim=2)  # [B, M, D]: one view for each predicted block
        decorrelation = _off_identity(views[:, 0], views[:, 1])
        terms = {"prediction": prediction.detach(), "decorrelation": decorrelation.detach()}
        return Loss(prediction + 0.01 * decorrelation, terms)


def _off_identity(one: Tensor, other: Tensor) -> Tensor:
    """Mean squared difference of the correlation of two views, over the batch, from the identity."""
    one, other = (F.normalize(each - each.mean(dim=0), dim=0) for each in (one, other))
    return (one.T @ other - torch.eye(one.shape[1], device=one.device)).square().mean()


def main(images: str, steps: int = 100, changes: tuple[str, ...] = ()) -> list[float]:
    config = resolve("small-96", [f"data={images}", "training.device=cpu", *changes])
    splits = open_source(config.data, config.seed)
    prepare = partial(normalise, mean=config.data.mean, std=config.data.std)
    model, cpu, count = build_model(config), torch.device("cpu"), len(splits.train)
    trainer = Trainer(config.training, model, Barlow(), prepare, count, config.data.max_unreadable_share, cpu)
    losses = []
    for batch in iterate(build_stream(config, splits), 0, steps, config.data.processes):
        loss = trainer.take_step(batch).loss
        trainer.progress.step += 1  # schedules are functions of the step
        losses.append(float(loss.total.detach()))
        print(trainer.progress.step, {name: round(float(term), 4) for name, term in loss.terms.items()})
    return losses


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]), changes=tuple(sys.argv[3:]))
