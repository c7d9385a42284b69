"""The attentive probe: one learned query looks at the patches, so that features need not lie in their mean."""

from functools import partial
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from cjepa.errors import InputError
from cjepa.evaluation.fitting import SCALE
from cjepa.evaluation.labelled import LabelledImages
from cjepa.evaluation.probing import Probe, ProbeTask
from cjepa.models.attention import attend
from cjepa.models.blocks import INITIAL_STD, Mlp
from cjepa.types import Part


class AttentiveConfig(Part):
    """Cross-attention of one learned query to the frozen patches, an MLP and a linear layer."""

    name: Literal["attentive"] = "attentive"
    """Attentive probe."""
    rates: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (3e-4, 1e-3)
    """Peak learning rates of AdamW; a head for each, chosen on the validation images."""
    epochs: float = Field(20.0, gt=0)
    """Passes over the training images."""
    warmup_epochs: float = Field(2.0, ge=0)
    """Linear warm-up, then half a cosine to zero."""
    batch_size: int = Field(256, ge=2)
    """Images per step, at most all."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW's decay of matrices."""
    heads: int = Field(1, ge=1)
    """Attention heads; must divide the encoder's width."""
    crop_scale: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (0.3, 1.0)
    """Area of a training crop as a share of the image; half of the crops are mirrored."""
    validation_share: float = Field(0.1, gt=0, le=0.5)
    """Share of each class's training images that the rate is chosen on; they are not trained on."""


class AttentiveHead(nn.Module):
    """q' = q + attention(q, norm(patches)); logits = linear(norm(q' + mlp(norm(q')))), as in V-JEPA's probe."""

    def __init__(self, width: int, classes: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.empty(1, 1, width))
        nn.init.trunc_normal_(self.query, std=INITIAL_STD)
        self.norm_patches = nn.LayerNorm(width)
        self.key_value = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm_query = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4.0)
        self.norm_out = nn.LayerNorm(width)
        self.classify = nn.Linear(width, classes)

    def forward(self, patches: Float[Tensor, "B N D"]) -> Float[Tensor, "B classes"]:
        """Logits of the classes."""
        batch, _, width = patches.shape
        split = (self.heads, width // self.heads)
        key, value = self.key_value(self.norm_patches(patches)).unflatten(2, (2, *split)).permute(2, 0, 3, 1, 4)
        query = self.query.expand(batch, -1, -1)
        mixed = attend(query.unflatten(2, split).transpose(1, 2), key, value)
        seen = query + self.proj(mixed.transpose(1, 2).flatten(2))
        seen = seen + self.mlp(self.norm_query(seen))
        logits: Tensor = self.classify(self.norm_out(seen[:, 0]))
        return logits


def open_attentive(config: AttentiveConfig, images: LabelledImages) -> ProbeTask:
    """The probe with its images."""
    probe = Probe(
        name="attentive",
        rates=config.rates,
        encode=lambda encoder, pixels: encoder(pixels),
        head=partial(_head, config),
        optimizer=lambda heads, _: _optimizer(config, heads),
        epochs=config.epochs,
        warmup_epochs=min(config.warmup_epochs, config.epochs),
        batch_size=config.batch_size,
        crop_scale=config.crop_scale,
        validation_share=config.validation_share,
    )
    return ProbeTask(images, probe, lambda width: width)


def _head(config: AttentiveConfig, width: int, classes: int) -> nn.Module:
    if width % config.heads:
        divisors = ", ".join(str(number) for number in range(1, width + 1) if width % number == 0)
        raise InputError(
            f"heads: {config.heads} heads do not divide the encoder's width of {width}; choose a divisor: {divisors}"
        )
    return AttentiveHead(width, classes, config.heads)


def _optimizer(config: AttentiveConfig, heads: list[nn.Module]) -> torch.optim.Optimizer:
    groups = []
    for head, rate in zip(heads, config.rates, strict=True):
        for decays in (True, False):
            parameters = [each for each in head.parameters() if (each.ndim == 2) == decays]
            groups.append({"params": parameters, "weight_decay": config.weight_decay * decays, SCALE: rate, "lr": rate})
    return torch.optim.AdamW(groups)
