"""The pictures of one finished run, or of several of the same images and model side by side."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from cjepa.build import build_encoder, choose_device, find_checkpoint, read_config, sampler_of
from cjepa.config import RunConfig
from cjepa.data import EvaluationImages, ImageSource, Splits, ViewsStream, labelled_only, open_source
from cjepa.data.source import Subset
from cjepa.evaluation.features import extract_features
from cjepa.evaluation.monitor import labelled_splits, some_images
from cjepa.models.kernels import precision_of_reading
from cjepa.models.pretrained import PretrainedEncoder
from cjepa.objectives import TwoViewsConfig
from cjepa.training.metrics import read_metrics
from cjepa.types import Masks

PICTURES, METRICS = "pictures", "metrics.jsonl"
QUERIES, GALLERY, EXAMPLES = 400, 1000, 8
"""Most images that are compared, that they are compared with, and that are shown with masks and patch features."""
MASK_STEPS, MASK_IMAGES = 32, 64
"""Steps, and most images of each, whose masks make the coverage."""
_HELD_OUT = 4
"""Without test images, every fourth one is compared with the others."""


def draw_pictures(runs: Mapping[str, Path], folder: Path) -> list[Path]:
    """Write the pictures of finished runs, by the name to be shown, into a folder; their paths.

    The untrained encoder stands first. All runs have the images, the model, the masks and the device of the first.
    """
    from cjepa.visualization import Examples, Pool, write_pictures

    config = read_config(next(iter(runs.values())))
    chosen = choose_device(config.training.device)
    encoders = {"untrained": build_encoder(config, None).to(chosen)}
    for name, run in runs.items():
        encoders[name] = build_encoder(read_config(run), find_checkpoint(run, "last")).to(chosen)
    splits = open_source(config.data, config.seed)
    query_source, gallery_source = _to_compare(splits)
    queries, gallery = (_decoded(source, config) for source in (query_source, gallery_source))
    masks = some_masks(config)
    shown = _evenly(queries, min([EXAMPLES, *(len(each.context) for each in masks[:1])]))
    examples = Examples(
        shown,
        masks,
        config.model.encoder.patch_size,
        {name: patch_features(encoder, shown, chosen) for name, encoder in encoders.items()},
        _some_views(config, splits.train),
    )

    def pool(images: UInt8[Tensor, "n 3 H W"], source: ImageSource) -> Pool:
        features = {name: pooled_features(encoder, images, config, chosen) for name, encoder in encoders.items()}
        return Pool(images, source.labels, features)

    return write_pictures(
        folder,
        metrics={name: read_metrics(run / METRICS) for name, run in runs.items()},
        examples=examples,
        queries=pool(queries, query_source),
        gallery=pool(gallery, gallery_source),
        classes=query_source.classes,
    )


def _to_compare(splits: Splits) -> tuple[ImageSource, ImageSource]:
    """Queries and gallery: test and training images where labels or the source tell them apart, else some of each."""
    labelled = labelled_splits(splits)
    if labelled is not None and labelled.test is not None:
        return some_images(labelled.test, QUERIES), some_images(labelled_only(labelled.train), GALLERY)
    if splits.test is not None:
        return some_images(splits.test, QUERIES), some_images(splits.train, GALLERY)
    images = some_images(splits.train, QUERIES + GALLERY)
    held_out = np.arange(len(images)) % _HELD_OUT == 0
    return Subset(images, np.flatnonzero(held_out)), Subset(images, np.flatnonzero(~held_out))


def _decoded(source: ImageSource, config: RunConfig) -> UInt8[Tensor, "n 3 H W"]:
    images = EvaluationImages(source, config.data)
    return torch.stack([images[index] for index in range(len(images))])


def _evenly(images: UInt8[Tensor, "n 3 H W"], most: int) -> UInt8[Tensor, "k 3 H W"]:
    return images[torch.linspace(0, len(images) - 1, min(most, len(images))).round().long()]


def some_masks(config: RunConfig) -> list[Masks]:
    """Masks of the first images of a run's first steps; of two views there are none."""
    if isinstance(config.objective, TwoViewsConfig):
        return []
    sampler = sampler_of(config)
    return [sampler(step, 0, min(config.training.batch_size, MASK_IMAGES)) for step in range(MASK_STEPS)]


def _some_views(config: RunConfig, source: ImageSource) -> tuple[Tensor, Tensor] | None:
    """Both views of the first images of a run's first step, where it compares views."""
    if not isinstance(config.objective, TwoViewsConfig):
        return None
    batch_size = config.training.batch_size
    own = 0, min(EXAMPLES, batch_size)
    batch = ViewsStream(source, config.data, sampler_of(config), batch_size, config.seed, *own)[0]
    assert batch.second is not None
    return batch.images, batch.second


@torch.no_grad()
def patch_features(
    encoder: PretrainedEncoder, images: UInt8[Tensor, "n 3 H W"], device: torch.device
) -> Float[Tensor, "n N D"]:
    """Patch features of a few images, on the CPU."""
    return encoder(images.to(device)).float().cpu()


def pooled_features(
    encoder: PretrainedEncoder, images: UInt8[Tensor, "n 3 H W"], config: RunConfig, device: torch.device
) -> Float[Tensor, "n D"]:
    """Pooled embeddings of images, on the CPU."""
    return extract_features(
        encoder,
        images,
        config.data.mean,
        config.data.std,
        device=device,
        precision=precision_of_reading(config.training.precision, device),
        batch_size=config.monitor.batch_size,
    )
