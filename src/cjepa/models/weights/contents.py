"""What a file of weights holds once it has been read, whatever its format."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, get_args

import torch
from pydantic import BaseModel, Field, FiniteFloat, TypeAdapter, ValidationError
from torch import Tensor

from cjepa.errors import InputError
from cjepa.models.vit import EncoderConfig
from cjepa.models.weights.fitting import find_config, find_positions, fit

Channels = tuple[float, float, float]
_Positive = Annotated[FiniteFloat, Field(gt=0)]
Mean = tuple[FiniteFloat, FiniteFloat, FiniteFloat]
Std = tuple[_Positive, _Positive, _Positive]
"""What files may state: nothing by which a pixel becomes infinite."""
IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)
PROJECTION, RESCALED = "cjepa_patch_projection", "cjepa_rescale_depth"
"""Keys under which exports to other libraries note the encoder's random start, with which evaluations compare it."""
PREPARED = "cjepa_preparation"
"""Key of the preparation of images, for which their formats have not always a place."""


@dataclass(frozen=True)
class Preparation:
    """How images become inputs: size (height, width) in pixels, share of the centre crop, normalisation."""

    image_size: tuple[int, int]
    mean: Channels = IMAGENET_MEAN
    std: Channels = IMAGENET_STD
    evaluation_crop: float = 1.0


@dataclass(frozen=True)
class Weights:
    """An encoder read from a file: its config, its preparation of images, and its weights under our names.

    target: of the moving average, which is the one to be used; context: of the encoder that was trained, or the
    same where the file holds only one. states_normalisation: whether the file itself says mean and std; otherwise they
    are ImageNet's, by custom.
    """

    format: str
    config: EncoderConfig
    preparation: Preparation
    target: Mapping[str, Tensor]
    context: Mapping[str, Tensor]
    states_normalisation: bool = False

    def digest(self) -> str:
        """A sha256 of both encoders' weights, the same in whatever file they come."""
        return digest_of(self.target, self.context)


def with_preparation(weights: Weights, mean: object, std: object, evaluation_crop: float, origin: str) -> Weights:
    """The weights with the preparation that a foreign config states; mean and std are None where it has none.

    InputError for values by which no image can be normalised.
    """
    prepared = replace(
        weights.preparation,
        mean=IMAGENET_MEAN if mean is None else _channels(Mean, mean, f"{origin}: the mean"),
        std=IMAGENET_STD if std is None else _channels(Std, std, f"{origin}: the standard deviation"),
        evaluation_crop=evaluation_crop,
    )
    return replace(weights, preparation=prepared, states_normalisation=mean is not None and std is not None)


def notes(config: EncoderConfig, preparation: Preparation) -> dict[str, Any]:
    """What our exports to other libraries note for ourselves."""
    how = {"mean": preparation.mean, "std": preparation.std, "evaluation_crop": preparation.evaluation_crop}
    return {PROJECTION: config.patch_projection, RESCALED: config.rescale_depth, PREPARED: how}


def with_notes(weights: Weights, noted: Mapping[str, Any], origin: str) -> Weights:
    """The weights with what an export of ours notes, as JSON where only text can be noted.

    The random start is the paper's where nothing usable is noted. InputError for a preparation that cannot be.
    """
    start: dict[str, object] = {"rescale_depth": noted.get(RESCALED) in (True, "true")}
    if noted.get(PROJECTION) in get_args(EncoderConfig.model_fields["patch_projection"].annotation):
        start["patch_projection"] = noted[PROJECTION]
    started = replace(weights, config=weights.config.model_copy(update=start))
    if PREPARED not in noted:
        return started
    value = noted[PREPARED]
    try:
        how = _Prepared.model_validate_json(value) if isinstance(value, str) else _Prepared.model_validate(value)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]["msg"]
        raise InputError(f"{origin}: {PREPARED}: {problem}; get an undamaged copy") from error
    return with_preparation(started, how.mean, how.std, how.evaluation_crop, origin)


class _Prepared(BaseModel):
    mean: Mean
    std: Std
    evaluation_crop: Annotated[FiniteFloat, Field(gt=0, le=1)]


def _channels(kind: Any, value: object, what: str) -> Channels:
    try:
        channels: Channels = TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]["msg"]
        raise InputError(f"{what} must be one number for each of three colours: {problem}; correct the file") from error
    return channels


def digest_of(*parts: Mapping[str, Tensor]) -> str:
    """A sha256 of the names and values of weights."""
    digest = hashlib.sha256()
    for weights in parts:
        for name, value in sorted(weights.items()):
            digest.update(name.encode() + b"\0")
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def recognise(
    format_name: str,
    target: Mapping[str, Tensor],
    positions: Tensor | None,
    origin: str,
    heads: int | None = None,
    preparation: Preparation | None = None,
) -> Weights:
    """The one encoder of a file without a config of ours: shapes say which it is, positions which image size.

    target: weights under our names, without the stored positions. InputError lists everything that does not fit.
    """
    if positions is None:
        raise InputError(f"{origin}: it holds no positions, so it is no vision transformer with sin-cos positions")
    draft = find_config(target, heads, 1.0, origin)
    fitted = fit(target, draft, origin)  # first: a class token is better named than called an odd position
    if positions.ndim != 3 or positions.shape[0] != 1 or positions.shape[2] != draft.width:
        raise InputError(f"{origin}: its positions have shape {list(positions.shape)}, not [1, N, {draft.width}]")
    found = find_positions(positions, origin)
    config = draft.model_copy(update={"position_scale": found.scale})
    size = (found.grid[0] * config.patch_size, found.grid[1] * config.patch_size)
    prepared = replace(preparation or Preparation(size), image_size=size)
    return Weights(format_name, config, prepared, fitted, fitted)
