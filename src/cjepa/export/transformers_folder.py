"""A folder that transformers' AutoModel opens as IJepaModel, and AutoImageProcessor prepares images for."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cjepa.data.crops import centre_crop
from cjepa.export.parity import Difference, compare, probe
from cjepa.models.blocks import NORM_EPSILON
from cjepa.models.pretrained import PretrainedEncoder
from cjepa.models.vit import CHANNELS
from cjepa.models.weights.contents import notes
from cjepa.models.weights.folder import CONFIG
from cjepa.models.weights.names import to_transformers
from cjepa.models.weights.transformers import PROCESSOR
from cjepa.types import Part

PIXEL_TOLERANCE = 1.0
"""Largest tolerated difference of any prepared pixel, in levels of 255, where both ways lead to whole pixels."""
SHIFT_TOLERANCE = 1.0
"""Elsewhere transformers rounds sizes and offsets, which moves the crop by less than a pixel. What is tolerated is the
mean distance, in levels of 255, of its pixels from the range of ours and their eight neighbours."""
_BILINEAR = 2  # of Pillow and transformers
_LEVELS = "levels of 255"
_OUTSIDE = "levels of 255 outside of the neighbouring pixels, on average"


class TransformersConfig(Part):
    """config.json, model.safetensors and preprocessor_config.json, for transformers' AutoModel as IJepaModel."""

    name: Literal["transformers"] = "transformers"


def write_transformers(encoder: PretrainedEncoder, folder: Path) -> None:
    """Write the encoder, and for square images their preparation, into an existing folder."""
    from transformers import IJepaConfig, IJepaModel

    config = encoder.encoder.config
    model = IJepaModel(
        IJepaConfig(
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            intermediate_size=int(config.width * config.mlp_ratio),
            hidden_act="gelu",
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            layer_norm_eps=NORM_EPSILON,
            image_size=list(encoder.image_size),
            patch_size=config.patch_size,
            num_channels=CHANNELS,
            qkv_bias=True,
        )
    )
    names = [name for name, _ in model.named_parameters()]
    weights = to_transformers(encoder.encoder.state_dict(), names, config, grid(encoder))
    model.load_state_dict(weights)  # strict: none of its own random weights is left
    model.save_pretrained(folder, max_shard_size="1000GB")
    values = json.loads((folder / CONFIG).read_text(encoding="utf-8")) | notes(config, encoder.preparation)
    (folder / CONFIG).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if is_square(encoder):
        (folder / PROCESSOR).write_text(json.dumps(processor(encoder), indent=2) + "\n", encoding="utf-8")


def grid(encoder: PretrainedEncoder) -> tuple[int, int]:
    """Rows and columns of patches of a training image."""
    height, width = encoder.image_size
    return height // encoder.patch_size, width // encoder.patch_size


def is_square(encoder: PretrainedEncoder) -> bool:
    """transformers' processors resize by the shorter side, which describes our centre crop for squares only."""
    height, width = encoder.image_size
    return height == width


def processor(encoder: PretrainedEncoder) -> dict[str, Any]:
    """The centre crop for evaluation in transformers' words: the shorter side to size / share, then the middle."""
    side = encoder.image_size[0]
    return {
        "image_processor_type": "CLIPImageProcessor",  # IJepaModel's usual one, ViT's, cannot crop
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": shortest_edge(encoder)},
        "resample": _BILINEAR,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(encoder.mean),
        "image_std": list(encoder.std),
    }


def shortest_edge(encoder: PretrainedEncoder) -> int:
    """Side / share, rounded so that what is cut off is even: an odd rest would move the crop by half a pixel."""
    side = encoder.image_size[0]
    return side + 2 * round((side / encoder.evaluation_crop - side) / 2)


def check_transformers(encoder: PretrainedEncoder, folder: Path) -> list[Difference]:
    """Embeddings of AutoModel, and the pixels of AutoImageProcessor where it is written."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    assert type(model).__name__ == "IJepaModel", type(model)
    images = probe(encoder, encoder.image_size)
    expected, found = encoder(images), model(images).last_hidden_state
    differences = [
        compare("patch embeddings", expected, found),
        compare("pooled embeddings", expected.mean(dim=1), found.mean(dim=1)),
    ]
    return differences + (_pixels(encoder, folder) if is_square(encoder) else [])


def _pixels(encoder: PretrainedEncoder, folder: Path) -> list[Difference]:
    from transformers import AutoImageProcessor

    prepare = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    side = encoder.image_size[0]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (encoder.mean, encoder.std))
    differences = []
    for width, height in ((2 * side, 2 * side), (3 * side, 2 * side), (side + side // 3, 2 * side + 1)):
        image = photograph(width, height)
        ours = torch.from_numpy(centre_crop(image, encoder.image_size, encoder.evaluation_crop)).float()
        theirs = ((prepare(images=image, return_tensors="pt")["pixel_values"][0] * std + mean) * 255).round()
        what = f"pixels of a {width} x {height} image"
        if width == height == 2 * side and shortest_edge(encoder) == side / encoder.evaluation_crop:
            differences.append(Difference(what, float((theirs - ours).abs().max()), PIXEL_TOLERANCE, _LEVELS))
        differences.append(Difference(what, outside_neighbours(ours, theirs), SHIFT_TOLERANCE, _OUTSIDE))
    return differences


def outside_neighbours(ours: Float[Tensor, "3 H W"], theirs: Float[Tensor, "3 H W"]) -> float:
    """Mean distance of their pixels from the range of ours and their eight neighbours: 0 for a shift below a pixel."""
    around = F.pad(ours[None], (1, 1, 1, 1), mode="replicate")
    highest, lowest = F.max_pool2d(around, 3, 1)[0], -F.max_pool2d(-around, 3, 1)[0]
    return float(torch.maximum(theirs - highest, lowest - theirs).clamp(min=0).mean())


def photograph(width: int, height: int) -> Image.Image:
    """An RGB image with the contrasts of a photograph: smooth waves of several lengths and an edge."""
    rows, columns = np.mgrid[:height, :width] / min(width, height)
    waves = [np.sin(2 * np.pi * (a * rows + b * columns)) for a, b in ((1.3, 0.4), (0.2, 2.7), (5.1, 3.3))]
    colours = np.stack([127 + 60 * waves[k] + 30 * waves[(k + 1) % 3] for k in range(3)], axis=-1)
    colours[rows + 0.5 * columns > 0.8] *= 0.6
    return Image.fromarray(colours.clip(0, 255).astype(np.uint8))


def load_transformers(encoder: PretrainedEncoder, folder: Path) -> str:
    """Python that opens it."""
    names, prepared = "AutoModel", ""
    if is_square(encoder):
        names = "AutoImageProcessor, AutoModel"
        prepared = (
            f'processor = AutoImageProcessor.from_pretrained("{folder}")\n'
            'pixel_values = processor(images=image, return_tensors="pt")["pixel_values"]  # image: of Pillow, in RGB\n'
        )
    return (
        f"from transformers import {names}\n\n"
        f'{prepared}model = AutoModel.from_pretrained("{folder}")  # IJepaModel\n'
        "patches = model(pixel_values).last_hidden_state  # [B, N, D]; their mean is the embedding"
    )
