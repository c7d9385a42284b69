"""Our own folder of one encoder: config.json and model.safetensors, as `cjepa export --format safetensors` writes it.

config.json is an object with `cjepa_format` (1), `encoder` (the keys of EncoderConfig), `image_size` ([height, width]),
`mean`, `std` and `evaluation_crop`; model.safetensors holds one float32 tensor for each weight, under our names.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from cjepa.errors import InputError
from cjepa.models.vit import EncoderConfig
from cjepa.models.weights.contents import Mean, Preparation, Std, Weights
from cjepa.models.weights.fitting import find_config, fit
from cjepa.models.weights.reading import read_safetensors

CONFIG, TENSORS = "config.json", "model.safetensors"
FORMAT_KEY, FORMAT_VERSION = "cjepa_format", 1
_Side = Annotated[int, Field(ge=1)]


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    cjepa_format: int
    encoder: EncoderConfig
    image_size: tuple[_Side, _Side]
    mean: Mean
    std: Std
    evaluation_crop: float = Field(1.0, gt=0, le=1)


def write_folder(folder: Path, config: EncoderConfig, preparation: Preparation, weights: Mapping[str, Tensor]) -> None:
    """Write both files into an existing folder."""
    values = {
        FORMAT_KEY: FORMAT_VERSION,
        "encoder": config.model_dump(mode="json"),
        "image_size": preparation.image_size,
        "mean": preparation.mean,
        "std": preparation.std,
        "evaluation_crop": preparation.evaluation_crop,
    }
    (folder / CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    packed = {name: value.detach().cpu().float().contiguous().clone() for name, value in weights.items()}
    save_file(packed, folder / TENSORS, metadata={"format": "pt"})


def read_folder(folder: Path, values: Mapping[str, Any]) -> Weights:
    """The encoder of a folder whose config.json holds these values; InputError for what does not fit."""
    try:
        config = _Config.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"{folder / CONFIG}: {place}: {first['msg']}; get an undamaged copy") from error
    if config.cjepa_format != FORMAT_VERSION:
        raise InputError(
            f"{folder / CONFIG}: {FORMAT_KEY} {config.cjepa_format} is unknown to this version of cjepa, which reads "
            f"{FORMAT_VERSION}; use the version that wrote it"
        )
    origin = str(folder / TENSORS)
    weights, _ = read_safetensors(folder / TENSORS)
    told = find_config(weights, config.encoder.heads, config.encoder.position_scale, origin)
    differing = [
        f"{key} {getattr(config.encoder, key)}, not {getattr(told, key)}"
        for key in ("width", "depth", "patch_size")
        if getattr(config.encoder, key) != getattr(told, key)
    ]
    # The hidden width is a whole number, from which the ratio cannot be told to the last digit.
    if int(told.width * config.encoder.mlp_ratio) != int(told.width * told.mlp_ratio):
        differing.append(f"mlp_ratio {config.encoder.mlp_ratio}, not {told.mlp_ratio}")
    if differing:
        raise InputError(f"{folder / CONFIG} is of another encoder than {TENSORS}: it says {', '.join(differing)}")
    if any(side % told.patch_size for side in config.image_size):
        height, width = config.image_size
        raise InputError(
            f"{folder / CONFIG}: image_size: {height} x {width} pixels cannot be cut into patches of "
            f"{told.patch_size}; get an undamaged copy"
        )
    fitted = fit(weights, told.model_copy(update=dict(config.encoder)), origin)
    preparation = Preparation(config.image_size, config.mean, config.std, config.evaluation_crop)
    return Weights("safetensors", config.encoder, preparation, fitted, fitted, states_normalisation=True)
