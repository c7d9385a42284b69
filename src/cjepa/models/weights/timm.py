"""timm's vision transformers without class token, as a .safetensors file or a folder of timm's Hub layout."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cjepa.errors import InputError
from cjepa.models.weights.contents import Weights, recognise, with_notes, with_preparation
from cjepa.models.weights.folder import CONFIG, TENSORS
from cjepa.models.weights.names import POSITIONS, from_vit
from cjepa.models.weights.reading import read_safetensors

HEADS = "heads"
"""Key of a file's metadata for what shapes do not tell."""
_STOCK_HEADS: Mapping[str, int] = {"vit_base_patch16_gap_224": 16}
"""Heads of timm's models that have others than the named size of their width."""
_REQUIRED: Mapping[str, tuple[object, ...]] = {"act_layer": (None, "gelu"), "norm_layer": (None, "layernorm")}
"""Arguments that have to be so, because our encoder has no others; weights have the same names with any."""


def read_safetensors_file(path: Path, heads: int | None) -> Weights:
    """The encoder of one file with timm's names; heads and preparation from its metadata where we wrote it."""
    weights, metadata = read_safetensors(path)
    noted = metadata.get(HEADS, "")
    positions = weights.pop(POSITIONS, None)
    counted = int(noted) if noted.isdecimal() and len(noted) < 4 else heads
    found = recognise("timm", from_vit(weights), positions, str(path), counted)
    return with_notes(found, metadata, str(path))


def read_timm_folder(folder: Path, values: Mapping[str, Any], heads: int | None) -> Weights:
    """The encoder of config.json (`architecture`, `model_args`, `pretrained_cfg`) and model.safetensors."""
    arguments, prepared = values.get("model_args") or {}, values.get("pretrained_cfg") or {}
    if not isinstance(arguments, dict) or not isinstance(prepared, dict):
        raise InputError(f"{folder}: model_args and pretrained_cfg of its config.json must be objects")
    other = [
        f"{key}={arguments[key]!r} instead of {allowed[-1]!r}"
        for key, allowed in _REQUIRED.items()
        if arguments.get(key) not in allowed
    ]
    if other:
        raise InputError(f"{folder / CONFIG}: an encoder with {', '.join(other)} cannot be used here")
    noted = arguments.get("num_heads", _STOCK_HEADS.get(str(values.get("architecture"))))
    weights = read_safetensors_file(folder / TENSORS, noted if isinstance(noted, int) else heads)
    crop = share(prepared.get("crop_pct"))
    return with_preparation(weights, prepared.get("mean"), prepared.get("std"), crop, f"{folder / CONFIG}")


def share(value: object) -> float:
    """A share of the shorter side, or all of it."""
    return float(value) if isinstance(value, int | float) and 0 < value <= 1 else 1.0
