"""Nearest neighbours: of the same class, or, without labels, another crop of the same image."""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
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
    if max(config.k) > len(features.train):
        raise InputError(f"k: there are only {len(features.train)} training images; ask for fewer neighbours")
    centre = Centre(features.train.mean(0), ~constant_dimensions(features.train)) if config.centre else None
    chunk = query_chunks(features.test, len(features.train))
    found = dict.fromkeys(config.k, 0)
    for rows, labels in zip(torch.split(features.test, chunk), torch.split(features.test_labels, chunk), strict=True):
        _, index = nearest(directions(rows, centre), features.train, max(config.k), centre)
        same = features.train_labels[index] == labels[:, None]
        for k in config.k:
            found[k] += int(same[:, :k].any(1).sum())
    return {f"retrieval_recall_{k}": 100 * count / len(features.test) for k, count in found.items()}


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
