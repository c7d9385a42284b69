"""Weighted k-nearest-neighbour classification of frozen features."""

import logging
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from cjepa.evaluation.features import LabelledFeatures, constant_dimensions
from cjepa.evaluation.pooling import LAST_LAYER, PoolingConfig
from cjepa.evaluation.storage import row_blocks
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
    pooling: PoolingConfig = LAST_LAYER
    """How patch embeddings become the features of an image."""


def knn_accuracy(config: KnnConfig, features: LabelledFeatures) -> dict[str, float]:
    """Percent of the test images whose class wins the vote of the k nearest training images.

    Values: `knn_20` for k = 20, and with `centre` also `knn_20_centred`. The protocol of DINO (Caron et al., 2021)
    after Wu et al. (2018): each neighbour votes with exp(cosine similarity / temperature). A k above the number of
    training images is cut to it, and a warning logged.
    """
    accuracies = _accuracies(config, features, None)
    values = {f"knn_{k}": accuracy for k, accuracy in accuracies.items()}
    if config.centre:
        centre = Centre(features.train.mean(0), ~constant_dimensions(features.train))
        centred = _accuracies(config, features, centre)
        values |= {f"knn_{k}_centred": accuracy for k, accuracy in centred.items()}
    images = len(features.train)
    if max(config.k) > images:
        _logger.warning("k = %d is more than the %d training images: all of them vote", max(config.k), images)
    return values


@dataclass(frozen=True)
class Centre:
    """What is subtracted from features, and which dimensions vary beyond rounding and so count."""

    mean: Float[Tensor, "D"]
    varies: Bool[Tensor, "D"]


def directions(features: Float[Tensor, "n D"], centre: Centre | None) -> Float[Tensor, "n D"]:
    """Features of length one, centred where that is asked for."""
    if centre is not None:
        features = (features - centre.mean) * centre.varies
    return normalize(features.float(), dim=1)


def nearest(
    queries: Float[Tensor, "m D"], gallery: Float[Tensor, "n D"], k: int, centre: Centre | None = None
) -> tuple[Float[Tensor, "m k"], Int[Tensor, "m k"]]:
    """Cosine similarity and row of the k nearest of the gallery, the nearest first.

    The gallery is walked in blocks, so one that lies on the disk is never in memory as a whole; queries are few.
    """
    best = torch.full((len(queries), 0), 0.0), torch.zeros((len(queries), 0), dtype=torch.int64)
    first = 0
    for block in row_blocks(gallery):
        keys = directions(block, centre)
        similarity, index = (queries @ keys.T).topk(min(k, len(keys)), dim=1)
        both = torch.cat([best[0], similarity], 1), torch.cat([best[1], index + first], 1)
        kept, order = both[0].topk(min(k, both[0].shape[1]), dim=1)
        best = kept, both[1].gather(1, order)
        first += len(block)
    return best


def query_chunks(test: Float[Tensor, "m D"], gallery: int) -> int:
    """Queries at a time, so that their similarities with a block of the gallery stay small."""
    return max(1, _CHUNK_ELEMENTS // min(gallery, max(1, _CHUNK_ELEMENTS // test.shape[1])))


def _accuracies(config: KnnConfig, features: LabelledFeatures, centre: Centre | None) -> dict[int, float]:
    chunk = query_chunks(features.test, len(features.train))
    correct = dict.fromkeys(config.k, 0)
    for rows, labels in zip(torch.split(features.test, chunk), torch.split(features.test_labels, chunk), strict=True):
        k_most = min(max(config.k), len(features.train))
        similarity, index = nearest(directions(rows, centre), features.train, k_most, centre)
        neighbours = features.train_labels[index].long()
        for k in correct:
            votes = _votes(similarity[:, :k], neighbours[:, :k], config.temperature, len(features.classes))
            correct[k] += int((votes.argmax(1) == labels).sum())
    return {k: 100 * count / len(features.test) for k, count in correct.items()}


def _votes(
    similarity: Float[Tensor, "m k"], neighbours: Int[Tensor, "m k"], temperature: float, classes: int
) -> Float[Tensor, "m classes"]:
    # Relative to the nearest neighbour: the same winner, and no overflow at low temperatures.
    weights = ((similarity - similarity[:, :1]) / temperature).exp()
    return torch.zeros(len(weights), classes, device=weights.device).scatter_add_(1, neighbours, weights)
