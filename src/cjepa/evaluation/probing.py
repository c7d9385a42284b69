"""Heads on a frozen encoder, trained side by side on the same crops; validation images choose among them."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cjepa.data import ImageSource
from cjepa.data.source import Subset
from cjepa.evaluation.batches import LabelledBatches, steps_of
from cjepa.evaluation.fitting import Plan, fit, warmup_cosine
from cjepa.evaluation.labelled import LabelledImages, accuracies
from cjepa.evaluation.linear import validation_images
from cjepa.evaluation.task import EncoderTask, Values
from cjepa.evaluation.work import Work
from cjepa.models.pretrained import PretrainedEncoder, normalise

Encode = Callable[[PretrainedEncoder, Float[Tensor, "B 3 H W"]], Tensor]


@dataclass(frozen=True)
class Probe:
    """A kind of head: what it reads of the encoder, how it is made, and how the heads are optimised.

    rates: a head for each learning rate. optimizer: of all heads, for batches of so many images; one or more groups
    each, with their rate as SCALE.
    """

    name: str
    rates: tuple[float, ...]
    encode: Encode
    head: Callable[[int, int], nn.Module]
    optimizer: Callable[[list[nn.Module], int], torch.optim.Optimizer]
    epochs: float
    warmup_epochs: float
    batch_size: int
    crop_scale: tuple[float, float]
    validation_share: float


@dataclass(frozen=True)
class ProbeTask(EncoderTask):
    """Labelled images and the heads that are trained on them."""

    images: LabelledImages
    probe: Probe
    features: Callable[[int], int]
    """Number of features that a head reads, from the encoder's width."""

    def protocol(self) -> dict[str, Any]:
        """Images and their preparation."""
        return self.images.protocol()

    def measure(self, encoder: PretrainedEncoder, work: Work) -> Values:
        """Percent of the test images right, of the head that did best on the validation images, and its rate."""
        encoder = copy.deepcopy(encoder).to(work.device).eval().requires_grad_(False)
        probe, classes = self.probe, len(self.images.train.classes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(work.seed)  # the same start for every encoder
            heads = [probe.head(self.features(encoder.width), classes) for _ in probe.rates]
        modules = nn.ModuleList(heads).to(work.device)
        train, validation = self._split()
        self._fit(encoder, modules, train, work)
        best = 0
        if validation is not None:
            best = int(np.argmax(self._accuracies(encoder, modules, validation, "validation image", work)))
        test = self._accuracies(encoder, modules, self.images.test, "test image", work)
        return {probe.name: test[best], f"{probe.name}_rate": probe.rates[best]}

    def _split(self) -> tuple[ImageSource, ImageSource | None]:
        train = self.images.train
        if len(self.probe.rates) == 1:
            return train, None
        held_out = validation_images(train.labels, self.probe.validation_share)
        return Subset(train, np.flatnonzero(~held_out)), Subset(train, np.flatnonzero(held_out))

    def _fit(self, encoder: PretrainedEncoder, heads: nn.ModuleList, train: ImageSource, work: Work) -> None:
        probe, data = self.probe, self.images.data
        size = min(probe.batch_size, len(train))
        steps = steps_of(probe.epochs, len(train), size)
        warmup = round(steps * probe.warmup_epochs / probe.epochs)

        def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
            images, labels = (part.to(work.device) for part in batch)
            with torch.no_grad(), work.autocast():
                features = probe.encode(encoder, normalise(images, data.mean, data.std)).float()
            # No head's gradient reaches another, so their sum trains each as if it were alone.
            return torch.stack([cross_entropy(head(features), labels) for head in heads]).sum()

        heads.train()
        plan = Plan(
            modules={"heads": heads},
            optimizer=probe.optimizer(list(heads), size),
            batches=LabelledBatches(train, data.size, size, work.seed, probe.crop_scale),
            loss=loss,
            rate=lambda step: warmup_cosine(step, warmup, steps),
            steps=steps,
            images=size,
        )
        fit(plan, work)
        heads.eval()

    def _accuracies(
        self, encoder: PretrainedEncoder, heads: nn.ModuleList, source: ImageSource, what: str, work: Work
    ) -> list[float]:
        """Percent right of every head on centre crops."""

        def classify(images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
            with work.autocast():
                features = self.probe.encode(encoder, images)
            return [head(features.float()) for head in heads]

        return accuracies(classify, source, self.images.data, what, work)
