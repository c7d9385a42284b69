"""`cjepa visualize`: single pictures of a run's encoders on any images, as PNG and SVG."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, assert_never, get_args

import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from cjepa.build import When, Which, build_encoder, choose_device, find_checkpoint, read_config
from cjepa.config import RunConfig
from cjepa.data import NO_LABEL, EvaluationImages, UnreadableImageError, decode, open_source
from cjepa.data.crops import centre_crop
from cjepa.data.files import EXTENSIONS, is_hidden
from cjepa.errors import InputError
from cjepa.evaluation.monitor import some_images
from cjepa.models.attention import attention_received
from cjepa.models.pretrained import PretrainedEncoder, normalise
from cjepa.runs.continuing import refuse_pictures_among_images
from cjepa.runs.pictures import patch_features, pooled_features, some_masks
from cjepa.visualization import Pool, attention_maps, mask_examples, nearest_neighbours, patch_colours, save

_log = logging.getLogger(__name__)

Picture = Literal["attention", "pca", "masks", "neighbours"]
FORMATS = ("png", "svg")
MOST = 8
"""Images that are shown."""
GALLERY = 1000
"""Most training images that neighbours are looked for in."""


def visualize(
    picture: Picture, run: Path, images: Path, out: Path, *, checkpoint: When = "last", device: str = "auto"
) -> list[Path]:
    """Draw one picture of a run's encoders on images, a file or a folder of which the first 8 are shown; its files.

    attention: attention received in the last block, of the target and of the context encoder. pca: principal
    components of patch features as colours, untrained and trained. masks: context and targets, as in the first step.
    neighbours: the nearest of the run's training images, untrained and trained. Raises InputError without a run, a
    checkpoint, readable images, for neighbours without the run's own images, and where the picture would become one
    of those.
    """
    config = read_config(run)
    refuse_pictures_among_images(config.data, out, "--out")
    shown = read_images(config, images)
    figure = _draw(picture, run, config, shown, checkpoint, choose_device(device))
    try:
        return [save(figure, out / f"{picture}.{kind}") for kind in FORMATS]
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error}; choose another folder with --out") from error


def read_images(config: RunConfig, images: Path) -> UInt8[Tensor, "n 3 H W"]:
    """The file, or the first images of a folder by name, as the run's evaluations see them."""
    if not images.exists():
        raise InputError(f"{images} does not exist; give an image or a folder of images")
    paths = [images] if images.is_file() else sorted(path for path in images.rglob("*") if _is_shown(path, images))
    crops: list[Tensor] = []
    for path in paths:
        if len(crops) == MOST:
            _log.info("the first %d of %d images are shown", MOST, len(paths))
            break
        try:
            image = decode(path, config.data.max_pixels)
        except UnreadableImageError as error:
            _log.warning("left out: %s (%s)", path, error)
            continue
        crops.append(torch.from_numpy(centre_crop(image, config.data.size, config.data.evaluation_crop)))
    if not crops:
        raise InputError(f"{images} holds no image that can be read; give an image or a folder of images")
    return torch.stack(crops)


def _is_shown(path: Path, folder: Path) -> bool:
    """Whether a file would be an image of a training: no thumbnails, and nothing else that systems leave."""
    return path.suffix.lower() in EXTENSIONS and not any(map(is_hidden, path.relative_to(folder).parts))


def _draw(
    picture: Picture, run: Path, config: RunConfig, images: UInt8[Tensor, "n 3 H W"], when: When, device: torch.device
) -> Figure:
    patch = config.model.encoder.patch_size
    match picture:
        case "attention":
            found = find_checkpoint(run, when)
            both = {which: build_encoder(config, found, which).to(device) for which in get_args(Which)}
            received = {which: _received(encoder, images, config, device) for which, encoder in both.items()}
            return attention_maps(images, received, patch)
        case "pca":
            encoders = _before_and_after(run, config, when, device)
            features = {name: patch_features(encoder, images, device) for name, encoder in encoders.items()}
            return patch_colours(images, features, patch)
        case "masks":
            masks = some_masks(config)
            if not masks:
                raise InputError(f"objective={config.objective.name} compares two views and has no masks to draw")
            return mask_examples(images[: len(masks[0].context)], masks[0], patch)
        case "neighbours":
            return _neighbours(config, images, _before_and_after(run, config, when, device), device)
        case _:
            assert_never(picture)


def _before_and_after(run: Path, config: RunConfig, when: When, device: torch.device) -> dict[str, PretrainedEncoder]:
    found = find_checkpoint(run, when)
    untrained, trained = build_encoder(config, None), build_encoder(config, found)
    return {"untrained": untrained.to(device), f"step {found.step}": trained.to(device)}


@torch.no_grad()
def _received(
    encoder: PretrainedEncoder, images: UInt8[Tensor, "n 3 H W"], config: RunConfig, device: torch.device
) -> Float[Tensor, "n N"]:
    pixels = normalise(images.to(device), config.data.mean, config.data.std)
    return torch.cat([attention_received(encoder.encoder.with_attention(image[None])[1]) for image in pixels]).cpu()


def _neighbours(
    config: RunConfig,
    images: UInt8[Tensor, "n 3 H W"],
    encoders: Mapping[str, PretrainedEncoder],
    device: torch.device,
) -> Figure:
    gallery = EvaluationImages(some_images(open_source(config.data, config.seed).train, GALLERY), config.data)
    candidates = torch.stack([gallery[index] for index in range(len(gallery))])

    def pool(shown: UInt8[Tensor, "n 3 H W"]) -> Pool:
        unlabelled = np.full(len(shown), NO_LABEL)
        features = {name: pooled_features(encoder, shown, config, device) for name, encoder in encoders.items()}
        return Pool(shown, unlabelled, features)

    return nearest_neighbours(pool(images), pool(candidates), ())
