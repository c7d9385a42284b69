"""Folders of transformers' IJepaModel: config.json, model.safetensors, and preprocessor_config.json if there is one.

Read without transformers itself: the folder's weights are plain safetensors.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cjepa.errors import InputError
from cjepa.models.blocks import NORM_EPSILON
from cjepa.models.weights.contents import Channels, Weights, recognise, with_notes, with_preparation
from cjepa.models.weights.folder import CONFIG, TENSORS
from cjepa.models.weights.names import TRANSFORMERS_POSITIONS, from_transformers
from cjepa.models.weights.reading import read_json, read_safetensors

MODEL_TYPE = "ijepa"
PROCESSOR = "preprocessor_config.json"
_REQUIRED: Mapping[str, tuple[object, ...]] = {
    "hidden_act": ("gelu",),
    "qkv_bias": (True,),
    "num_channels": (3,),
    "layer_norm_eps": (NORM_EPSILON,),
}
"""Keys of their config that have to be so, because our encoder has no others."""


def read_transformers_folder(folder: Path, values: Mapping[str, Any]) -> Weights:
    """The encoder of an IJepaModel's folder; InputError lists whatever does not fit."""
    other = [
        f"{key}={values[key]!r} instead of {allowed[0]!r}"
        for key, allowed in _REQUIRED.items()
        if key in values and values[key] not in allowed
    ]
    heads = values.get("num_attention_heads")
    if other or not isinstance(heads, int):
        what = ", ".join(other) or "no num_attention_heads"
        raise InputError(f"{folder / CONFIG}: an encoder with {what} cannot be used here")
    if not (folder / TENSORS).is_file():
        raise InputError(
            f"{folder} has no {TENSORS}; save the model again with save_pretrained(..., max_shard_size='100GB')"
        )
    weights, _ = read_safetensors(folder / TENSORS)
    positions = weights.pop(TRANSFORMERS_POSITIONS, None)
    found = recognise("transformers", from_transformers(weights), positions, str(folder / TENSORS), heads)
    return _prepared(folder, with_notes(found, values, str(folder / CONFIG)))


def _prepared(folder: Path, found: Weights) -> Weights:
    path = folder / PROCESSOR
    if not path.is_file():
        return found
    values = read_json(path)
    mean, std = values.get("image_mean"), values.get("image_std")
    if values.get("do_normalize") is False:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    crop = _crop(values)
    noted = found.preparation.evaluation_crop
    if found.states_normalisation and abs(1 / crop - 1 / noted) * found.preparation.image_size[0] <= 1:
        crop = noted  # the processor has it in whole pixels
    return _rescaled(with_preparation(found, mean, std, crop, str(path)), values, path)


def _rescaled(found: Weights, values: Mapping[str, Any], path: Path) -> Weights:
    """Mean and deviation for pixels / 255, of those for pixels times the processor's own factor."""
    factor = 1.0 if values.get("do_rescale") is False else values.get("rescale_factor", 1 / 255)
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < math.inf:
        raise InputError(f"{path}: rescale_factor must be a positive number, not {factor!r}; correct the file")
    unit = 255 * factor
    if math.isclose(unit, 1):
        return found
    how = found.preparation
    return replace(found, preparation=replace(how, mean=_divided(how.mean, unit), std=_divided(how.std, unit)))


def _divided(channels: Channels, unit: float) -> Channels:
    red, green, blue = channels
    return red / unit, green / unit, blue / unit


def _crop(values: Mapping[str, Any]) -> float:
    """The share of the shorter side that is kept: crop size over the side that it is resized to."""
    size, crop = values.get("size"), values.get("crop_size")
    if not isinstance(size, dict) or not isinstance(crop, dict) or not values.get("do_center_crop"):
        return 1.0
    shortest, height = size.get("shortest_edge"), crop.get("height")
    if not isinstance(shortest, int) or not isinstance(height, int) or not 0 < height <= shortest:
        return 1.0
    return height / shortest
