"""Nearest neighbours: of the same class, or, without labels, another crop of the same image."""

from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from cjepa.errors import InputError
from cjepa.evaluation.features import LabelledFeatures, constant_dimensions
from cjepa.evaluation.knn import Centre, directions, nearest, query_chunks
from cjepa.evaluation.pooling import LAST_LAYER, PoolingConfig
from cjepa.types import Part

_CHUNK_ELEMENTS = 2**24  # similarities held at once: 64 MiB


class RetrievalConfig(Part):
    """Test images look for training images of their class by the cosine of frozen features."""

    name: Literal["retrieval"] = "retrieval"
    """Retrieval of images of the same class."""
    k: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)] = (1, 5, 10)
    """Numbers of nearest training images looked at; a recall for each."""
    centre: bool = True
    """Subtract the training mean first, a large constant part that pooled features share."""
    pooling: PoolingConfig = LAST_LAYER
    """How patch embeddings become the features of an image."""


def retrieval_recall(config: RetrievalConfig, features: LabelledFeatures) -> dict[str, float]:
    """Percent of the test images with one of their class among the k nearest training images: `retrieval_recall_5`.

    The recall at k of metric learning (Jegou et al., 2011; Musgrave et al., 2020). InputError for a k above the number
    of training images, at which every recall is 100.
    """
    found = found_within(
        config.k, config.centre, features.train, features.train_labels, features.test, features.test_labels
    )
    return {f"retrieval_recall_{k}": 100 * float(hits.double().mean()) for k, hits in found.items()}


def found_within(
    counts: tuple[int, ...],
    centre: bool,
    train: Float[Tensor, "n D"],
    train_labels: Int[Tensor, "n"],
    test: Float[Tensor, "m D"],
    test_labels: Int[Tensor, "m"],
) -> dict[int, Bool[Tensor, "m"]]:
    """For each count k: has each of the test rows one of its label among the k nearest training rows?

    centre: subtract the training mean first. InputError for a k above the number of training rows.
    """
    check_neighbours(counts, len(train))
    middle = Centre(train.mean(0), ~constant_dimensions(train)) if centre else None
    chunk = query_chunks(test, len(train))
    same = []
    for rows, labels in zip(torch.split(test, chunk), torch.split(test_labels, chunk), strict=True):
        _, index = nearest(directions(rows, middle), train, max(counts), middle)
        same.append(train_labels[index] == labels[:, None])
    hits = torch.cat(same)
    return {k: hits[:, :k].any(1) for k in counts}


def check_neighbours(counts: tuple[int, ...], rows: int) -> None:
    """InputError for a k above the number of training rows, which needs no feature to be known."""
    if max(counts) > rows:
        raise InputError(f"k: there are only {rows} training images or patches; ask for fewer neighbours")


def crop_retrieval(first: Float[Tensor, "n D"], second: Float[Tensor, "n D"]) -> float:
    """Percent of the images whose second crop is, of all second crops, the nearest to their first crop.

    first, second: features of two crops of the same n images. Nearest by cosine similarity after subtracting
    the mean of all 2 n features. Crops that are equally near share the hit, so a collapsed encoder scores
    chance, 100 / n. Values compare at equal n only. Raises InputError for fewer than two images.
    """
    if len(first) < 2:
        raise InputError(f"crop-to-crop retrieval needs at least two images, not {len(first)}")
    both = torch.cat([first, second]).float()
    both = normalize((both - both.mean(0)) * ~constant_dimensions(both), dim=1)
    queries, keys = torch.split(both, len(first))
    chunk = max(1, _CHUNK_ELEMENTS // len(keys))
    hits = 0.0
    for start in range(0, len(queries), chunk):
        similarity = queries[start : start + chunk] @ keys.T
        nearest = similarity == similarity.amax(1, keepdim=True)
        found = nearest.diagonal(start)
        hits += float((found / nearest.sum(1)).double().sum())
    return 100 * hits / len(first)
