"""Finding an image again by another crop of it: an evaluation that needs no labels."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from cjepa.errors import InputError
from cjepa.evaluation.features import constant_dimensions

_CHUNK_ELEMENTS = 2**24  # similarities held at once: 64 MiB


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
