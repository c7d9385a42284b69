"""The linear probe of MAE and I-JEPA: a linear head on random crops, by LARS or SGD."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from cjepa.errors import InputError
from cjepa.evaluation.fitting import SCALE
from cjepa.evaluation.labelled import LabelledImages
from cjepa.evaluation.pooling import LAST_LAYER, PoolingConfig, pooled
from cjepa.evaluation.probing import Probe, ProbeTask
from cjepa.types import Part

MOMENTUM = 0.9
REFERENCE_BATCH = 256
Rates = Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]
Scale = Annotated[float, Field(gt=0, le=1)]


class LinearSgdConfig(Part):
    """A linear head on the frozen encoder, trained on random crops by LARS or SGD."""

    name: Literal["linear-sgd"] = "linear-sgd"
    """Linear head by LARS or SGD."""
    optimizer: Literal["lars", "sgd"] = "lars"
    """LARS as in MAE and I-JEPA, which needs timm, or SGD; both with momentum 0.9."""
    rates: Rates = (0.03, 0.1, 0.3)
    """Base learning rates (MAE: 0.1), for 256 images a step; a head for each, chosen on the validation images."""
    epochs: float = Field(90.0, gt=0)
    """Passes over the training images."""
    warmup_epochs: float = Field(10.0, ge=0)
    """Linear warm-up, then half a cosine to zero."""
    batch_size: int = Field(1024, ge=2)
    """Images per step (MAE: 16384), at most all."""
    weight_decay: float = Field(0.0, ge=0)
    """Decay of the head's weights."""
    crop_scale: tuple[Scale, Scale] = (0.08, 1.0)
    """Area of a training crop as a share of the image; half of the crops are mirrored."""
    validation_share: float = Field(0.1, gt=0, le=0.5)
    """Share of each class's training images that the rate is chosen on; they are not trained on."""
    pooling: PoolingConfig = LAST_LAYER
    """How patch embeddings become the features of an image."""


def open_linear_sgd(config: LinearSgdConfig, images: LabelledImages) -> ProbeTask:
    """The probe with its images."""
    if config.optimizer == "lars":
        _lars()
    probe = Probe(
        name="linear_sgd",
        rates=config.rates,
        encode=partial(_encode, config.pooling),
        head=_head,
        optimizer=partial(_optimizer, config),
        epochs=config.epochs,
        warmup_epochs=min(config.warmup_epochs, config.epochs),
        batch_size=config.batch_size,
        crop_scale=config.crop_scale,
        validation_share=config.validation_share,
    )
    return ProbeTask(images, probe, lambda width: config.pooling.layers * width)


def _encode(pooling: PoolingConfig, encoder: nn.Module, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B F"]:
    return pooled(encoder, images, pooling)


def _head(features: int, classes: int) -> nn.Module:
    """Batch norm without weights before the linear layer, as in MAE: features of encoders differ in scale."""
    linear = nn.Linear(features, classes)
    nn.init.trunc_normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.BatchNorm1d(features, eps=1e-6, affine=False), linear)


def _optimizer(config: LinearSgdConfig, heads: list[nn.Module], batch_size: int) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = []
    for head, rate in zip(heads, config.rates, strict=True):
        for parameter in head.parameters():
            decay = config.weight_decay if parameter.ndim > 1 else 0.0
            scale = rate * batch_size / REFERENCE_BATCH
            group = {"params": [parameter], "weight_decay": decay, SCALE: scale, "lr": scale}
            if config.optimizer == "lars":
                group["always_adapt"] = parameter.ndim > 1  # as MAE: matrices, also without decay, and no bias
            groups.append(group)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=1.0, momentum=MOMENTUM)
    return _lars()(groups)


def _lars() -> Callable[[list[dict[str, Any]]], torch.optim.Optimizer]:
    try:
        from timm.optim.lars import Lars
    except ImportError as error:
        raise InputError('LARS needs timm: pip install "cjepa[evaluation]", or use optimizer=sgd') from error
    return partial(Lars, lr=1.0, momentum=MOMENTUM)
