"""From the patch embeddings of an image to its features: of which layers, and where they are normalised."""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from cjepa.errors import InputError
from cjepa.models import VisionTransformer
from cjepa.models.blocks import NORM_EPSILON
from cjepa.models.pretrained import PretrainedEncoder
from cjepa.types import Part


class PoolingConfig(Part):
    """How patch embeddings become the features of an image."""

    layers: int = Field(1, ge=1)
    """Last blocks of the encoder whose patches are averaged and concatenated: 1, or 4 as I-JEPA also reports."""
    norm: Literal["patches", "pooled", "none"] = "patches"
    """LayerNorm: the encoder's on every patch before the mean, one without weights after the mean, or none."""


LAST_LAYER = PoolingConfig()


def pooled(encoder: nn.Module, images: Float[Tensor, "B 3 H W"], pooling: PoolingConfig) -> Float[Tensor, "B F"]:
    """Mean over patches of the last layers, concatenated: F = layers * D, in float32."""
    if pooling == LAST_LAYER:
        patches: Tensor = encoder(images)
        return patches.float().mean(1)
    outputs = layers_of(encoder, images, pooling.layers, pooling.norm == "patches")
    means = [patches.float().mean(1) for patches in outputs]
    if pooling.norm == "pooled":
        means = [layer_norm(mean, mean.shape[-1:], eps=NORM_EPSILON) for mean in means]
    return torch.cat(means, dim=1)


def layers_of(
    encoder: nn.Module, images: Float[Tensor, "B 3 H W"], count: int, norm: bool
) -> tuple[Float[Tensor, "B N D"], ...]:
    """Patch embeddings of the last blocks of a vision transformer; InputError when it has fewer."""
    transformer = encoder.encoder if isinstance(encoder, PretrainedEncoder) else encoder
    assert isinstance(transformer, VisionTransformer), "layers are known of vision transformers only"
    if count > len(transformer.blocks):
        raise InputError(f"layers: the encoder has {len(transformer.blocks)} blocks; ask for no more than those")
    return transformer.last_layers(images, count, norm)
