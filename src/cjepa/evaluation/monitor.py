"""What is measured while a run trains: the representation, what the predictor explains, and a cheap accuracy."""

import logging
import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, UInt8
from pydantic import Field, field_validator
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.data import Subset as ChosenItems

from cjepa.data import (
    DataConfig,
    EvaluationImages,
    ImageSource,
    Splits,
    TrainingStream,
    TwoCrops,
    holdout,
    labelled_only,
)
from cjepa.data.source import NO_LABEL, Subset
from cjepa.errors import InputError
from cjepa.evaluation import FeatureEvaluation, evaluate
from cjepa.evaluation.features import LabelledFeatures, batches_of, extract_features, strangers
from cjepa.evaluation.knn import KnnConfig, knn_accuracy
from cjepa.evaluation.linear import LinearConfig
from cjepa.evaluation.pooling import LAST_LAYER
from cjepa.evaluation.representation import dimension_std, effective_rank, explained_variance, position_errors
from cjepa.evaluation.retrieval import crop_retrieval
from cjepa.models import Model
from cjepa.models.pretrained import normalise
from cjepa.randomness import Stream, uniform_rows
from cjepa.ranks import from_first, gather, on_all, rank, world_size
from cjepa.types import Part, Precision

_log = logging.getLogger(__name__)

NEIGHBOURS = 20
QUALITIES = (f"knn_{NEIGHBOURS}_centred", "crop_retrieval")
"""The accuracies that runs are judged by: with enough labelled images, and without."""
FEWEST = 5
"""Images without which nothing is measured on them: two embeddings have the effective rank of a collapse, one none."""
PROBE = LinearConfig(inverse_regularisation=(0.03,), max_iterations=30)
"""A linear probe for curves: one strength for all moments, so that steps compare and nothing is chosen each time."""
_AT_ONCE = 1 << 20  # random numbers in memory
KEPT = 1 << 29
"""Bytes of images that a process keeps between two measurements: more are read and decoded each time."""
PROBE_STEP = 1 << 40
"""Crops and masks of the explained variance come from a step that no training reaches."""


class MonitorConfig(Part):
    """The cheap evaluation during training."""

    train_images: int = Field(5000, ge=2)
    """Most labelled training images that vote in the k-NN evaluation."""
    test_images: int = Field(2000, ge=2)
    """Most images that are classified, or found again by another crop where there are no labels."""
    batch_size: int = Field(256, ge=2)
    """Images per forward pass."""
    evaluations: tuple[Annotated[FeatureEvaluation, Field(discriminator="name")], ...] = (PROBE,)
    """More evaluations of the labelled images' features, as cjepa evaluate has them; [] for none."""

    @field_validator("evaluations")
    @classmethod
    def _of_the_last_layer(cls, evaluations: tuple[FeatureEvaluation, ...]) -> tuple[FeatureEvaluation, ...]:
        if any(evaluation.pooling != LAST_LAYER for evaluation in evaluations):
            raise ValueError("while a run trains, features are those of the last layer: leave pooling out")
        return evaluations


@dataclass(frozen=True)
class Seen:
    """What the last measurement computed, for pictures: embeddings of `labelled_test()`, of the labelled training
    images where there are any, and the mean squared prediction error of each patch position (NaN: never a target)."""

    test: Float[Tensor, "n D"]
    train: Float[Tensor, "m D"] | None
    errors: Float[Tensor, "N"]


class Monitor:
    """Measures a model on a fixed choice of images; the same images, crops and masks at every call.

    stream: where the explained variance takes its batch from. Ranks share the images and have the same values.
    """

    def __init__(
        self,
        config: MonitorConfig,
        data: DataConfig,
        splits: Splits,
        stream: TrainingStream,
        device: torch.device,
        precision: Precision,
    ) -> None:
        self.config = config
        self.data = data
        self.stream = stream
        self.device = device
        self.precision = precision
        labelled = labelled_splits(splits)
        if labelled is splits:
            _warn_of_strangers(splits)
        self.labelled = _sample(config, labelled)
        own = splits.test if splits.test is not None and len(splits.test) >= FEWEST else splits.train
        self.images = some_images(own, config.test_images)
        self.quality = QUALITIES[0 if self.labelled else 1]
        self.seen: Seen | None = None
        self._kept: dict[str, UInt8[Tensor, "n *views 3 H W"]] = {}
        self.count = len(self.labelled.test) if self.labelled and self.labelled.test else len(self.images)

    def measure(self, model: Model) -> dict[str, float]:
        """Values of the target encoder on fixed images, and of the predictor on a fixed batch."""
        test = self._features(model, "test", EvaluationImages(self.labelled_test(), self.data))
        deviations = dimension_std(test)
        explained, errors = self._prediction(model)
        values = {
            "effective_rank": float(effective_rank(test)),
            "std_smallest": float(deviations.min()),
            "std_mean": float(deviations.mean()),
            "spread": float(deviations.square().sum().sqrt() / test.double().square().sum(1).mean().sqrt()),
            "explained_variance": explained,
        }
        accuracy, train = self._accuracy(model, test)
        self.seen = Seen(test, train, errors)
        values |= accuracy
        return from_first(lambda: values)

    def labelled_test(self) -> ImageSource:
        """The images whose embeddings are measured: the labelled test images where there are any."""
        return self.labelled.test if self.labelled and self.labelled.test else self.images

    def _accuracy(self, model: Model, test: Tensor) -> tuple[dict[str, float], Tensor | None]:
        if self.labelled is None or self.labelled.test is None:
            crops = self._features(model, "crops", TwoCrops(self.images, self.data, self.stream.seed))
            return {"crop_retrieval": crop_retrieval(crops[:, 0], crops[:, 1])}, None
        train = self._features(model, "train", EvaluationImages(self.labelled.train, self.data))
        source, target = self.labelled.train, self.labelled.test
        features = LabelledFeatures.select(train, source.labels, test, target.labels, source.classes)
        values = knn_accuracy(KnnConfig(k=(NEIGHBOURS,)), features)
        for evaluation in self.config.evaluations:
            try:
                values |= evaluate(evaluation, features)
            except InputError as error:  # few images may not do for it; that must not end a run
                _log.warning("monitor.evaluations: %s is left out: %s", evaluation.name, error)
        return values, train

    def _features(self, model: Model, name: str, images: EvaluationImages | TwoCrops) -> Tensor:
        # As many images for every rank, so that all ask shards of each other equally often; the last ones come twice.
        each = -(-len(images) // world_size())
        own = [min(index, len(images) - 1) for index in range(rank() * each, (rank() + 1) * each)]
        features = on_all(
            lambda: extract_features(
                model.target_encoder,
                self._read(name, images if world_size() == 1 else ChosenItems(images, own)),
                self.data.mean,
                self.data.std,
                device=self.device,
                precision=self.precision,
                batch_size=self.config.batch_size,
                workers=self.data.processes,
                patience=self.data.worker_timeout,
            )
        )
        return gather(features)[: len(images)]

    def _read(self, name: str, images: Dataset[Tensor]) -> Dataset[Tensor] | UInt8[Tensor, "n *views 3 H W"]:
        """The images themselves once they were read, where they fit into what is kept; else as they are."""
        if name not in self._kept:
            data, views = self.data, 2 if name == "crops" else 1
            size = len(images) * views * 3 * math.prod(data.size)  # type: ignore[arg-type]  # it has a length
            if size + sum(kept.nbytes for kept in self._kept.values()) > KEPT:
                return images
            read = batches_of(images, self.config.batch_size, data.processes, patience=data.worker_timeout)
            self._kept[name] = torch.cat(list(read))
        return self._kept[name]

    @torch.no_grad()
    def _prediction(self, model: Model) -> tuple[float, Float[Tensor, "N"]]:
        """The explained variance and the errors by position, on a batch that no training sees.

        Of two views: what one tells of the other. They have no positions, so their errors are NaN.
        """
        batch = on_all(lambda: self.stream[PROBE_STEP])  # the same on all, but reading may fail on one
        views = batch.images if batch.second is None else torch.cat([batch.images, batch.second])
        images = normalise(views.to(self.device), self.data.mean, self.data.std)
        shown = (images, batch.masks.to(self.device)) if batch.second is None else images.chunk(2)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            embeddings = model(*shown)
        predicted, target = embeddings.predicted.cpu(), embeddings.target.cpu()
        height, width = self.data.size
        patches = (height // model.encoder.patch_size) * (width // model.encoder.patch_size)
        if batch.second is not None:
            only_place = torch.zeros(target.shape[:3], dtype=torch.int64)
            return explained_variance(predicted, target, only_place), torch.full((patches,), torch.nan)
        places = batch.masks.targets
        return explained_variance(predicted, target, places), position_errors(predicted, target, places, patches)


def _warn_of_strangers(splits: Splits) -> None:
    """Say where no test image can be classified: what is measured instead is no accuracy."""
    assert splits.test is not None
    known, tested = (set(np.unique(each.labels).tolist()) - {NO_LABEL} for each in (splits.train, splits.test))
    if known and not known & tested:
        _log.warning("%s; crops are found again instead", strangers(known, tested, splits.train.classes))


def _sample(config: MonitorConfig, splits: Splits | None) -> Splits | None:
    """Some training images, and some test images of their classes; None where that leaves too little to tell apart."""
    if splits is None or splits.test is None:
        return None
    train = some_images(labelled_only(splits.train), config.train_images)
    known = np.unique(train.labels)
    usable = np.flatnonzero(np.isin(splits.test.labels, known))
    if len(known) < 2 or not len(usable):
        return None
    if len(usable) < FEWEST:
        _log.warning("only %d labelled images are left to test on: crops are found again instead", len(usable))
        return None
    return Splits(train, some_images(Subset(splits.test, usable), config.test_images))


def labelled_splits(splits: Splits) -> Splits | None:
    """Labelled training and test images with at least two classes, or None: the source's own, else a hold-out."""
    if len(splits.train.classes) < 2:
        return None
    if splits.test is not None and np.any(splits.test.labels != NO_LABEL):
        return splits
    return holdout(splits.train)


def some_images(source: ImageSource, most: int) -> ImageSource:
    """The source, or a fixed random choice of this many of its images."""
    if len(source) <= most:
        return source
    return Subset(source, np.sort(_lowest(most, len(source))))


def _lowest(most: int, count: int) -> npt.NDArray[np.int64]:
    """The indices of the `most` lowest of `count` random numbers, some of which are in memory at a time."""
    indices, scores = np.empty(0, np.int64), np.empty(0)
    for first in range(0, count, _AT_ONCE):
        drawn = uniform_rows(0, Stream.EVALUATION, 0, first, min(_AT_ONCE, count - first), 1)[:, 0]
        indices = np.concatenate([indices, np.arange(first, first + len(drawn))])
        scores = np.concatenate([scores, drawn])
        kept = np.argsort(scores, kind="stable")[:most]
        indices, scores = indices[kept], scores[kept]
    return indices
