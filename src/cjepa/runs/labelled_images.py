"""The labelled images of a run, and the features of them that encoders and baselines give."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from cjepa.config import RunConfig
from cjepa.data import NO_LABEL, EvaluationImages, ImageSource, labelled_only, open_source
from cjepa.errors import InputError
from cjepa.evaluation.features import LabelledFeatures, extract_features
from cjepa.evaluation.monitor import labelled_splits
from cjepa.models.pretrained import PretrainedEncoder
from cjepa.training.progress import Progress

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledImages:
    """Training and test images, all of them with a label, prepared as the run's config says."""

    config: RunConfig
    train: ImageSource
    test: ImageSource

    def protocol(self) -> dict[str, Any]:
        """What decides the features besides the weights: accuracies compare at equal protocols only."""
        data = self.config.data
        fingerprint = hashlib.sha256((self.train.fingerprint + self.test.fingerprint).encode()).hexdigest()
        return {
            "train_images": len(self.train),
            "test_images": len(self.test),
            "classes": len(self.train.classes),
            "image_size": list(data.size),
            "evaluation_crop": data.evaluation_crop,
            "precision": self.config.training.precision,
            "images": fingerprint[:16],
        }

    def embedded(self, encoder: PretrainedEncoder, name: str, device: torch.device) -> LabelledFeatures:
        """Mean-pooled embeddings; a line says how far they are."""
        encoder = encoder.to(device)
        with Progress(f"features of the {name} encoder", len(self.train) + len(self.test)) as line:
            train = self._embedded(self.train, encoder, device, lambda done: line.update(done, {}))
            test = self._embedded(self.test, encoder, device, lambda done: line.update(len(self.train) + done, {}))
        return self._labelled(train, test)

    def computed(self, features: Callable[[Tensor], Tensor]) -> LabelledFeatures:
        """Features that are a function of the pixels alone."""
        return self._labelled(self._computed(self.train, features), self._computed(self.test, features))

    def _embedded(
        self, source: ImageSource, encoder: PretrainedEncoder, device: torch.device, progress: Callable[[int], None]
    ) -> Tensor:
        data = self.config.data
        return extract_features(
            encoder,
            EvaluationImages(source, data),
            data.mean,
            data.std,
            device=device,
            precision=self.config.training.precision,
            batch_size=self.config.monitor.batch_size,
            workers=data.workers,
            progress=progress,
        )

    def _computed(self, source: ImageSource, features: Callable[[Tensor], Tensor]) -> Tensor:
        images = EvaluationImages(source, self.config.data)
        batches = DataLoader(images, self.config.monitor.batch_size, num_workers=self.config.data.workers)
        return torch.cat([features(batch) for batch in batches])

    def _labelled(self, train: Tensor, test: Tensor) -> LabelledFeatures:
        return LabelledFeatures.select(train, self.train.labels, test, self.test.labels, self.train.classes)


def open_labelled(config: RunConfig) -> LabelledImages:
    """The labelled images of a config's data; InputError where there are none to train or to test on."""
    splits = open_source(config.data, config.seed)
    labelled = labelled_splits(splits)
    if labelled is None or labelled.test is None or not np.any(labelled.train.labels != NO_LABEL):
        raise InputError(
            "the images have no labels to evaluate with; put those of each class into a folder of its own (at least "
            "two classes, as in FOLDER/CLASS/image.jpg), or name a folder of such images with --images FOLDER"
        )
    if labelled.test is not splits.test:
        _log.info("no test images of their own: about a fifth of the labelled images is held out to test on")
    return LabelledImages(config, labelled_only(labelled.train), labelled_only(labelled.test))
