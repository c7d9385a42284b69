"""Weighted k-nearest-neighbour classification of frozen features."""

import logging
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from cjepa.evaluation.features import LabelledFeatures, constant_dimensions
from cjepa.types import Part

_logger = logging.getLogger(__name__)
_CHUNK_ELEMENTS = 2**24  # similarities held at once: 64 MiB


class KnnConfig(Part):
    """Weighted cosine k-NN of the frozen features."""

    name: Literal["knn"] = "knn"
    """Weighted cosine k-NN."""
    k: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)] = (10, 20)
    """Numbers of neighbours that vote; one accuracy for each."""
    temperature: float = Field(0.07, gt=0)
    """A neighbour of cosine similarity s votes with the weight exp(s / temperature)."""
    centre: bool = True
    """Also report the accuracy without the training mean, a large constant part that pooled features share."""


def knn_accuracy(config: KnnConfig, features: LabelledFeatures) -> dict[str, float]:
    """Percent of the test images whose class wins the vote of the k nearest training images.

    Values: `knn_20` for k = 20, and with `centre` also `knn_20_centred`. The protocol of DINO (Caron et al., 2021)
    after Wu et al. (2018): each neighbour votes with exp(cosine similarity / temperature). A k above the number of
    training images is cut to it, and a warning logged.
    """
    accuracies = _accuracies(config, features, features.train, features.test)
    values = {f"knn_{k}": accuracy for k, accuracy in accuracies.items()}
    if config.centre:
        mean = features.train.mean(0)
        varies = ~constant_dimensions(features.train)
        train, test = (features.train - mean) * varies, (features.test - mean) * varies
        centred = _accuracies(config, features, train, test)
        values |= {f"knn_{k}_centred": accuracy for k, accuracy in centred.items()}
    images = len(features.train)
    if max(config.k) > images:
        _logger.warning("k = %d is more than the %d training images: all of them vote", max(config.k), images)
    return values


def _accuracies(
    config: KnnConfig, features: LabelledFeatures, train: Float[Tensor, "n D"], test: Float[Tensor, "m D"]
) -> dict[int, float]:
    train, test = normalize(train.float(), dim=1), normalize(test.float(), dim=1)
    chunk = max(1, _CHUNK_ELEMENTS // len(train))
    correct = dict.fromkeys(config.k, 0)
    for queries, labels in zip(torch.split(test, chunk), torch.split(features.test_labels, chunk), strict=True):
        similarity, index = (queries @ train.T).topk(min(max(config.k), len(train)), dim=1)
        neighbours = features.train_labels[index].long()
        for k in correct:
            votes = _votes(similarity[:, :k], neighbours[:, :k], config.temperature, len(features.classes))
            correct[k] += int((votes.argmax(1) == labels).sum())
    return {k: 100 * count / len(test) for k, count in correct.items()}


def _votes(
    similarity: Float[Tensor, "m k"], neighbours: Int[Tensor, "m k"], temperature: float, classes: int
) -> Float[Tensor, "m classes"]:
    # Relative to the nearest neighbour: the same winner, and no overflow at low temperatures.
    weights = ((similarity - similarity[:, :1]) / temperature).exp()
    return torch.zeros(len(weights), classes, device=weights.device).scatter_add_(1, neighbours, weights)
